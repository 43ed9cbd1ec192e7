"""Holds an operation's lease: renews it, checks it before a request, and releases it.

A lease is short, so that the operations of a killed replica are taken over within seconds. A call
to Stripe may take longer, so the holder renews the lease. A stale holder finds another token in the
row and changes nothing (fencing).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from payment_service.application.app import App
from payment_service.application.operations.outcomes import park, release_operation
from payment_service.domain.errors import Refusal, outcome_unknown
from payment_service.domain.operations import Operation, Release, Retry
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause


@asynccontextmanager
async def keep_lease(app: App, operation: Operation) -> AsyncIterator[None]:
    """Renews the lease until the block ends."""
    renewing: list[asyncio.Task[None]] = []

    def begin() -> None:
        renewing.append(asyncio.create_task(_renew(app, operation)))

    # Most calls are over before that, and need no task.
    coming = asyncio.get_running_loop().call_later(app.policy.lease / 3, begin)
    try:
        yield
    finally:
        coming.cancel()
        for task in renewing:
            task.cancel()


async def _renew(app: App, operation: Operation) -> None:
    while True:
        with suppress(Refusal):  # The database is not available: the next round tries again.
            if await app.database.transact(renew_lease, operation, app.policy.lease) is None:
                return
        await asyncio.sleep(app.policy.lease / 3)


def renew_lease(tx: Transaction, operation: Operation, seconds: float) -> datetime | None:
    """Returns the database's time, or None if the lease was released or belongs to another."""
    return tx.renew_lease(operation.operation_id, operation.lease_token, seconds)


async def ensure_lease(
    app: App, operation: Operation, cause: Cause, facts: Mapping[str, str]
) -> None:
    """Checks, right before a request, that the operation may still be sent.

    A stale holder may come too late: another may have ended the operation, and Stripe may have
    pruned its key, so that the same request would act a second time. An operation that was just
    recorded is sent without asking the database, while its lease cannot have run out by a clock
    that continues while the process is stopped. Raises, with these ``facts``, if it must not be
    sent.
    """
    asked, lease = app.database.clock(), app.policy.lease
    just_recorded = not operation.tries and operation.is_surely_held(asked, lease)
    now = operation.lease_until if just_recorded else None
    if now is None:
        now = await app.database.transact(renew_lease, operation, lease)
        if now is None or app.database.clock() - asked >= lease:
            raise outcome_unknown(**facts)
    if not operation.may_resend(now):
        why = "not at Stripe, and too old to be sent again"
        await release(app, operation, park(app.policy, operation, why), cause)
        raise outcome_unknown(**facts)


async def release(app: App, operation: Operation, how: Release, cause: Cause) -> None:
    """Releases the lease, and raises an alarm if that parks the operation."""
    parked = await app.database.transact(release_operation, app.policy, operation, how, cause)
    if parked:
        app.alarms.operation_parked(operation, how.why)


@asynccontextmanager
async def release_lease_on_failure(
    app: App, operation: Operation, cause: Cause
) -> AsyncIterator[None]:
    """Releases the lease at once where Stripe cannot be read, so that others can try soon.

    A try that an outage prevents does not count towards parking.
    """
    try:
        yield
    except Refusal as refusal:
        pause = back_off(app.policy, operation.tries)
        why = refusal.reason.lower()
        await release(app, operation, Retry(why=why, after=pause, counts=False), cause)
        raise


def back_off(policy: Policy, tries: int) -> float:
    """Returns the seconds until the next try.

    They double with each try. The jitter keeps replicas from trying at the same moment.
    """
    doubled = policy.retry_first_seconds * 2 ** min(tries, 16)
    longest = min(policy.retry_longest_seconds, doubled)
    return random.uniform(longest / 2, longest)  # noqa: S311 - jitter


async def is_closed(app: App, operation: Operation) -> bool:
    """Returns whether the operation has ended by now."""
    current = await app.database.read(lambda reader: reader.operation(operation.operation_id))
    return current is None or not current.is_open
