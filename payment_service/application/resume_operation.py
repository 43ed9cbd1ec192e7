"""ResumeOperation: an operator puts a parked operation back to work."""

from __future__ import annotations

from payment_service.application.app import App
from payment_service.application.execution.executor import sync_and_execute
from payment_service.application.operations.start import with_current_destination
from payment_service.domain import guards, transitions
from payment_service.domain.errors import Busy, Precondition, Refusal, operation_not_found
from payment_service.domain.operation_payloads import TransferPayload
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.payment import Payment, WaitingFor
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause
from payment_service.domain.sync.superseded import check_covered


async def resume_operation(app: App, operation_id: str, cause: Cause) -> Operation:
    """Resumes a parked operation. Recovery reads Stripe before it sends anything."""
    payment_id, known = await app.database.transact(booked_by_now, operation_id)
    operation = await sync_and_unpark(app, operation_id, payment_id, cause, known)
    app.wake.set()
    return operation


def booked_by_now(tx: Transaction, operation_id: str) -> tuple[str, frozenset[str]]:
    """Returns its payment, and the out-of-band movements that the operator could see."""
    operation = require_parked(operation_id, tx.operation(operation_id))
    if not operation.payment_id:
        return "", frozenset()
    return operation.payment_id, frozenset(tx.out_of_band_since(operation))


async def sync_and_unpark(
    app: App,
    operation_id: str,
    payment_id: str,
    cause: Cause,
    known: frozenset[str] = frozenset(),
) -> Operation:
    """Syncs the payment, which may end the operation, and then resumes it.

    ``known`` are the out-of-band movements that the operator saw before. Any other one refuses the
    call. The service itself never resumes an operation after an out-of-band movement.
    """
    if payment_id:
        await sync_and_execute(app, payment_id, cause)
    return await app.database.transact(unpark, operation_id, payment_id, cause, known)


def unpark(
    tx: Transaction,
    operation_id: str,
    payment_id: str,
    cause: Cause,
    known: frozenset[str] = frozenset(),
) -> Operation:
    """Makes the operation due. The payment is locked first, as everywhere."""
    payment = tx.lock_payment(payment_id) if payment_id else None
    operation = require_parked(operation_id, tx.operation(operation_id))
    if payment is not None:
        made = tx.out_of_band_since(operation)
        news = [described for name, described in made.items() if name not in known]
        if news:
            raise _moved_meanwhile(payment, news)
        check_covered(payment, operation)
    # A key that Stripe may have forgotten is not used again: if a sync shows no effect, the request
    # is sent under a new one.
    new_key = not operation.may_resend(tx.now)
    payload = operation.payload
    verify_only = payment is not None and must_only_verify(payment, operation)
    if payment is not None and operation.pays_expert and operation.unsure_until is None:
        # No request of it can take effect any more, so it may pay the account of now instead of
        # the one of then: under a new key, because Stripe ties a key to its request.
        expert = tx.lock_expert(payment.expert_id)
        assert expert is not None
        guards.check_destination(payment, expert)
        if isinstance(payload, TransferPayload):
            current = with_current_destination(tx, payment, payload)
            new_key = new_key or current != payload
            payload = current
    tx.unpark_operation(operation_id, payload, next_attempt=new_key, verify_only=verify_only)
    if payment is not None and payment.waiting_for is not WaitingFor.PROCESSOR:
        tx.record(
            transitions.waiting_changed(
                payment, WaitingFor.PROCESSOR, f"resumed by {cause.caller}", tx.now
            ),
            cause,
        )
    resumed = tx.operation(operation_id)
    assert resumed is not None
    return resumed


def require_parked(
    operation_id: str, operation: Operation | None, done_to_it: str = "resumed"
) -> Operation:
    """Returns the operation. Raises unless it exists and is parked."""
    if operation is None:
        raise operation_not_found(operation_id)
    if operation.state is not OperationState.PARKED:
        raise Precondition(
            "WRONG_STATE",
            f"the operation is {operation.state}; only a parked one is {done_to_it}",
            {
                "operation_id": operation_id,
                "state": operation.state.value,
                "allowed_states": "PARKED",
            },
        )
    return operation


def _moved_meanwhile(payment: Payment, news: list[str]) -> Refusal:
    return Busy(
        "CONCURRENT_CHANGE",
        f"Stripe shows what was moved out of band meanwhile ({', '.join(news)}): "
        "read the payment and decide again",
        {"payment_id": payment.payment_id},
    )


def must_only_verify(payment: Payment, operation: Operation) -> bool:
    """Returns whether a freeze forbids to send it. It is searched for at Stripe all the same.

    Raises where there is nothing to find, because Stripe has refused it for good or was never
    asked: a capture that waits for its expert, and a repayment.
    """
    owed = operation.is_repayment
    try:
        if operation.waits_for_freeze:
            guards.check_capture_freeze(payment)
        elif owed:
            # If the bank decides for the client, that pays the client: nothing is sent before.
            guards.check_refund_freeze(payment)
    except Precondition:
        if operation.unsure_until is None and (owed or guards.waits_for_expert(payment)):
            raise
        return True
    return False
