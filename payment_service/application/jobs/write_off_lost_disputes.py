"""Writes off lost disputes that had to wait for another operation on the payment."""

from __future__ import annotations

from typing import Final

from payment_service.application.app import App
from payment_service.application.execution.executor import sync_and_execute
from payment_service.application.fair_queue import process_fairly
from payment_service.application.jobs.recover_operations import RECOVERY
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import JobKind
from payment_service.domain.schedule import may_book_loss

_BATCH: Final = 32


async def write_off_lost_disputes(app: App) -> int:
    """Writes off losses, and returns 0: one batch is enough for each round.

    A loss that has to wait is not booked by another try at once.
    """
    if app.stripe.is_unavailable:
        return 0

    async def write_off(payment_id: str) -> None:
        if await app.database.transact(can_book_loss, payment_id):
            await sync_and_execute(app, payment_id, RECOVERY)

    lost = await app.database.read(lambda reader: reader.payments_with_unsettled_losses(_BATCH))
    await process_fairly(app, JobKind.WRITE_OFF_LOST_DISPUTES, lost, write_off)
    return 0


def can_book_loss(tx: Transaction, payment_id: str) -> bool:
    """Returns whether the payment's open operation allows that a loss is booked now."""
    payment = tx.lock_payment(payment_id)
    if payment is None:
        return False
    operation = tx.operation(payment.operation_id) if payment.operation_id else None
    return may_book_loss(operation, tx.now)
