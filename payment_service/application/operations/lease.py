"""Holds an operation's lease while its holder is alive.

A lease is short, so that the operations of a killed replica are taken up within seconds. A call to
Stripe may take longer, so the holder renews the lease. A stale holder finds another token in the
row and changes nothing (fencing).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from payment_service.application.app import App
from payment_service.domain.errors import Refusal
from payment_service.domain.operations import Operation
from payment_service.domain.ports.database import Transaction


@asynccontextmanager
async def keep_lease(app: App, operation: Operation) -> AsyncIterator[None]:
    """Renew the lease until the block ends."""
    renewing = asyncio.create_task(_renew(app, operation))
    try:
        yield
    finally:
        renewing.cancel()


async def _renew(app: App, operation: Operation) -> None:
    while True:
        await asyncio.sleep(app.policy.lease / 3)
        with suppress(Refusal):  # The database is away: it will be tried again.
            if await app.database.transact(renew_lease, operation, app.policy.lease) is None:
                return


def renew_lease(tx: Transaction, operation: Operation, seconds: float) -> datetime | None:
    """The database's time; None if the lease is no longer ours, or was given back."""
    return tx.renew_lease(operation.operation_id, operation.lease_token, seconds)
