"""Runs the background jobs of a replica, each when it has work, and rests in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.export_heads import export_if_due
from payment_service.application.jobs.act_on_deadlines import act_on_deadlines
from payment_service.application.jobs.apply_webhooks import apply_waiting
from payment_service.application.jobs.check_accounts import check_accounts
from payment_service.application.jobs.close_months import close_months
from payment_service.application.jobs.collect_debts import collect_debts
from payment_service.application.jobs.expire_unpaid import expire_unpaid
from payment_service.application.jobs.fold_balances import fold_balances
from payment_service.application.jobs.poll_events import poll_events
from payment_service.application.jobs.poll_stale_payments import poll_stale_payments
from payment_service.application.jobs.prune import prune
from payment_service.application.jobs.recover_operations import recover_operations
from payment_service.application.jobs.retry_waiting_captures import retry_waiting_captures
from payment_service.application.jobs.sequence_feed import sequence_feed
from payment_service.application.jobs.supervision import supervised
from payment_service.application.jobs.sync_expired_authorizations import (
    sync_expired_authorizations,
)
from payment_service.application.jobs.update_waiting_reasons import update_waiting_reasons
from payment_service.application.jobs.warn_of_deadlines import warn_of_deadlines
from payment_service.application.jobs.write_off_lost_disputes import write_off_lost_disputes
from payment_service.application.reconciliation.run import reconcile_if_due
from payment_service.domain.errors import Refusal
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import Agenda

log = structlog.get_logger(__name__)


Job = Callable[[App], Awaitable[int]]

#: These are also woken at once by what has happened in this process.
WOKEN: Final[tuple[Job, ...]] = (apply_waiting, sequence_feed)
#: Callers and experts wait for these.
SOON: Final[tuple[Job, ...]] = (
    recover_operations,
    poll_events,
    update_waiting_reasons,
    retry_waiting_captures,
    write_off_lost_disputes,
    collect_debts,
)
#: These may be some seconds late.
LATER: Final[tuple[Job, ...]] = (
    poll_stale_payments,
    check_accounts,
    reconcile_if_due,
    expire_unpaid,
    sync_expired_authorizations,
    warn_of_deadlines,
    act_on_deadlines,
    fold_balances,
    prune,
    close_months,
    export_if_due,
)


async def run_background(app: App) -> None:
    """Runs all jobs until cancelled. They hold no state: any replica can do any of them.

    Each job rests until its bell rings. One read of the agenda says which jobs have work.
    """
    soon, later = app.policy.job_interval, app.policy.slow_job_interval
    bells = {apply_waiting.__name__: app.wake, sequence_feed.__name__: app.feed.recorded}
    rests = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        pauses: dict[Job, float] = {sequence_feed: app.policy.feed_gathering}
        for job in WOKEN:
            tasks.create_task(_loop(app, job, bells[job.__name__], pauses.get(job, 0.0)))
        listen = partial(app.database.listen, app.feed.reached, rests.set)
        tasks.create_task(supervised(app.alarms, "feed_listener", listen))
        for jobs, seconds in ((SOON, soon), (LATER, later)):
            for job in jobs:
                bell = bells[job.__name__] = asyncio.Event()
                tasks.create_task(_loop(app, job, bell, seconds))
        tasks.create_task(_watch(app, bells, rests, soon))


async def _watch(
    app: App, bells: Mapping[str, asyncio.Event], rests: asyncio.Event, seconds: float
) -> None:
    """Rings for each job that has work, as the agenda says.

    A replica waits at least half of ``seconds`` after any replica has read it, and at most all of
    them. So the one that waits shortest reads for all, each time another one, and each does what it
    has found. A replica that can do nothing now, without Stripe or after a newer release has taken
    over, reads for itself only. If the agenda cannot be read, every bell rings: one condition that
    fails or takes too long must not stop all jobs.
    """
    pause = 0.0  # Work may have waited for this process to begin.
    while True:
        rests.clear()
        # Not `wait_for`: in Python 3.11 it can swallow a cancellation that comes with the wake-up,
        # and the process would never end.
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await rests.wait()
        pause = random.uniform(seconds / 2, seconds)  # noqa: S311 - jitter
        if rests.is_set():
            continue
        try:
            works = not (app.stripe.is_unavailable or app.database.is_superseded)
            agenda = await app.database.read(_agenda, announced=works)
        except Refusal as refusal:  # The database is unavailable, or the statement took too long.
            log.warning("background_waits", job="agenda", reason=refusal.reason)
            due = frozenset(bells)
        except Exception as error:  # noqa: BLE001 - it must be read again
            app.alarms.background_failed("agenda", type(error).__name__)
            due = frozenset(bells)
        else:
            app.feed.reached(agenda.feed_head)
            due = agenda.due
        for name in due:
            bells[name].set()


def _agenda(reader: Reader, *, announced: bool) -> Agenda:
    return reader.agenda(announced=announced)


async def _loop(app: App, job: Job, bell: asyncio.Event, seconds: float) -> None:
    """Runs a job until it finds no more work, pauses, and waits for its bell.

    The pause has jitter, so that replicas do not run the same job at the same moment.
    """
    while True:
        await bell.wait()
        bell.clear()
        try:
            while await job(app):
                pass
        except Refusal as refusal:  # The database is unavailable: the bell rings again.
            log.warning("background_waits", job=job.__name__, reason=refusal.reason)
        except Exception as error:  # noqa: BLE001 - a job that raises must run again
            app.alarms.background_failed(job.__name__, type(error).__name__)
        await asyncio.sleep(random.uniform(seconds / 2, seconds))  # noqa: S311 - jitter
