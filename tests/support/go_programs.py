"""Programs that others wrote in Go, built once and kept beside the other tools."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

_TOOLS: Final = Path(sys.executable).parent
_BUILD_SECONDS: Final = 600


def built(package: str, version: str, name: str) -> Path | None:
    """Returns a program, and builds it if it is absent; None without Go."""
    program = _TOOLS / f"{name}-{version}"
    go = shutil.which("go")
    with (program.with_suffix(".lock")).open("w") as lock:
        # Tests run in several processes.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists():
            return program
        if go is None:
            return None
        with tempfile.TemporaryDirectory(dir=_TOOLS) as directory:
            subprocess.run(
                [go, "install", f"{package}@{version}"],
                env={**os.environ, "GOBIN": directory, "GOFLAGS": ""},
                check=True,
                capture_output=True,
                timeout=_BUILD_SECONDS,
            )
            [made] = Path(directory).iterdir()
            made.rename(program)
    return program
