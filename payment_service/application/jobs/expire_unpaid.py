"""Cancels payments that nobody confirmed within the payment window."""

from __future__ import annotations

from typing import Final

from payment_service.application.app import App
from payment_service.application.execution.executor import execute, execute_followups
from payment_service.application.fair_queue import process_fairly
from payment_service.application.jobs.recover_operations import RECOVERY
from payment_service.application.operations.start import start_operation
from payment_service.application.sync.payment import sync_payment
from payment_service.domain import transitions
from payment_service.domain.operation_payloads import CancelPayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import JobKind
from payment_service.domain.schedule import is_due, schedule_of

_BATCH: Final = 32


async def expire_unpaid(app: App) -> int:
    """Cancels payments whose window has ended. Returns how many succeeded.

    An unpaid intent never expires at Stripe, so the window is ours. Stripe is synced first, because
    the client may have paid without a webhook. If the client pays between the sync and the
    cancellation, an authorization is released and the payment ends EXPIRED. If the card was charged
    at once, Stripe refuses to cancel, and the money is in escrow.
    """
    if app.stripe.is_unavailable:
        return 0

    async def expire(payment_id: str) -> None:
        synced = await sync_payment(app, payment_id, RECOVERY)
        await execute_followups(app, synced, RECOVERY)
        # It is paid, but its balance transactions are not visible yet; or an operator must explain
        # what Stripe shows.
        if synced.deferred or synced.discrepancies:
            return
        begun = await app.database.transact(begin_expiry, app.policy, payment_id)
        if begun is not None:
            await execute(app, begun[0], begun[1], RECOVERY)

    unpaid = await app.database.read(
        lambda reader: reader.payments_due(JobKind.EXPIRE_UNPAID, _BATCH)
    )
    return await process_fairly(app, JobKind.EXPIRE_UNPAID, unpaid, expire)


def begin_expiry(tx: Transaction, policy: Policy, payment_id: str) -> tuple[Operation, int] | None:
    """Records the cancellation, if the payment still waits only for its client."""
    payment = tx.lock_payment(payment_id)
    if payment is None or not is_due(schedule_of(payment, policy).expire_due_time, tx.now):
        return None
    operation = start_operation(
        tx,
        policy,
        kind=OperationKind.CANCEL,
        payment_id=payment_id,
        minor_units=payment.amount,
        purpose=OperationPurpose.DEADLINE,
        payload=CancelPayload(payment_intent_id=payment.payment_intent_id),
    )
    transition = transitions.start_cancel(
        payment, operation.operation_id, "the payment window closed", tx.now
    )
    tx.record(transition, RECOVERY)
    return operation, transition.after.version
