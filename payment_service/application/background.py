"""The loops of every replica: apply the inbox, fill the feed, sweep, close what ran out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from payment_service.application.act_on_deadlines import act_on_deadlines, warn_of_deadlines
from payment_service.application.apply_inbox import apply_waiting
from payment_service.application.core import Core
from payment_service.application.poll_events import ask_about_quiet_payments, poll_events
from payment_service.application.reconcile import reconcile_if_due
from payment_service.application.sequence_feed import follow_feed, sequence_feed
from payment_service.application.sweep import (
    ask_about_lapsed_holds,
    expire_unpaid,
    resume_waiting_captures,
    settle_lost_disputes,
    sweep_operations,
)
from payment_service.domain.errors import Refusal

log = structlog.get_logger(__name__)

_POLL_SECONDS: Final = 1.0
_SELDOM_SECONDS: Final = 15.0

Work = Callable[[Core], Awaitable[int]]


async def run_background(core: Core) -> None:
    """Run all loops until cancelled. They hold no state: any replica can do any of it."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_loop(core, apply_waiting, _POLL_SECONDS, wakes=core.wake))
        tasks.create_task(_loop(core, sequence_feed, _POLL_SECONDS, wakes=core.feed.recorded))
        tasks.create_task(_loop(core, follow_feed, _POLL_SECONDS))
        tasks.create_task(core.database.listen(core.feed.reached))
        tasks.create_task(_loop(core, sweep_operations, _POLL_SECONDS))
        tasks.create_task(_loop(core, poll_events, _POLL_SECONDS))
        tasks.create_task(_loop(core, ask_about_quiet_payments, _SELDOM_SECONDS))
        tasks.create_task(_loop(core, reconcile_if_due, _SELDOM_SECONDS))
        tasks.create_task(_loop(core, expire_unpaid, _SELDOM_SECONDS))
        tasks.create_task(_loop(core, ask_about_lapsed_holds, _SELDOM_SECONDS))
        tasks.create_task(_loop(core, resume_waiting_captures, _POLL_SECONDS))
        tasks.create_task(_loop(core, settle_lost_disputes, _POLL_SECONDS))
        tasks.create_task(_loop(core, warn_of_deadlines, _SELDOM_SECONDS))
        tasks.create_task(_loop(core, act_on_deadlines, _SELDOM_SECONDS))


async def _loop(
    core: Core, work: Work, seconds: float, *, wakes: asyncio.Event | None = None
) -> None:
    """Work until there is none, then wait for a wake-up or the next poll, with jitter."""
    while True:
        try:
            more = await work(core)
            while more:
                more = await work(core)
        except Refusal as refusal:  # The database is away: wait and try again.
            log.warning("background_waits", work=work.__name__, reason=refusal.reason)
        except Exception as error:  # noqa: BLE001 - a loop that dies stops nothing but is silent
            log.error("background_failed", work=work.__name__, error=type(error).__name__)
        pause = random.uniform(seconds / 2, seconds)  # noqa: S311 - jitter
        if wakes is None:
            await asyncio.sleep(pause)
            continue
        # Not `wait_for`: in Python 3.11 it can swallow a cancellation that comes with the wake-up,
        # and the process would never end.
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await wakes.wait()
        wakes.clear()
