"""Runs the background jobs of a replica, each at its own interval."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.export_heads import export_if_due
from payment_service.application.jobs.act_on_deadlines import act_on_deadlines
from payment_service.application.jobs.apply_webhooks import apply_waiting
from payment_service.application.jobs.check_accounts import check_accounts
from payment_service.application.jobs.collect_debts import collect_debts
from payment_service.application.jobs.expire_unpaid import expire_unpaid
from payment_service.application.jobs.poll_events import poll_events
from payment_service.application.jobs.poll_stale_payments import poll_stale_payments
from payment_service.application.jobs.prune import prune
from payment_service.application.jobs.recover_operations import recover_operations
from payment_service.application.jobs.retry_waiting_captures import retry_waiting_captures
from payment_service.application.jobs.sequence_feed import advance_feed, sequence_feed
from payment_service.application.jobs.supervision import supervised
from payment_service.application.jobs.sync_expired_authorizations import (
    sync_expired_authorizations,
)
from payment_service.application.jobs.update_waiting_reasons import update_waiting_reasons
from payment_service.application.jobs.warn_of_deadlines import warn_of_deadlines
from payment_service.application.jobs.write_off_lost_disputes import write_off_lost_disputes
from payment_service.application.reconciliation.run import reconcile_if_due
from payment_service.domain.errors import Refusal

log = structlog.get_logger(__name__)


Job = Callable[[App], Awaitable[int]]

#: Callers and experts wait for these.
_SOON: Final[tuple[Job, ...]] = (
    advance_feed,
    recover_operations,
    poll_events,
    update_waiting_reasons,
    retry_waiting_captures,
    write_off_lost_disputes,
    collect_debts,
)
#: These may be some seconds late.
_LATER: Final[tuple[Job, ...]] = (
    poll_stale_payments,
    check_accounts,
    reconcile_if_due,
    expire_unpaid,
    sync_expired_authorizations,
    warn_of_deadlines,
    act_on_deadlines,
    prune,
    export_if_due,
)


async def run_background(app: App) -> None:
    """Runs all jobs until cancelled. They hold no state: any replica can do any of them."""
    soon, later = app.policy.job_interval, app.policy.slow_job_interval
    async with asyncio.TaskGroup() as tasks:
        # These two are also woken when there is work.
        tasks.create_task(_loop(app, apply_waiting, soon, wakes=app.wake))
        tasks.create_task(_loop(app, sequence_feed, soon, wakes=app.feed.recorded))
        listen = partial(app.database.listen, app.feed.reached)
        tasks.create_task(supervised(app.alarms, "feed_listener", listen))
        for job in _SOON:
            tasks.create_task(_loop(app, job, soon))
        for job in _LATER:
            tasks.create_task(_loop(app, job, later))


async def _loop(app: App, job: Job, seconds: float, *, wakes: asyncio.Event | None = None) -> None:
    """Runs a job until it finds no more work, then waits for a wake-up or for its interval.

    The interval has jitter, so that replicas do not run the same job at the same moment.
    """
    while True:
        try:
            more = await job(app)
            while more:
                more = await job(app)
        except Refusal as refusal:  # The database is unavailable: wait and try again.
            log.warning("background_waits", job=job.__name__, reason=refusal.reason)
        except Exception as error:  # noqa: BLE001 - a job that raises must run again
            app.alarms.background_failed(job.__name__, type(error).__name__)
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
