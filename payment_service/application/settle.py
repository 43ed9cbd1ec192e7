"""Where what Stripe shows, or its refusal, is written down: one place for RPCs, webhooks and sweep.

Every function named ``…_phase`` is one transaction. The payment is locked first, then its
operation, then its claim or its expert; always in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from payment_service.application.out_of_band import name_what_moved
from payment_service.application.settle_disputes import (
    follow_disputes_phase,
    save_disputes_phase,
)
from payment_service.domain import escrow, plans
from payment_service.domain.errors import Precondition, Refusal, invalid_field
from payment_service.domain.escrow import Failure, Payment, State, Transition, WaitingFor
from payment_service.domain.follow import (
    failure_of,
    follow,
    refused_by_processor,
    repayment,
    sentence_of,
)
from payment_service.domain.followed import Discrepancy
from payment_service.domain.give_way import owed_after, rest_not_returned
from payment_service.domain.observation import Decline, Observation
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.ports import Answers, Cause, Policy, Refused, Transaction


@dataclass(frozen=True, slots=True)
class Applied:
    """What writing down an observation came to."""

    #: The payment had changed since it was observed: observe again.
    stale: bool = False
    changed: bool = False
    #: Stripe does not show every balance transaction yet: observe again later.
    deferred: bool = False
    #: Among them one that ends the open operation.
    operation_deferred: bool = False
    #: Why the open operation must not be sent, if it must not.
    stands_back: str = ""
    payment: Payment | None = None
    #: The operation that these transitions brought forth, leased to us.
    next_operation: Operation | None = None
    #: An operation that was parked for an operator by this.
    parked: Operation | None = None
    discrepancies: tuple[Discrepancy, ...] = ()
    #: On its way to the caller; never stored, never logged.
    client_secret: str = field(default="", repr=False)


def apply_observation_phase(
    tx: Transaction,
    answers: Answers,
    policy: Policy,
    payment_id: str,
    seen: Observation,
    version: int,
    cause: Cause,
) -> Applied:
    """Follow what Stripe showed of a payment when it had ``version``."""
    payment = tx.lock_payment(payment_id)
    if payment is None:
        return Applied()
    if payment.version != version:
        return Applied(stale=True, payment=payment)
    operation = tx.operation(payment.operation_id) if payment.operation_id else None
    known = tx.known_movements(payment_id)
    followed = follow(
        payment,
        seen,
        operation=operation,
        known=known,
        by_hand=tuple(tx.made_by_hand_since(operation).values()) if operation else (),
        next_operation_id=tx.new_id("op"),
        holding=timedelta(seconds=policy.holding_limit),
        now=tx.now,
    )
    disputes = follow_disputes_phase(tx, policy, followed, seen, operation, known)
    for transition in followed.transitions:
        tx.record(transition, cause)
    for movement in followed.movements:
        tx.add_movement(payment_id, movement)
    save_disputes_phase(tx, answers, disputes, followed, seen)
    for discrepancy in followed.discrepancies:
        tx.report(discrepancy)
    if operation is not None and followed.settled:
        refused = followed.refusal is not None
        state = OperationState.REFUSED if refused else OperationState.SUCCEEDED
        tx.settle_operation(operation.operation_id, state)
    parked = name_what_moved(tx, payment, followed, operation)
    next_operation: Operation | None = None
    if followed.next_operation is not None:
        coming = followed.next_operation
        goes_on = operation is not None and not coming.unasked
        next_operation = leased_operation(
            tx,
            policy,
            kind=coming.kind,
            payment_id=payment_id,
            minor_units=coming.minor_units,
            params=(
                to_present_account(tx, followed.payment, coming.params)
                if coming.kind is OperationKind.TRANSFER
                else coming.params
            ),
            # The caller is answered when the second leg is settled, not before.
            claim_id=operation.claim_id if operation is not None and goes_on else "",
            operation_id=next(
                transition.after.operation_id
                for transition in reversed(followed.transitions)
                if transition.after.operation_id
            ),
            parked=bool(coming.parked),
            last_error=coming.parked,
        )
        if next_operation.claim_id:
            tx.bind_claim(next_operation.claim_id, payment_id, next_operation.operation_id)
    payment = park_repayment(tx, policy, followed.payment, cause)
    # What a lost dispute takes back is another matter: it answers nobody.
    ends = next_operation is None or not next_operation.claim_id
    if ends and operation is not None and followed.settled and operation.claim_id:
        if followed.refusal is not None:
            tx.settle_claim(operation.claim_id, answers.refusal(followed.refusal))
        else:
            _answer(tx, answers, operation.claim_id, payment)
    if next_operation is not None and next_operation.state is OperationState.PARKED:
        parked, next_operation = next_operation, None
    return Applied(
        changed=bool(followed.transitions),
        deferred=followed.deferred,
        operation_deferred=followed.operation_deferred,
        stands_back=followed.stands_back,
        payment=payment,
        next_operation=next_operation,
        parked=parked,
        discrepancies=tuple(followed.discrepancies),
    )


def park_repayment(tx: Transaction, policy: Policy, payment: Payment, cause: Cause) -> Payment:
    """If the client is owed after a bounced refund, and nothing is under way: park what repays it.

    Called by every transaction that may have ended an operation or booked a bounce, so that nothing
    owed is ever without an operation. The payment as it then stands.
    """
    due = repayment(payment, tx.new_id("op"), tx.now)
    if due is None:
        return payment
    transition, coming = due
    leased_operation(
        tx,
        policy,
        kind=coming.kind,
        payment_id=payment.payment_id,
        minor_units=coming.minor_units,
        params=coming.params,
        operation_id=transition.after.operation_id,
        parked=True,
    )
    tx.record(transition, cause)
    return transition.after


def to_present_account(
    tx: Transaction, payment: Payment, params: Mapping[str, object]
) -> dict[str, object]:
    """What a transfer asks for, to the account that the expert has now."""
    expert = tx.expert(payment.expert_id)
    account_id = expert.account.stripe_account_id if expert else payment.destination_account_id
    return {**params, "destination_account_id": account_id}


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


def refuse_phase(
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
    if current.params.get("owed"):
        # The client is owed money whatever Stripe says: only an operator can end this.
        # The next try takes a new key: under this one Stripe would only repeat its no.
        tx.postpone_operation(current, OperationState.PARKED, refused.code, None, next_attempt=True)
        tx.record(
            escrow.waiting(payment, WaitingFor.OPERATOR, f"refused: {refused.code}", tx.now), cause
        )
        return None
    if waits_for_expert(current, refused):
        # The caller is told that it is on its way; a new key, since this one would repeat the no.
        tx.postpone_operation(current, OperationState.PARKED, refused.code, None, next_attempt=True)
        expert = tx.expert(payment.expert_id)
        assert expert is not None
        reason = plans.reason_to_wait(payment, expert)
        why = f"refused: {refused.code}"
        transition = escrow.waiting(payment, WaitingFor.EXPERT, why, tx.now, reason)
        tx.record(transition, cause)
        if current.claim_id:
            _answer(tx, answers, current.claim_id, transition.after)
        return None
    failure = failure_of(Decline(refused.code or "refused", refused.decline_code), tx.now)
    transition = refused_transition(payment, current, failure)
    refusal = _refusal_of(payment, refused)
    return end_in_vain(tx, answers, policy, current, transition, refusal, refused.code, cause)


def end_in_vain(
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
    after_capture = bool(operation.params.get("after_capture"))
    told = None
    if after_capture and after.held:
        told = rest_not_returned(after, operation, code)
        tx.report(told)
    if not operation.claim_id:
        return told
    if after_capture or operation.kind is OperationKind.REVERSE_TRANSFER:
        # And of a refund the client has the money; what the expert owes is on the books.
        _answer(tx, answers, operation.claim_id, after)
    else:
        tx.settle_claim(operation.claim_id, answers.refusal(refusal))
    return told


def unsettled_phase(
    tx: Transaction,
    policy: Policy,
    operation: Operation,
    state: OperationState,
    why: str,
    seconds: float | None,
    cause: Cause,
    *,
    next_attempt: bool = False,
    params: Mapping[str, object] | None = None,
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
        params=params,
        # At the first try only a definite answer parks it, and nothing was sent before.
        unsure_seconds=unsure_seconds if parked and operation.tries else None,
    )
    waiting_for = WaitingFor.OPERATOR if parked else WaitingFor.PROCESSOR
    if payment is not None and payment.waiting_for is not waiting_for:
        tx.record(escrow.waiting(payment, waiting_for, why, tx.now), cause)
    return parked


def leased_operation(
    tx: Transaction,
    policy: Policy,
    *,
    kind: OperationKind,
    payment_id: str = "",
    expert_id: str = "",
    dispute_id: str = "",
    minor_units: int = 0,
    params: Mapping[str, object],
    claim_id: str = "",
    operation_id: str = "",
    parked: bool = False,
    last_error: str = "",
) -> Operation:
    """Record an operation and take its lease, so that it can be carried out right after."""
    operation = Operation(
        operation_id=operation_id or tx.new_id("op"),
        kind=kind,
        payment_id=payment_id,
        expert_id=expert_id,
        dispute_id=dispute_id,
        params=params,
        minor_units=minor_units,
        claim_id=claim_id,
        state=OperationState.PARKED if parked else OperationState.STARTED,
        last_error=last_error,
        create_time=tx.now,
        attempt_time=tx.now,
        lease_until=None if parked else tx.now + timedelta(seconds=policy.lease),
        lease_token=tx.new_id("lease"),
        next_try_time=None if parked else tx.now + timedelta(seconds=policy.lease),
        held_since=None if parked else tx.clock,
    )
    tx.add_operation(operation)
    return operation


def refused_transition(payment: Payment, operation: Operation, failure: Failure) -> Transition:
    """Back to where the payment stood before it was asked for; of a reversal, to a debt."""
    match operation.kind:
        case OperationKind.CREATE_INTENT:
            return escrow.creation_refused(payment, failure)
        case OperationKind.CAPTURE | OperationKind.TRANSFER:
            return escrow.capture_refused(payment, failure)
        case OperationKind.PROMOTE:
            return escrow.promotion_refused(payment, failure)
        case OperationKind.CANCEL:
            return escrow.cancel_refused(payment, failure)
        case OperationKind.REFUND:
            return escrow.refund_refused(payment, failure)
        case OperationKind.REVERSE_TRANSFER:
            return escrow.expert_owes(payment, owed_after(operation), failure.code, failure.time)
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
        return plans.payment_disputed(payment, word, stripe_code=refused.code)
    if refused.decline_code or refused.code == "card_declined":
        failure = failure_of(Decline(refused.code, refused.decline_code), payment.update_time)
        return Precondition(
            "CARD_DECLINED",
            sentence_of(failure.code, failure.decline_code),
            {**facts, "decline_code": failure.decline_code},
        )
    return refused_by_processor(refused.code, refused.request_id, payment_id=payment.payment_id)


def _answer(tx: Transaction, answers: Answers, claim_id: str, payment: Payment) -> None:
    tx.settle_claim(claim_id, answers.response(tx.claim_rpc(claim_id), payment))
