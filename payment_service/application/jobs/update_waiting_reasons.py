"""Keeps the reason current for which a capture waits for its expert."""

from __future__ import annotations

from typing import Final

from payment_service.application.app import App
from payment_service.application.fair_queue import process_fairly
from payment_service.application.jobs.recover_operations import RECOVERY
from payment_service.domain import guards, transitions
from payment_service.domain.payment import WaitingFor, WaitingReason
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import JobKind

_BATCH: Final = 32


async def update_waiting_reasons(app: App) -> int:
    """Records the present reason of each capture whose stored reason is out of date."""
    stale = await app.database.read(
        lambda reader: reader.payments_with_stale_waiting_reason(_BATCH)
    )
    await process_fairly(
        app,
        JobKind.UPDATE_WAITING_REASONS,
        stale,
        lambda payment_id: app.database.transact(update_waiting_reason, payment_id),
    )
    return 0


def update_waiting_reason(tx: Transaction, payment_id: str) -> None:
    """Records why the capture waits now, if the reason has changed."""
    payment = tx.lock_payment(payment_id)
    if payment is None or not guards.waits_for_expert(payment):
        return
    expert = tx.expert(payment.expert_id)
    assert expert is not None
    reason = guards.reason_to_wait(payment, expert)
    # If the account can be paid now, there is no new reason: the capture is retried.
    if reason not in (payment.waiting_reason, WaitingReason.EXPERT_REFUSED):
        why = "the expert's account has changed"
        tx.record(
            transitions.waiting_changed(payment, WaitingFor.EXPERT, why, tx.now, reason), RECOVERY
        )
