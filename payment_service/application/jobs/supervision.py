"""Keeps the tasks of a process alive: none of them ends unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from payment_service.domain.ports.alarms import Alarms

_PAUSE_SECONDS: Final = 5.0


async def supervised(
    alarms: Alarms,
    name: str,
    work: Callable[[], Awaitable[None]],
    pause: float = _PAUSE_SECONDS,
) -> None:
    """Runs ``work``, which should never end, until this task is cancelled.

    If it ends or raises, that is reported, and ``work`` begins again after ``pause`` seconds.
    """
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the work must begin again
            alarms.background_failed(name, type(error).__name__)
        else:
            alarms.background_failed(name, "ended")
        await asyncio.sleep(pause)
