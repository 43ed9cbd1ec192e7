"""Retries captures that wait for the expert's account, and keeps their reason current."""

from __future__ import annotations

from typing import Final

from payment_service.application.app import App
from payment_service.application.fair_queue import process_fairly
from payment_service.application.jobs.recover_operations import RECOVERY
from payment_service.application.resume_operation import sync_and_unpark
from payment_service.domain import guards, transitions
from payment_service.domain.payment import WaitingFor, WaitingReason
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import JobKind

_BATCH: Final = 32


async def retry_waiting_captures(app: App) -> int:
    """Send captures on whose expert can be paid again; the others say why they cannot yet."""
    otherwise = await app.database.read(
        lambda reader: reader.payments_with_stale_waiting_reason(_BATCH)
    )
    await process_fairly(
        app,
        JobKind.WAITING_REASONS,
        otherwise,
        lambda payment_id: app.database.transact(update_waiting_reason, payment_id),
    )
    waiting = dict(
        await app.database.read(lambda reader: reader.payments_waiting_for_experts(_BATCH))
    )

    # Refused where it was given up, or resumed by another replica.
    await process_fairly(
        app,
        JobKind.WAITING_CAPTURES,
        list(waiting),
        lambda payment_id: sync_and_unpark(app, waiting[payment_id], payment_id, RECOVERY),
    )
    return 0


def update_waiting_reason(tx: Transaction, payment_id: str) -> None:
    """Write down why a capture waits for its expert by now."""
    payment = tx.lock_payment(payment_id)
    if payment is None or not guards.waits_for_expert(payment):
        return
    expert = tx.expert(payment.expert_id)
    assert expert is not None
    reason = guards.reason_to_wait(payment, expert)
    # Of an account that is well by now there is nothing to tell: the capture goes on.
    if reason not in (payment.waiting_reason, WaitingReason.EXPERT_REFUSED):
        why = "the expert's account has changed"
        tx.record(
            transitions.waiting_changed(payment, WaitingFor.EXPERT, why, tx.now, reason), RECOVERY
        )
