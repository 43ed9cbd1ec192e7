"""Whether a process would start with what a deployment gives it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from dev.settings import ROOT


def checked(
    module: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Lets a process say whether it would start with exactly these settings."""
    return subprocess.run(
        [sys.executable, "-m", *module, "check"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
