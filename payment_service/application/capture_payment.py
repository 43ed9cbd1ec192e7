"""CapturePayment: end the escrow in the expert's favour."""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.core import Begun, Core, Keyed, refuse_for_good, resume
from payment_service.application.keyed import Told, run_keyed
from payment_service.application.settle import leased_operation
from payment_service.domain import escrow, money
from payment_service.domain.errors import Precondition, invalid_field, payment_not_found
from payment_service.domain.escrow import Payment
from payment_service.domain.operations import OperationKind
from payment_service.domain.ports import Answers, Policy, Transaction


@dataclass(frozen=True, slots=True)
class Part:
    """An amount as asked for; an empty currency means the payment's own."""

    minor_units: int
    currency: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturePayment(Keyed):
    payment_id: str
    part: Part | None
    final: bool
    notes: str


async def capture_payment(core: Core, command: CapturePayment) -> Told:
    """Capture the card's authorization; Stripe pays the expert and keeps the commission for us."""
    return await run_keyed(core, begin_capture, command)


def begin_capture(
    tx: Transaction, answers: Answers, policy: Policy, command: CapturePayment
) -> Begun:
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return resume(tx, policy, claim)
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    asked = minor_units_of(command.part, payment)
    try:
        part = escrow.check_capture(payment, asked, command.final)
    except Precondition as refusal:
        return refuse_for_good(tx, answers, claim, refusal)
    split = money.split_capture(
        payment.net, part, payment.commission_basis_points, payment.currency
    )
    operation = leased_operation(
        tx,
        policy,
        kind=OperationKind.CAPTURE,
        payment_id=payment.payment_id,
        minor_units=part,
        claim_id=claim.claim_id,
        params={
            "payment_intent_id": payment.payment_intent_id,
            "application_fee": split.commission,
            "has_fee": payment.commission > 0,
            "notes": command.notes,
        },
    )
    transition = escrow.start_capture(payment, part, operation.operation_id, command.notes, tx.now)
    tx.record(transition, command.cause)
    tx.bind_claim(claim.claim_id, payment.payment_id, operation.operation_id)
    return Begun(claim, operation, transition.after.version)


def minor_units_of(part: Part | None, payment: Payment) -> int | None:
    """The amount asked for, if any, in the payment's own currency."""
    if part is None:
        return None
    if part.currency and part.currency.upper() != payment.currency:
        raise invalid_field(
            "amount.currency_code", f"must be {payment.currency}, the payment's own, or empty"
        )
    return part.minor_units
