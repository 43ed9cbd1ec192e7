"""Records the end of an operation that did not succeed: refused, released, parked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from payment_service.application.operations.start import park_repayment
from payment_service.domain import guards, plans, transitions
from payment_service.domain.errors import Precondition, Refusal, invalid_field
from payment_service.domain.operations import (
    Operation,
    OperationKind,
    OperationState,
    Park,
    Release,
    Retry,
)
from payment_service.domain.payment import Failure, Payment, State, WaitingFor, WaitingReason
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers, Cause, StoredAnswers
from payment_service.domain.ports.stripe import Refused
from payment_service.domain.processor_errors import failure_of, refused_by_processor, sentence_of
from payment_service.domain.snapshot import Decline
from payment_service.domain.state_machine import Transition
from payment_service.domain.sync.changes import Discrepancy
from payment_service.domain.sync.superseded import (
    debt_if_not_reversed,
    pending_refund_failed,
    remainder_not_returned,
)

#: Stripe's codes if the platform's available balance is too low for a refund or a transfer.
_FUNDS_CODES: Final = frozenset(
    {"balance_insufficient", "insufficient_balance_for_refund", "insufficient_funds"}
)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an operation ends without effect: its transition, the caller's error, Stripe's code."""

    transition: Transition
    refusal: Refusal
    code: str
    #: What the operation keeps for operators; empty means the code.
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """What ending an operation came to: what an operator must know, and the stored answers."""

    discrepancy: Discrepancy | None = None
    answers: StoredAnswers = field(default_factory=dict)
    #: It did not end: it waits until the platform's balance covers it.
    waits_for_funds: bool = False


def waits_for_expert(operation: Operation, refused: Refused) -> bool:
    """Returns whether only the expert's account is at fault: then the capture waits for it."""
    return operation.pays_expert and refused.is_about_destination


def waits_for_funds(operation: Operation, refused: Refused) -> bool:
    """Returns whether only the platform's own balance is at fault: then it is tried again."""
    pays = operation.kind in (OperationKind.REFUND, OperationKind.TRANSFER)
    return pays and not refused.decline_code and refused.code in _FUNDS_CODES


def reject_operation(
    tx: Transaction,
    answers: Answers,
    policy: Policy,
    operation: Operation,
    refused: Refused,
    cause: Cause,
) -> Ended:
    """Records Stripe's final refusal, once reading the payment again has shown no effect."""
    payment = tx.lock_payment(operation.payment_id)
    current = tx.operation(operation.operation_id)
    if payment is None or current is None or not current.is_held_by(operation):
        return Ended()
    if current.is_repayment:
        # The client is owed money whatever Stripe says: only an operator can end this.
        # The next try takes a new key: under this one Stripe would only repeat its refusal.
        tx.postpone_operation(
            current, OperationState.PARKED, refused.last_error, None, next_attempt=True
        )
        tx.record(
            transitions.waiting_changed(
                payment, WaitingFor.OPERATOR, f"refused: {refused.code}", tx.now
            ),
            cause,
        )
        return Ended()
    failure = failure_of(Decline(refused.code or "refused", refused.decline_code), tx.now)
    transition = refused_transition(payment, current, failure)
    refusal = _refusal_as_it_is(transition.after, current)
    # What has been accepted continues to wait; what is new may have become impossible meanwhile.
    may_wait = bool(payment.waits_for_funds or payment.pending_refund or refusal is None)
    if may_wait and waits_for_funds(current, refused):
        after = wait_for_funds(tx, policy, payment, current, refused.code, cause)
        # The caller's answer says what it waits for.
        stored = answer(tx, answers, current.claim_id, after)
        return Ended(None, stored, waits_for_funds=True)
    if waits_for_expert(current, refused):
        # A new key, since this one would repeat the refusal.
        tx.postpone_operation(
            current, OperationState.PARKED, refused.last_error, None, next_attempt=True
        )
        expert = tx.expert(payment.expert_id)
        assert expert is not None
        reason = guards.reason_to_wait(payment, expert)
        why = f"refused: {refused.code}"
        transition = transitions.waiting_changed(payment, WaitingFor.EXPERT, why, tx.now, reason)
        tx.record(transition, cause)
        tx.hasten_account_check(payment.expert_id, policy.waiting_account_seconds)
        # The caller's answer says that the capture is in progress.
        return Ended(None, answer(tx, answers, current.claim_id, transition.after))
    if refusal is None:
        refusal = _refusal_of(tx, payment, refused)
    else:  # Nothing has failed: the payment has changed meanwhile.
        transition = replace(transition, after=replace(transition.after, failure=payment.failure))
    rejection = Rejection(transition, refusal, refused.code, refused.last_error)
    return fail_operation(tx, answers, policy, current, rejection, cause)


