"""Writes off lost disputes that had to wait for another operation on the payment."""

from __future__ import annotations

from typing import Final

from payment_service.application.app import App
from payment_service.application.execution.executor import sync_and_execute
from payment_service.application.fair_queue import process_fairly
from payment_service.application.jobs.recover_operations import RECOVERY
from payment_service.domain.ports.records import JobKind

_BATCH: Final = 32


async def write_off_lost_disputes(app: App) -> int:
    """Write off what was lost while something else was under way on the payment."""
    if app.stripe.is_unavailable:
        return 0

    lost = await app.database.read(lambda reader: reader.payments_with_unsettled_losses(_BATCH))
    await process_fairly(
        app,
        JobKind.LOST_DISPUTES,
        lost,
        lambda payment_id: sync_and_execute(app, payment_id, RECOVERY),
    )
    return 0  # Asked once a round: where it has to wait, asking again changes nothing.
