"""Records the end of an operation that did not succeed: refused, rescheduled, parked."""

from __future__ import annotations

from typing import Final

from payment_service.application.operations.start import park_repayment
from payment_service.domain import guards, transitions
from payment_service.domain.errors import Precondition, Refusal, invalid_field
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.payment import Failure, Payment, State, WaitingFor
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers, Cause
from payment_service.domain.ports.stripe import Refused
from payment_service.domain.processor_errors import failure_of, refused_by_processor, sentence_of
from payment_service.domain.snapshot import Decline
from payment_service.domain.state_machine import Transition
from payment_service.domain.sync.changes import Discrepancy
from payment_service.domain.sync.superseded import debt_if_not_reversed, remainder_not_returned

#: What Stripe says when the expert's account is at fault, and may be well again later.
_EXPERT_CODES: Final = frozenset(
    {
        "insufficient_capabilities_for_transfer",
        "account_invalid",
        "transfers_not_allowed",
        "account_closed",
    }
)


def waits_for_expert(operation: Operation, refused: Refused) -> bool:
    """A refusal that only concerns the expert's account: the capture waits until that is well."""
    pays = operation.kind in (OperationKind.CAPTURE, OperationKind.TRANSFER)
    return pays and refused.code in _EXPERT_CODES


def reject_operation(
    tx: Transaction,
    answers: Answers,
    policy: Policy,
    operation: Operation,
    refused: Refused,
    cause: Cause,
) -> Discrepancy | None:
    """Stripe's final no, and reading it again showed no effect: all is as it was before.

    What an operator must be told of, if anything.
    """
    payment = tx.lock_payment(operation.payment_id)
    current = tx.operation(operation.operation_id)
    if payment is None or current is None or not current.is_held_by(operation):
        return None
    if current.is_repayment:
        # The client is owed money whatever Stripe says: only an operator can end this.
        # The next try takes a new key: under this one Stripe would only repeat its no.
        tx.postpone_operation(current, OperationState.PARKED, refused.code, None, next_attempt=True)
        tx.record(
            transitions.waiting_changed(
                payment, WaitingFor.OPERATOR, f"refused: {refused.code}", tx.now
            ),
            cause,
        )
        return None
    if waits_for_expert(current, refused):
        # The caller is told that it is on its way; a new key, since this one would repeat the no.
        tx.postpone_operation(current, OperationState.PARKED, refused.code, None, next_attempt=True)
        expert = tx.expert(payment.expert_id)
        assert expert is not None
        reason = guards.reason_to_wait(payment, expert)
        why = f"refused: {refused.code}"
        transition = transitions.waiting_changed(payment, WaitingFor.EXPERT, why, tx.now, reason)
        tx.record(transition, cause)
        if current.claim_id:
            answer(tx, answers, current.claim_id, transition.after)
        return None
    failure = failure_of(Decline(refused.code or "refused", refused.decline_code), tx.now)
    transition = refused_transition(payment, current, failure)
    refusal = _refusal_of(payment, refused)
    return fail_operation(tx, answers, policy, current, transition, refusal, refused.code, cause)


def fail_operation(
    tx: Transaction,
    answers: Answers,
    policy: Policy,
    operation: Operation,
    transition: Transition,
    refusal: Refusal,
    code: str,
    cause: Cause,
) -> Discrepancy | None:
    """End a payment's operation that nothing came of: all is as it was before, by ``transition``.

    Its caller is told ``refusal``, but where the essential was done. What an operator must be told
    of, if anything.
    """
    tx.record(transition, cause)
    tx.settle_operation(operation.operation_id, OperationState.REFUSED, code)
    after = park_repayment(tx, policy, transition.after, cause)
    # The expert was paid: a caller who is told "refused" would pay once more.
    after_capture = operation.returns_remainder
    told = None
    if after_capture and after.held:
        told = remainder_not_returned(after, operation, code)
        tx.report(told)
    if not operation.claim_id:
        return told
    if after_capture or operation.kind is OperationKind.REVERSE_TRANSFER:
        # And of a refund the client has the money; what the expert owes is on the books.
        answer(tx, answers, operation.claim_id, after)
    else:
        tx.settle_claim(operation.claim_id, answers.refusal(refusal))
    return told


def reschedule_operation(
    tx: Transaction,
    policy: Policy,
    operation: Operation,
    state: OperationState,
    why: str,
    seconds: float | None,
    cause: Cause,
    *,
    next_attempt: bool = False,
    key_spent: bool | None = None,
    may_park: bool = True,
    unsure_seconds: float = 0.0,
) -> bool:
    """Nothing definite yet: give the lease back, and let the payment say what it waits for.

    ``unsure_seconds`` is for how long what was sent may still take effect unseen.
    True if the operation is parked by this.
    """
    payment = tx.lock_payment(operation.payment_id) if operation.payment_id else None
    current = tx.operation(operation.operation_id)
    if current is None or not current.is_held_by(operation):
        return False
    if may_park and operation.tries >= policy.tries_before_parking * policy.patience:
        seconds = None
    parked = seconds is None
    tx.postpone_operation(
        operation,
        OperationState.PARKED if parked else state,
        why,
        seconds,
        next_attempt=next_attempt,
        key_spent=key_spent,
        # At the first try only a definite answer parks it, and nothing was sent before.
        unsure_seconds=unsure_seconds if parked and operation.tries else None,
    )
    waiting_for = WaitingFor.OPERATOR if parked else WaitingFor.PROCESSOR
    if payment is not None and payment.waiting_for is not waiting_for:
        tx.record(transitions.waiting_changed(payment, waiting_for, why, tx.now), cause)
    return parked


def refused_transition(payment: Payment, operation: Operation, failure: Failure) -> Transition:
    """Back to where the payment stood before it was asked for; of a reversal, to a debt."""
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
        case OperationKind.CREATE_ACCOUNT:
            raise AssertionError("an account is no payment")
        case OperationKind.SUBMIT_EVIDENCE | OperationKind.ACCEPT_DISPUTE:
            raise AssertionError("answers to disputes are refused by settle_disputes")


def _refusal_of(payment: Payment, refused: Refused) -> Refusal:
    """Stripe's final no in the caller's terms."""
    facts = {"payment_id": payment.payment_id, "stripe_code": refused.code}
    if refused.code in ("amount_too_small", "amount_too_large"):
        return invalid_field("amount.minor_units", f"is refused by Stripe: {refused.code}")
    if refused.code in _EXPERT_CODES:
        return Precondition(
            "EXPERT_NOT_READY",
            "Stripe says that the expert's account cannot receive transfers",
            {**facts, "expert_id": payment.expert_id, "status": "unknown"},
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


def answer(tx: Transaction, answers: Answers, claim_id: str, payment: Payment) -> None:
    tx.settle_claim(claim_id, answers.response(tx.claim_rpc(claim_id), payment))
