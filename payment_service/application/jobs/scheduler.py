"""Runs the background jobs of a replica, each at its own interval."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.jobs.apply_webhooks import apply_waiting
from payment_service.application.jobs.deadlines import act_on_deadlines, warn_of_deadlines
from payment_service.application.jobs.expiry import expire_unpaid, sync_expired_authorizations
from payment_service.application.jobs.lost_disputes import write_off_lost_disputes
from payment_service.application.jobs.poll_stripe import poll_events, poll_stale_payments
from payment_service.application.jobs.recover_operations import recover_operations
from payment_service.application.jobs.sequence_feed import advance_feed, sequence_feed
from payment_service.application.jobs.waiting_captures import retry_waiting_captures
from payment_service.application.reconciliation.run import reconcile_if_due
from payment_service.domain.errors import Refusal

log = structlog.get_logger(__name__)


_POLL_SECONDS: Final = 1.0


_SELDOM_SECONDS: Final = 15.0


Job = Callable[[App], Awaitable[int]]


async def run_background(app: App) -> None:
    """Run all loops until cancelled. They hold no state: any replica can do any of it."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_loop(app, apply_waiting, _POLL_SECONDS, wakes=app.wake))
        tasks.create_task(_loop(app, sequence_feed, _POLL_SECONDS, wakes=app.feed.recorded))
        tasks.create_task(_loop(app, advance_feed, _POLL_SECONDS))
        tasks.create_task(app.database.listen(app.feed.reached))
        tasks.create_task(_loop(app, recover_operations, _POLL_SECONDS))
        tasks.create_task(_loop(app, poll_events, _POLL_SECONDS))
        tasks.create_task(_loop(app, poll_stale_payments, _SELDOM_SECONDS))
        tasks.create_task(_loop(app, reconcile_if_due, _SELDOM_SECONDS))
        tasks.create_task(_loop(app, expire_unpaid, _SELDOM_SECONDS))
        tasks.create_task(_loop(app, sync_expired_authorizations, _SELDOM_SECONDS))
        tasks.create_task(_loop(app, retry_waiting_captures, _POLL_SECONDS))
        tasks.create_task(_loop(app, write_off_lost_disputes, _POLL_SECONDS))
        tasks.create_task(_loop(app, warn_of_deadlines, _SELDOM_SECONDS))
        tasks.create_task(_loop(app, act_on_deadlines, _SELDOM_SECONDS))


async def _loop(app: App, work: Job, seconds: float, *, wakes: asyncio.Event | None = None) -> None:
    """Work until there is none, then wait for a wake-up or the next poll, with jitter."""
    while True:
        try:
            more = await work(app)
            while more:
                more = await work(app)
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
