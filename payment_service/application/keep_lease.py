"""Hold an operation's lease for as long as its holder lives, and not much longer.

A lease is short, so that what a killed replica left is taken up within seconds; a call to Stripe
may take longer, so the holder renews it. A holder that was stopped (or lost the database) finds
another's token when it comes back, and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from payment_service.application.core import Core
from payment_service.domain.errors import Refusal
from payment_service.domain.operations import Operation
from payment_service.domain.ports import Transaction


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
