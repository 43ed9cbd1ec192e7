"""RefundPayment: give the money back to the client, by cancelling or by exact legs."""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.capture_payment import Part, minor_units_of
from payment_service.application.core import Begun, Core, Keyed, refuse_for_good, resume
from payment_service.application.keyed import Told, run_keyed
from payment_service.application.settle import leased_operation
from payment_service.domain import escrow
from payment_service.domain.errors import Precondition, payment_not_found
from payment_service.domain.operations import OperationKind
from payment_service.domain.ports import Answers, Policy, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundPayment(Keyed):
    payment_id: str
    part: Part | None
    reason: str


async def refund_payment(core: Core, command: RefundPayment) -> Told:
    """Before capture, cancel the intent. After it, refund the client, then reverse the transfer."""
    return await run_keyed(core, begin_refund, command)


def begin_refund(
    tx: Transaction, answers: Answers, policy: Policy, command: RefundPayment
) -> Begun:
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return resume(tx, policy, claim)
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    asked = minor_units_of(command.part, payment)
    try:
        plan = escrow.check_refund(payment, asked)
    except Precondition as refusal:
        return refuse_for_good(tx, answers, claim, refusal)
    operation = leased_operation(
        tx,
        policy,
        kind=OperationKind.CANCEL if plan.cancels else OperationKind.REFUND,
        payment_id=payment.payment_id,
        minor_units=plan.minor_units,
        claim_id=claim.claim_id,
        params={
            "payment_intent_id": payment.payment_intent_id,
            "destination_account_id": payment.destination_account_id,
            "reason": command.reason,
        },
    )
    operation_id, now = operation.operation_id, tx.now
    if plan.cancels:
        transition = escrow.start_cancel(payment, operation_id, command.reason, now)
    else:
        transition = escrow.start_refund(payment, plan, operation_id, command.reason, now)
    tx.record(transition, command.cause)
    tx.bind_claim(claim.claim_id, payment.payment_id, operation.operation_id)
    return Begun(claim, operation, transition.after.version)
