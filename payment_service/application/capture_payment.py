"""CapturePayment: ends the escrow in the expert's favour, whole or by milestones."""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.app import App
from payment_service.application.idempotency import (
    CallResult,
    IdempotentCommand,
    Started,
    run_idempotent,
)
from payment_service.application.operations.preempt_repayment import plan_preemption, preempt
from payment_service.application.operations.start import (
    Origin,
    start_operation,
    with_current_destination,
)
from payment_service.domain import guards, plans, transitions
from payment_service.domain.errors import payment_not_found
from payment_service.domain.experts import ExpertStatus
from payment_service.domain.ledger import CaptureSplit
from payment_service.domain.operation_payloads import CapturePayload, TransferPayload
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.payment import Payment
from payment_service.domain.plans import CapturePlan, RequestedAmount, amount_in
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.preview import Preview, preview_capture, preview_waiting_capture
from payment_service.domain.state_machine import Transition


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePayment(IdempotentCommand):
    payment_id: str
    part: RequestedAmount | None
    final: bool
    notes: str
    #: 0 means any.
    expected_version: int = 0


async def capture_payment(app: App, command: CapturePayment) -> CallResult:
    """Pays the expert out of escrow and keeps the commission.

    A destination charge is captured, and Stripe splits it. A separate charge is first charged onto
    the platform, if it was only authorized; then the expert's amount is transferred.
    """
    return await run_idempotent(app, command, begin_capture)


def begin_capture(
    tx: Transaction, policy: Policy, command: CapturePayment, claim_id: str
) -> Started:
    """Records the first leg, planned under the locks of payment and expert."""
    payment = _lock(tx, command)
    preempted, resting = _resting(tx, payment)
    plan = plan_capture(tx, policy, resting, amount_in(command.part, payment), command.final)
    payment = preempt(tx, payment, preempted, command.cause)
    origin = Origin(reason=command.notes, claim_id=claim_id)
    operation, transition = start_capture(tx, policy, payment, plan, origin, final=command.final)
    tx.record(transition, command.cause)
    return Started(operation, transition.after)


def capture_preview(tx: Transaction, policy: Policy, command: CapturePayment) -> Preview:
    """Returns what the call would do, by the same plan. Raises what it would be refused with.

    If the expert's account cannot be paid as last seen, the capture would wait for it.
    """
    payment = _lock(tx, command)
    _, resting = _resting(tx, payment)
    plan = plan_capture(tx, policy, resting, amount_in(command.part, payment), command.final)
    expert = tx.expert(payment.expert_id)
    assert expert is not None
    if expert.status is not ExpertStatus.READY:
        return preview_waiting_capture(resting, plan, guards.reason_to_wait(resting, expert))
    return preview_capture(resting, plan)


def _lock(tx: Transaction, command: CapturePayment) -> Payment:
    payment = tx.lock_payment(command.payment_id, command.cause.act_for)
    if payment is None:
        raise payment_not_found(command.payment_id)
    guards.check_version(payment, command.expected_version)
    return payment


def _resting(tx: Transaction, payment: Payment) -> tuple[Transition | None, Payment]:
    """Returns what pre-empts a parked repayment, if one is parked, and the payment without it."""
    preempted = plan_preemption(tx, payment, "a capture comes first")
    return preempted, preempted.after if preempted else payment


def plan_capture(
    tx: Transaction, policy: Policy, payment: Payment, part: int | None, final: bool
) -> CapturePlan:
    """Returns the plan, with what the expert owes kept back from the expert's part.

    The expert is locked after the payment and before the plan, so that an exchange of the account
    and another capture's debt offset come before it or after it. While the books catch up with
    Stripe, nothing is kept back: a capture that they do not know yet may have done that.
    """
    found = tx.lock_expert_with_debt(payment.expert_id, payment.currency)
    assert found is not None
    expert, debt = found
    if debt and tx.catches_up():
        debt = 0
    plan = plans.plan_capture(payment, part, final, debt, policy.settlement_currencies)
    guards.check_destination(payment, expert)
    return plan


def start_capture(
    tx: Transaction,
    policy: Policy,
    payment: Payment,
    plan: CapturePlan,
    origin: Origin,
    *,
    final: bool,
) -> tuple[Operation, Transition]:
    """Records the first leg: a transfer of what was charged before, or a capture.

    ``final`` says that the client gets back what is still held after it.
    """
    notes, by_deadline = origin.reason, origin.by_deadline
    share, fee = plan.split, plan.split.commission + plan.split.debt_offset
    kind, minor_units = OperationKind.CAPTURE, plan.charges
    payload: CapturePayload | TransferPayload
    if payment.charged:
        kind, minor_units = OperationKind.TRANSFER, share.amount
        payload = with_current_destination(
            tx, payment, _transfer(payment, share, notes, final=final)
        )
    elif payment.is_separate:
        payload = CapturePayload(
            payment_intent_id=payment.payment_intent_id,
            notes=notes,
            transfer=_transfer(payment, share, notes, final=final),
            transfer_amount=share.amount,
        )
    else:
        payload = CapturePayload(
            payment_intent_id=payment.payment_intent_id,
            notes=notes,
            application_fee=fee if payment.commission > 0 or fee > 0 else None,
            debt_offset=share.debt_offset,
        )
    operation = start_operation(
        tx,
        policy,
        kind=kind,
        purpose=origin.purpose,
        payment_id=payment.payment_id,
        minor_units=minor_units,
        claim_id=origin.claim_id,
        payload=payload,
    )
    transition = transitions.start_capture(
        payment, share, operation.operation_id, notes, tx.now, by_deadline=by_deadline
    )
    return operation, transition


def _transfer(payment: Payment, share: CaptureSplit, notes: str, *, final: bool) -> TransferPayload:
    """What the transfer leg does, now or once the card is charged; its account is set then."""
    return TransferPayload(
        currency=payment.currency,
        charge_id=payment.charge_id,
        commission=share.commission,
        debt_offset=share.debt_offset,
        final=final,
        notes=notes,
    )
