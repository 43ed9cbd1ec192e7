"""The clock that a process has for itself."""

from __future__ import annotations

import time
from typing import Final

#: Goes on while the process is stopped, and on Linux while the machine is asleep as well.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def own_clock() -> float:
    """Seconds since some moment in the past; never set, so only differences mean anything."""
    return time.clock_gettime(_CLOCK)
