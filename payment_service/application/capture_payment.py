"""CapturePayment: end the escrow in the expert's favour, whole or in parts."""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.app import App
from payment_service.application.idempotency import (
    CallResult,
    IdempotentCommand,
    Started,
    replay_or_take_over,
    run_idempotent,
    store_refusal,
)
from payment_service.application.operations.preempt_repayment import plan_preemption, preempt
from payment_service.application.operations.start import start_operation, with_current_destination
from payment_service.domain import guards, plans, transitions
from payment_service.domain.errors import Precondition, invalid_field, payment_not_found
from payment_service.domain.guards import check_version
from payment_service.domain.ledger import CaptureSplit
from payment_service.domain.operation_payloads import CapturePayload, TransferPayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import Payment
from payment_service.domain.plans import CapturePlan
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers
from payment_service.domain.preview import Preview, preview_capture
from payment_service.domain.state_machine import Transition


@dataclass(frozen=True, slots=True)
class RequestedAmount:
    """An amount as asked for; an empty currency means the payment's own."""

    minor_units: int
    currency: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePayment(IdempotentCommand):
    payment_id: str
    part: RequestedAmount | None
    final: bool
    notes: str
    #: 0 means any.
    expected_version: int = 0


async def capture_payment(app: App, command: CapturePayment) -> CallResult:
    """Pay the expert out of escrow and keep the commission.

    A destination charge is captured, and Stripe splits it. Of a separate one the card is charged
    onto the platform (if it was only authorized), then the expert's part is transferred.
    """
    return await run_idempotent(app, begin_capture, command)


def begin_capture(
    tx: Transaction, answers: Answers, policy: Policy, command: CapturePayment
) -> Started:
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return replay_or_take_over(tx, policy, claim)
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    guards.check_version(payment, command.expected_version)
    given_up = plan_preemption(tx, payment, "a capture comes first")
    resting = given_up.after if given_up else payment
    try:
        plan = plan_capture(tx, resting, amount_in(command.part, payment), command.final)
    except Precondition as refusal:
        return store_refusal(tx, answers, claim, refusal)
    payment = preempt(tx, payment, given_up, command.cause)
    operation, transition = start_capture(
        tx, policy, payment, plan, command.notes, claim_id=claim.claim_id, final=command.final
    )
    tx.record(transition, command.cause)
    tx.bind_claim(claim.claim_id, payment.payment_id, operation.operation_id)
    return Started(claim, operation, transition.after.version)


def plan_capture(tx: Transaction, payment: Payment, part: int | None, final: bool) -> CapturePlan:
    """The plan, with what the expert owes kept back out of the expert's part."""
    plans.plan_capture(payment, part, final)  # Whatever is refused is refused before locking more.
    # Locked after the payment, as everywhere: an exchange of the account comes before or after.
    expert = tx.lock_expert(payment.expert_id)
    assert expert is not None
    guards.check_destination(payment, expert)
    debt = tx.expert_debt(payment.expert_id, payment.currency)
    return plans.plan_capture(payment, part, final, debt)


def start_capture(
    tx: Transaction,
    policy: Policy,
    payment: Payment,
    plan: CapturePlan,
    notes: str,
    *,
    claim_id: str = "",
    final: bool = False,
    by_deadline: bool = False,
) -> tuple[Operation, Transition]:
    """Record the first leg. What was charged before is transferred, everything else captured."""
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
        purpose=OperationPurpose.DEADLINE if by_deadline else OperationPurpose.REQUESTED,
        payment_id=payment.payment_id,
        minor_units=minor_units,
        claim_id=claim_id,
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


def amount_in(part: RequestedAmount | None, payment: Payment) -> int | None:
    """The amount asked for, if any, in the payment's own currency."""
    if part is None:
        return None
    if part.currency and part.currency.upper() != payment.currency:
        raise invalid_field(
            "amount.currency_code", f"must be {payment.currency}, the payment's own, or empty"
        )
    return part.minor_units


def capture_preview(tx: Transaction, command: CapturePayment) -> Preview:
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    check_version(payment, command.expected_version)
    given_up = plan_preemption(tx, payment, "a capture comes first")
    payment = given_up.after if given_up else payment
    plan = plan_capture(tx, payment, amount_in(command.part, payment), command.final)
    return preview_capture(payment, plan)
