"""The process's own clock, which nobody can set."""

from __future__ import annotations

import time
from typing import Final

#: Continues while the process is stopped, and on Linux also while the machine is suspended.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def own_clock() -> float:
    """Returns seconds since an arbitrary moment. Only the difference of two calls has a meaning."""
    return time.clock_gettime(_CLOCK)
