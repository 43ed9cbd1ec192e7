"""Whether a process would start with what a deployment gives it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from tests.support.nursery import Nursery


def checked(
    nursery: Nursery, module: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Lets a process say whether it would start with exactly these settings."""
    return nursery.run(*module, "check", env={"PATH": os.environ["PATH"], **environment})
