"""RefundPayment: returns the money to the client, by cancelling or by exact legs."""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.app import App
from payment_service.application.execution.funds import available_in
from payment_service.application.idempotency import (
    CallResult,
    IdempotentCommand,
    Started,
    run_idempotent,
)
from payment_service.application.operations.preempt_repayment import plan_preemption, preempt
from payment_service.application.operations.start import Origin, start_operation
from payment_service.domain import guards, plans, transitions
from payment_service.domain.errors import payment_not_found
from payment_service.domain.operation_payloads import CancelPayload, RefundPayload
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.payment import Payment
from payment_service.domain.plans import RefundPlan, RequestedAmount, amount_in
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.preview import Preview, preview_refund, refund_that_waits
from payment_service.domain.state_machine import Transition


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundPayment(IdempotentCommand):
    payment_id: str
    part: RequestedAmount | None
    reason: str
    #: 0 means any.
    expected_version: int = 0


async def refund_payment(app: App, command: RefundPayment) -> CallResult:
    """Cancels the intent before the card is charged, and refunds out of escrow first after it.

    What was paid out comes from the platform, and then from the expert by transfer reversals.
    """
    return await run_idempotent(app, command, begin_refund)


def begin_refund(tx: Transaction, policy: Policy, command: RefundPayment, claim_id: str) -> Started:
    """Records the first leg, planned under the payment's lock."""
    payment = _lock(tx, command)
    plan, preempted = plan_refund(tx, payment, command)
    payment = preempt(tx, payment, preempted, command.cause)
    origin = Origin(reason=command.reason, claim_id=claim_id)
    operation, transition = start_refund(tx, policy, payment, plan, origin)
    tx.record(transition, command.cause)
    return Started(operation, transition.after)


async def preview_refund_payment(app: App, command: RefundPayment) -> Preview:
    """Returns what the call would do, and whether it would wait for the platform's balance.

    That is known only for a currency in which Stripe settles; another one is converted.
    """
    preview = await app.database.transact(refund_preview, command)
    currency = preview.before.currency
    if not preview.refund or currency not in app.policy.settlement_currencies:
        return preview
    available = available_in(await app.stripe.account_balance("") or (), currency)
    return preview if available >= preview.refund else refund_that_waits(preview)


def refund_preview(tx: Transaction, command: RefundPayment) -> Preview:
    """Returns what the call would do, by the same plan. Raises what it would be refused with."""
    payment = _lock(tx, command)
    plan, preempted = plan_refund(tx, payment, command)
    transfers = tx.reversible_transfers(payment.payment_id)
    return preview_refund(preempted.after if preempted else payment, plan, transfers)


def _lock(tx: Transaction, command: RefundPayment) -> Payment:
    payment = tx.lock_payment(command.payment_id, command.cause.act_for)
    if payment is None:
        raise payment_not_found(command.payment_id)
    guards.check_version(payment, command.expected_version)
    return payment


def plan_refund(
    tx: Transaction, payment: Payment, command: RefundPayment
) -> tuple[RefundPlan, Transition | None]:
    """Returns the plan, and what ends the parked operation that the refund pre-empts, if any.

    That is a repayment, or a capture that waits for the expert's account. Stripe refused that
    capture for good, and it is sent again only after it was resumed under the payment's lock, which
    is held here: so nothing can come of it.
    """
    preempted = plan_preemption(tx, payment, "another refund comes first")
    if guards.waits_for_expert(payment):
        preempted = transitions.capture_abandoned(payment, command.reason, tx.now)
    resting = preempted.after if preempted else payment
    return plans.plan_refund(resting, amount_in(command.part, payment)), preempted


def start_refund(
    tx: Transaction,
    policy: Policy,
    payment: Payment,
    plan: RefundPlan,
    origin: Origin,
) -> tuple[Operation, Transition]:
    """Records the first leg: the cancellation, or the client's refund."""
    reason, by_deadline = origin.reason, origin.by_deadline
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
        purpose=origin.purpose,
        payment_id=payment.payment_id,
        minor_units=plan.minor_units,
        claim_id=origin.claim_id,
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
