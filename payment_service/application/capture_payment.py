"""CapturePayment: end the escrow in the expert's favour, whole or in parts."""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.core import Begun, Core, Keyed, refuse_for_good, resume
from payment_service.application.keyed import Told, run_keyed
from payment_service.application.make_way import make_way, repayment_making_way
from payment_service.application.settle import leased_operation, to_present_account
from payment_service.domain import escrow, plans
from payment_service.domain.errors import Precondition, invalid_field, payment_not_found
from payment_service.domain.escrow import Payment, Transition
from payment_service.domain.ledger import Share
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.plans import CapturePlan
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
    #: 0 means any.
    expected_version: int = 0


async def capture_payment(core: Core, command: CapturePayment) -> Told:
    """Pay the expert out of escrow and keep the commission.

    A destination charge is captured, and Stripe splits it. Of a separate one the card is charged
    onto the platform (if it was only authorized), then the expert's part is transferred.
    """
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
    plans.check_version(payment, command.expected_version)
    given_up = repayment_making_way(tx, payment, "a capture comes first")
    resting = given_up.after if given_up else payment
    try:
        plan = plan_capture(tx, resting, minor_units_of(command.part, payment), command.final)
    except Precondition as refusal:
        return refuse_for_good(tx, answers, claim, refusal)
    payment = make_way(tx, payment, given_up, command.cause)
    operation, transition = start_capture(
        tx, policy, payment, plan, command.notes, claim_id=claim.claim_id, final=command.final
    )
    tx.record(transition, command.cause)
    tx.bind_claim(claim.claim_id, payment.payment_id, operation.operation_id)
    return Begun(claim, operation, transition.after.version)


def plan_capture(tx: Transaction, payment: Payment, part: int | None, final: bool) -> CapturePlan:
    """The plan, with what the expert owes kept back out of the expert's part."""
    plans.plan_capture(payment, part, final)  # Whatever is refused is refused before locking more.
    expert = tx.expert(payment.expert_id)
    assert expert is not None
    plans.check_destination(payment, expert)
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
    share, fee = plan.share, plan.share.commission + plan.share.netted
    kind, minor_units = OperationKind.CAPTURE, plan.charges
    params: dict[str, object] = {"payment_intent_id": payment.payment_intent_id, "notes": notes}
    if payment.charged:
        kind, minor_units = OperationKind.TRANSFER, share.part
        params = to_present_account(tx, payment, _transfer(payment, share, notes, final=final))
    elif payment.is_separate:
        transfer = _transfer(payment, share, notes, final=final)
        params |= {"part": share.part, "transfer": transfer}
    else:
        has_fee = payment.commission > 0 or fee > 0
        params |= {"application_fee": fee, "has_fee": has_fee, "netted": share.netted}
    operation = leased_operation(
        tx,
        policy,
        kind=kind,
        payment_id=payment.payment_id,
        minor_units=minor_units,
        claim_id=claim_id,
        params=params,
    )
    transition = escrow.start_capture(
        payment, share, operation.operation_id, notes, tx.now, by_deadline=by_deadline
    )
    return operation, transition


def _transfer(payment: Payment, share: Share, notes: str, *, final: bool) -> dict[str, object]:
    """What the transfer leg is to do, now or once the card is charged; to whom is said then."""
    return {
        "currency": payment.currency,
        "charge_id": payment.charge_id,
        "commission": share.commission,
        "netted": share.netted,
        "final": final,
        "notes": notes,
    }


def minor_units_of(part: Part | None, payment: Payment) -> int | None:
    """The amount asked for, if any, in the payment's own currency."""
    if part is None:
        return None
    if part.currency and part.currency.upper() != payment.currency:
        raise invalid_field(
            "amount.currency_code", f"must be {payment.currency}, the payment's own, or empty"
        )
    return part.minor_units
