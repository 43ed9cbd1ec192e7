"""Closes what ran out: unpaid payments and authorizations that must have expired."""

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
from payment_service.domain.payment import State
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import JobKind

_BATCH: Final = 32


async def expire_unpaid(app: App) -> int:
    """Cancel payments that nobody confirmed within the payment window; how many went well.

    An unpaid intent never expires at Stripe, so the window is ours. Stripe is asked first: the
    client may have paid, and nobody told us yet. Who pays between that look and the cancellation
    has the hold released, and the payment ends EXPIRED; or, if the card was charged at once, Stripe
    refuses to cancel, and the money is in escrow.
    """
    if app.stripe.is_unavailable:
        return 0

    async def expire(payment_id: str) -> None:
        looked = await sync_payment(app, payment_id, RECOVERY)
        await execute_followups(app, looked, RECOVERY)
        # Paid, but without its lines yet; or what Stripe shows is for an operator to explain.
        if looked.deferred or looked.discrepancies:
            return
        begun = await app.database.transact(begin_expiry, app.policy, payment_id)
        if begun is not None:
            await execute(app, begun[0], begun[1], RECOVERY)

    unpaid = await app.database.read(lambda reader: reader.payments_past_window(_BATCH))
    return await process_fairly(app, JobKind.PAYMENT_WINDOW, unpaid, expire)


def begin_expiry(tx: Transaction, policy: Policy, payment_id: str) -> tuple[Operation, int] | None:
    """Record the cancellation, if the payment still waits for its client and for nothing else."""
    payment = tx.lock_payment(payment_id)
    if payment is None or payment.state not in (State.PENDING, State.FAILED):
        return None
    if payment.operation_id:
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


async def sync_expired_authorizations(app: App) -> int:
    """Ask Stripe about authorizations that must have lapsed although no webhook said so."""
    lapsed = await app.database.read(lambda reader: reader.holds_past_expiry(_BATCH))
    await process_fairly(
        app,
        JobKind.LAPSED_HOLDS,
        lapsed,
        lambda payment_id: sync_payment(app, payment_id, RECOVERY),
    )
    return 0  # Asked once a round: where Stripe still shows the hold, asking again changes nothing.
