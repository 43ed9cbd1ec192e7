"""Syncs payments whose card authorization must have expired, although no webhook said so."""

from __future__ import annotations

from typing import Final

from payment_service.application.app import App
from payment_service.application.fair_queue import process_fairly
from payment_service.application.jobs.recover_operations import RECOVERY
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.ports.records import JobKind

_BATCH: Final = 32


async def sync_expired_authorizations(app: App) -> int:
    """Syncs the payments, and returns 0: one batch is enough for each round.

    Where Stripe still shows the authorization, another read at once would change nothing.
    """
    expired = await app.database.read(
        lambda reader: reader.payments_due(JobKind.SYNC_EXPIRED_AUTHORIZATIONS, _BATCH)
    )
    await process_fairly(
        app,
        JobKind.SYNC_EXPIRED_AUTHORIZATIONS,
        expired,
        lambda payment_id: sync_payment(app, payment_id, RECOVERY),
    )
    return 0
