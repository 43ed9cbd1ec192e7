"""Hold an operation's lease for as long as its holder lives, and not much longer.

A lease is short, so that what a killed replica left is taken up within seconds; a call to Stripe
may take longer, so the holder renews it. A holder that was stopped (or lost the database) finds
another's token when it comes back, and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from payment_service.application.core import Core
from payment_service.application.settle import unsettled_phase
from payment_service.domain.errors import Refusal, outcome_unknown
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.ports import Cause, Transaction


@asynccontextmanager
async def keep_lease(core: Core, operation: Operation) -> AsyncIterator[None]:
    """Renew the lease until the block ends."""
    renewing = asyncio.create_task(_renew(core, operation))
    try:
        yield
    finally:
        renewing.cancel()


async def _renew(core: Core, operation: Operation) -> None:
    while True:
        await asyncio.sleep(core.policy.lease / 3)
        with suppress(Refusal):  # The database is away: it will be tried again.
            if await core.database.transact(renew_lease, operation, core.policy.lease) is None:
                return


def renew_lease(tx: Transaction, operation: Operation, seconds: float) -> datetime | None:
    """The database's time; None if the lease is no longer ours, or was given back."""
    return tx.renew_lease(operation.operation_id, operation.lease_token, seconds)


async def check_lease(
    core: Core, operation: Operation, cause: Cause, facts: Mapping[str, str]
) -> None:
    """Comes right before every request of an operation: whoever slept sends nothing.

    Another may have ended the operation meanwhile, and Stripe may have pruned its key: the same
    request would then act a second time. What was just recorded is sent without asking anybody,
    while its lease cannot have run out by a clock that goes on while we are stopped. Raises, with
    these ``facts``, where nothing may be sent.
    """
    asked, lease = core.database.clock(), core.policy.lease
    just_recorded = not operation.tries and operation.is_surely_held(asked, lease)
    now = operation.lease_until if just_recorded else None
    if now is None:
        now = await core.database.transact(renew_lease, operation, lease)
        if now is None or core.database.clock() - asked >= lease:
            raise outcome_unknown(**facts)
    if not operation.may_resend(now):
        why = "not at Stripe, and too old to be sent again"
        unknown = OperationState.UNKNOWN
        if await core.database.transact(
            unsettled_phase, core.policy, operation, unknown, why, None, cause
        ):
            core.alarms.operation_parked(operation, why)
        raise outcome_unknown(**facts)
