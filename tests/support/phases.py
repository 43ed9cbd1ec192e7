"""Waiting inside of a phase of the database, which cannot await."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from payment_service.adapters.postgres.waiting import pause

T = TypeVar("T")


def wait_in_phase(holds: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Waits until something holds, while the event loop continues."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"in vain for {seconds} s: {what}")
        pause(0.005)


def run_in_phase(work: Coroutine[Any, Any, T], seconds: float = 30.0) -> T:
    """Lets the event loop do something while the phase waits for it."""
    task = asyncio.get_running_loop().create_task(work)
    wait_in_phase(task.done, "what the event loop does meanwhile", seconds)
    return task.result()
