"""What an operator can send on, parked operations and parked webhook events, or call decided."""

from __future__ import annotations

from payment_service.application.carry_out import look_and_go_on
from payment_service.application.core import Core
from payment_service.application.settle import to_present_account
from payment_service.domain import escrow, plans
from payment_service.domain.errors import Busy, NotFound, Precondition, Refusal
from payment_service.domain.escrow import Payment, WaitingFor
from payment_service.domain.give_way import check_covered
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.ports import Cause, InboxEvent, StoredDiscrepancy, Transaction


async def resume_operation(core: Core, operation_id: str, cause: Cause) -> Operation:
    """Put a parked operation back to work. The sweep looks at Stripe before it sends anything."""
    payment_id, known = await core.database.transact(booked_by_now, operation_id)
    operation = await unpark_after_a_look(core, operation_id, payment_id, cause, known)
    core.wake.set()
    return operation


def booked_by_now(tx: Transaction, operation_id: str) -> tuple[str, frozenset[str]]:
    """Returns its payment, and the movements made out of band since that the operator can know."""
    operation = parked(operation_id, tx.operation(operation_id))
    if not operation.payment_id:
        return "", frozenset()
    return operation.payment_id, frozenset(tx.made_by_hand_since(operation))


async def unpark_after_a_look(
    core: Core,
    operation_id: str,
    payment_id: str,
    cause: Cause,
    known: frozenset[str] = frozenset(),
) -> Operation:
    """Resumes it, once Stripe has been read: that may end it, or show what nobody knew of.

    ``known`` are the movements made out of band in spite of which it is resumed. The service itself
    resumes nothing in spite of any.
    """
    if payment_id:
        await look_and_go_on(core, payment_id, cause)
    return await core.database.transact(unpark, operation_id, payment_id, cause, known)


def unpark(
    tx: Transaction,
    operation_id: str,
    payment_id: str,
    cause: Cause,
    known: frozenset[str] = frozenset(),
) -> Operation:
    """The payment is locked before its operation, as everywhere."""
    payment = tx.lock_payment(payment_id) if payment_id else None
    operation = parked(operation_id, tx.operation(operation_id))
    if payment is not None:
        made = tx.made_by_hand_since(operation)
        news = [described for name, described in made.items() if name not in known]
        if news:
            raise _moved_meanwhile(payment, news)
        check_covered(payment, operation)
    # A key that Stripe may have forgotten is not used again: if looking shows no effect, the
    # request goes out under a new one.
    new_key = not operation.may_resend(tx.now)
    params = {name: value for name, value in operation.params.items() if name != "look_only"}
    if payment is not None and _only_looks(payment, operation):
        params["look_only"] = True
    if payment is not None and payment.waiting_for is WaitingFor.EXPERT:
        expert = tx.lock_expert(payment.expert_id)
        assert expert is not None
        plans.check_destination(payment, expert)
    # Only under a key that Stripe has never seen may it go to another account than before: what
    # waits for the expert was given one when Stripe refused it.
    unseen_key = new_key or (payment is not None and payment.waiting_for is WaitingFor.EXPERT)
    if payment is not None and operation.kind is OperationKind.TRANSFER and unseen_key:
        params = to_present_account(tx, payment, params)
    tx.unpark_operation(operation_id, params, next_attempt=new_key)
    if payment is not None and payment.waiting_for is not WaitingFor.PROCESSOR:
        tx.record(
            escrow.waiting(payment, WaitingFor.PROCESSOR, f"resumed by {cause.caller}", tx.now),
            cause,
        )
    resumed = tx.operation(operation_id)
    assert resumed is not None
    return resumed


def parked(
    operation_id: str, operation: Operation | None, done_to_it: str = "resumed"
) -> Operation:
    """Raises, unless it is there and parked."""
    if operation is None:
        raise _no_such_item(operation_id)
    if operation.state is not OperationState.PARKED:
        raise Precondition(
            "WRONG_STATE",
            f"the operation is {operation.state}; only a parked one is {done_to_it}",
            {"id": operation_id, "state": operation.state.value, "allowed_states": "PARKED"},
        )
    return operation


def _moved_meanwhile(payment: Payment, news: list[str]) -> Refusal:
    return Busy(
        "CONCURRENT_CHANGE",
        f"Stripe shows what was moved out of band meanwhile ({', '.join(news)}): "
        "look at the payment and decide anew",
        {"payment_id": payment.payment_id},
    )


def _only_looks(payment: Payment, operation: Operation) -> bool:
    """Whether a freeze forbids sending it. What may be at Stripe is looked for all the same.

    Raises where there is nothing to look for, because Stripe has refused it for good or was never
    asked: a capture that waits for its expert, and what is to pay the client again.
    """
    owed = operation.params.get("owed")
    try:
        if operation.kind in (OperationKind.CAPTURE, OperationKind.TRANSFER):
            plans.check_capture_freeze(payment)
        elif owed:
            # If the bank decides for the client, that pays what is owed: nothing is sent before.
            plans.check_refund_freeze(payment)
    except Precondition:
        if operation.unsure_until is None and (owed or plans.waits_for_expert(payment)):
            raise
        return True
    return False


async def retry_inbox_event(core: Core, event_id: str) -> InboxEvent:
    """Put a parked webhook event back to work."""
    event = await core.database.transact(unpark_event, event_id)
    core.wake.set()
    if event is not None:
        return event
    known = await core.database.read(lambda reader: reader.inbox_event(event_id))
    if known is None:
        raise _no_such_item(event_id)
    raise Precondition(
        "WRONG_STATE",
        f"the event is {known.state}; only a parked one is retried",
        {"id": event_id, "state": known.state, "allowed_states": "PARKED"},
    )


def unpark_event(tx: Transaction, event_id: str) -> InboxEvent | None:
    return tx.retry_event(event_id)


async def resolve_discrepancy(
    core: Core, discrepancy_id: int, note: str, cause: Cause
) -> StoredDiscrepancy:
    """Somebody has looked into it and decided; who and what stays with it."""
    return await core.database.transact(decide, discrepancy_id, note, cause)


def decide(tx: Transaction, discrepancy_id: int, note: str, cause: Cause) -> StoredDiscrepancy:
    """One that is decided already, with the same note, is answered as it is."""
    stored = tx.lock_discrepancy(discrepancy_id)
    if stored is None:
        raise _no_such_item(str(discrepancy_id))
    if stored.resolve_time is None:
        tx.decide_discrepancy(discrepancy_id, cause.caller, note)
        stored = tx.lock_discrepancy(discrepancy_id)
        assert stored is not None
    elif stored.note != note:
        raise Precondition(
            "WRONG_STATE",
            "the discrepancy is not open any more",
            {"id": discrepancy_id, "state": "RESOLVED", "allowed_states": "OPEN"},
        )
    return stored


def _no_such_item(item: str) -> Refusal:
    return NotFound("ITEM_NOT_FOUND", "there is no such item", {"id": item})