def _refusal_as_it_is(resting: Payment, operation: Operation) -> Refusal | None:
    """Returns what our own plan refuses the operation with now, or None if it would allow it."""
    try:
        plans.check_still_possible(resting, operation)
    except Refusal as refusal:
        return refusal if isinstance(refusal, Precondition) else None
    return None


def wait_for_funds(
    tx: Transaction,
    policy: Policy,
    payment: Payment,
    operation: Operation,
    code: str,
    cause: Cause,
) -> Payment:
    """Keeps an operation that the platform's balance does not cover, to be sent again later.

    A new key, since this one would repeat the refusal. A refund is divided now, as one that Stripe
    keeps pending: what is collected from the expert can pay for it.
    """
    tx.postpone_operation(
        operation,
        OperationState.STARTED,
        code,
        policy.funds_check_seconds,
        next_attempt=True,
        restart_tries=True,
    )
    if payment.waits_for_funds:
        return payment
    why = f"refused: {code}"
    if operation.kind is OperationKind.TRANSFER:
        reason = WaitingReason.TRANSFER_PENDING_FUNDS
        transition = transitions.waiting_changed(payment, WaitingFor.PROCESSOR, why, tx.now, reason)
    elif payment.pending_refund:
        reason = WaitingReason.REFUND_PENDING_FUNDS
        transition = transitions.waiting_changed(payment, WaitingFor.PROCESSOR, why, tx.now, reason)
    else:
        split = plans.refund_split_of(payment, operation.minor_units, payment.held)
        transition = transitions.refund_accepted(payment, "", split, why, tx.now)
    tx.record(transition, cause)
    return transition.after


def fail_operation(
    tx: Transaction,
    answers: Answers,
    policy: Policy,
    operation: Operation,
    rejection: Rejection,
    cause: Cause,
) -> Ended:
    """Ends a payment's operation that had no effect: the payment returns to its former state.

    The caller gets the rejection's refusal, unless the essential part of the call was done.
    """
    tx.record(rejection.transition, cause)
    last_error = rejection.last_error or rejection.code
    tx.settle_operation(operation.operation_id, OperationState.REFUSED, last_error)
    after = park_repayment(tx, policy, rejection.transition.after, cause)
    # The expert was paid: a caller who gets an error would pay once more.
    after_capture = operation.returns_remainder
    discrepancy = None
    before = rejection.transition.before
    if before is not None and before.pending_refund:
        # The caller's answer said that the client gets it.
        discrepancy = pending_refund_failed(before, operation, rejection.code)
    elif after_capture and after.held:
        discrepancy = remainder_not_returned(after, operation, rejection.code)
    if discrepancy is not None:
        tx.report(discrepancy)
    if after_capture or operation.kind is OperationKind.REVERSE_TRANSFER:
        # After a refused reversal the client has the refund, and the expert's debt is booked.
        return Ended(discrepancy, answer(tx, answers, operation.claim_id, after))
    return Ended(discrepancy, refuse(tx, answers, operation.claim_id, rejection.refusal))


