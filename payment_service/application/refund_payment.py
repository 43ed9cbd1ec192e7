"""RefundPayment: give the money back to the client, by cancelling or by exact legs."""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.app import App
from payment_service.application.capture_payment import RequestedAmount, amount_in
from payment_service.application.idempotency import (
    CallResult,
    IdempotentCommand,
    Started,
    replay_or_take_over,
    run_idempotent,
    store_refusal,
)
from payment_service.application.operations.preempt_repayment import plan_preemption, preempt
from payment_service.application.operations.start import start_operation
from payment_service.domain import guards, plans, transitions
from payment_service.domain.errors import Precondition, payment_not_found
from payment_service.domain.guards import check_version
from payment_service.domain.operation_payloads import CancelPayload, RefundPayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import Payment
from payment_service.domain.plans import RefundPlan
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers
from payment_service.domain.preview import Preview, preview_refund
from payment_service.domain.state_machine import Transition


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundPayment(IdempotentCommand):
    payment_id: str
    part: RequestedAmount | None
    reason: str
    #: 0 means any.
    expected_version: int = 0


async def refund_payment(app: App, command: RefundPayment) -> CallResult:
    """Before the card is charged, cancel the intent. After it, refund out of escrow first.

    What was paid out already comes back from the platform, and then from the expert by the
    reversal of transfers.
    """
    return await run_idempotent(app, begin_refund, command)


def begin_refund(
    tx: Transaction, answers: Answers, policy: Policy, command: RefundPayment
) -> Started:
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return replay_or_take_over(tx, policy, claim)
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    guards.check_version(payment, command.expected_version)
    try:
        plan, given_up = plan_refund(tx, payment, command)
    except Precondition as refusal:
        return store_refusal(tx, answers, claim, refusal)
    payment = preempt(tx, payment, given_up, command.cause)
    operation, transition = start_refund(
        tx, policy, payment, plan, command.reason, claim_id=claim.claim_id
    )
    tx.record(transition, command.cause)
    tx.bind_claim(claim.claim_id, payment.payment_id, operation.operation_id)
    return Started(claim, operation, transition.after.version)


def plan_refund(
    tx: Transaction, payment: Payment, command: RefundPayment
) -> tuple[RefundPlan, Transition | None]:
    """The plan; and the giving up of what is parked: a capture that waits for the expert's account,
    or what is to pay the client again after a bounce.

    Stripe refused that capture for good, and it is sent again only after it was resumed under the
    payment's lock, which we hold: so it can be given up.
    """
    given_up = plan_preemption(tx, payment, "another refund comes first")
    if guards.waits_for_expert(payment):
        given_up = transitions.capture_abandoned(payment, command.reason, tx.now)
    payment = given_up.after if given_up else payment
    return plans.plan_refund(payment, amount_in(command.part, payment)), given_up


def start_refund(
    tx: Transaction,
    policy: Policy,
    payment: Payment,
    plan: RefundPlan,
    reason: str,
    *,
    claim_id: str = "",
    by_deadline: bool = False,
) -> tuple[Operation, Transition]:
    """Record the first leg: the cancellation, or the client's refund."""
    payload: CancelPayload | RefundPayload
    if plan.cancels:
        kind = OperationKind.CANCEL
        payload = CancelPayload(payment_intent_id=payment.payment_intent_id, reason=reason)
    else:
        kind = OperationKind.REFUND
        payload = RefundPayload(
            payment_intent_id=payment.payment_intent_id,
            destination_account_id=payment.destination_account_id,
            reason=reason,
        )
    operation = start_operation(
        tx,
        policy,
        kind=kind,
        purpose=OperationPurpose.DEADLINE if by_deadline else OperationPurpose.REQUESTED,
        payment_id=payment.payment_id,
        minor_units=plan.minor_units,
        claim_id=claim_id,
        payload=payload,
    )
    operation_id, now = operation.operation_id, tx.now
    if plan.cancels:
        transition = transitions.start_cancel(
            payment, operation_id, reason, now, by_deadline=by_deadline
        )
    else:
        transition = transitions.start_refund(
            payment, plan.split, operation_id, reason, now, by_deadline=by_deadline
        )
    return operation, transition


def refund_preview(tx: Transaction, command: RefundPayment) -> Preview:
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    check_version(payment, command.expected_version)
    plan, given_up = plan_refund(tx, payment, command)
    transfers = tx.reversible_transfers(payment.payment_id)
    return preview_refund(given_up.after if given_up else payment, plan, transfers)