def release_operation(
    tx: Transaction, policy: Policy, operation: Operation, how: Release, cause: Cause
) -> bool:
    """Releases the lease without a definite outcome; the payment says what it waits for now.

    Returns whether this parks the operation.
    """
    payment = tx.lock_payment(operation.payment_id) if operation.payment_id else None
    current = tx.operation(operation.operation_id)
    if current is None or not current.is_held_by(operation):
        return False
    key = how if isinstance(how, Retry) else Retry(why=how.why, after=0.0)
    limit = policy.tries_before_parking * policy.patience
    if isinstance(how, Retry) and how.counts and operation.tries >= limit:
        how = park(policy, operation, how.why)
    if isinstance(how, Park):
        state, seconds, waiting_for = OperationState.PARKED, None, WaitingFor.OPERATOR
    else:
        state = OperationState.UNKNOWN if how.may_be_sent else OperationState.STARTED
        seconds, waiting_for = how.after, WaitingFor.PROCESSOR
    tx.postpone_operation(
        operation,
        state,
        f"{how.why}: {how.said}" if isinstance(how, Park) and how.said else how.why,
        seconds,
        next_attempt=key.new_key,
        # A new key is not spent; without one the mark stays as it is.
        key_spent=True if key.spent_key else False if key.new_key else None,
        unsure_seconds=how.may_arrive_for if isinstance(how, Park) else None,
        restart_tries=key.answered,
    )
    if payment is not None and payment.waiting_for is not waiting_for:
        tx.record(transitions.waiting_changed(payment, waiting_for, how.why, tx.now), cause)
    return isinstance(how, Park)


def park(policy: Policy, operation: Operation, why: str, said: str = "") -> Park:
    """Returns how an operation is parked. ``said`` is what Stripe said, for operators.

    At the first try only a definite answer parks it, and nothing was sent before.
    """
    return Park(why, policy.arrival_seconds if operation.tries else None, said)


def refused_transition(payment: Payment, operation: Operation, failure: Failure) -> Transition:
    """Returns the payment's way back to its former state; after a reversal, to a debt."""
    match operation.kind:
        case OperationKind.CREATE_INTENT:
            return transitions.creation_refused(payment, failure)
        case OperationKind.CAPTURE | OperationKind.TRANSFER:
            return transitions.capture_refused(payment, failure)
        case OperationKind.PROMOTE:
            return transitions.promotion_refused(payment, failure)
        case OperationKind.CANCEL:
            return transitions.cancel_refused(payment, failure)
        case OperationKind.REFUND:
            return transitions.refund_refused(payment, failure)
        case OperationKind.REVERSE_TRANSFER:
            return transitions.expert_debt_recorded(
                payment, debt_if_not_reversed(operation), failure.code, failure.time
            )
        case OperationKind.CREATE_ACCOUNT | OperationKind.COLLECT_DEBT:
            raise AssertionError("an expert's operation is no payment's")
        case OperationKind.SUBMIT_EVIDENCE | OperationKind.ACCEPT_DISPUTE:
            raise AssertionError("answers to disputes are refused by reject_answer")


def _refusal_of(tx: Transaction, payment: Payment, refused: Refused) -> Refusal:
    """Returns Stripe's final refusal in the caller's terms."""
    facts = {"payment_id": payment.payment_id, "stripe_code": refused.code}
    if refused.code in ("amount_too_small", "amount_too_large"):
        return invalid_field("amount.minor_units", f"is refused by Stripe: {refused.code}")
    if refused.is_about_destination:
        # The expert was synced after the refusal.
        expert = tx.expert(payment.expert_id)
        assert expert is not None
        return Precondition(
            "EXPERT_NOT_READY",
            "Stripe says that the expert's account cannot receive transfers",
            {**facts, "expert_id": payment.expert_id, "status": expert.status.value},
        )
    if refused.code == "charge_disputed":
        word = "refunded" if payment.state is State.REFUNDING else "captured"
        return guards.payment_disputed(payment, word, stripe_code=refused.code)
    if refused.decline_code or refused.code == "card_declined":
        failure = failure_of(Decline(refused.code, refused.decline_code), payment.update_time)
        return Precondition(
            "CARD_DECLINED",
            sentence_of(failure.code, failure.decline_code),
            {**facts, "decline_code": failure.decline_code},
        )
    return refused_by_processor(refused.code, refused.request_id, payment_id=payment.payment_id)


def answer(tx: Transaction, answers: Answers, claim_id: str, payment: Payment) -> StoredAnswers:
    """Stores the response of a call that succeeded; nothing if nobody waits for it."""
    if not claim_id:
        return {}
    response = answers.response(tx.claim_rpc(claim_id), payment)
    return {claim_id: tx.settle_claim(claim_id, response)}


def refuse(tx: Transaction, answers: Answers, claim_id: str, refusal: Refusal) -> StoredAnswers:
    """Stores the error of a call that was refused; nothing if nobody waits for it."""
    if not claim_id:
        return {}
    return {claim_id: tx.settle_claim(claim_id, answers.refusal(refusal))}
