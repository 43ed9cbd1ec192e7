"""SettleClientPayable: the client payable was paid outside of Stripe."""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.app import App
from payment_service.application.idempotency import IdempotentCommand, run_local
from payment_service.application.operations.preempt_repayment import (
    is_preemptible,
    open_repayment,
    preempt,
)
from payment_service.application.operations.start import park_repayment
from payment_service.domain import transitions
from payment_service.domain.errors import Precondition, operation_in_progress, payment_not_found
from payment_service.domain.payment import Payment
from payment_service.domain.plans import RequestedAmount, amount_in
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answer, Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleClientPayable(IdempotentCommand):
    payment_id: str
    #: None means all that is owed.
    part: RequestedAmount | None
    reason: str


async def settle_client_payable(app: App, command: SettleClientPayable) -> bytes:
    """One transaction: nothing is asked of Stripe. Raises :class:`Refusal`."""
    return await run_local(app, command, settle_payable)


def settle_payable(
    tx: Transaction, answers: Answers, policy: Policy, command: SettleClientPayable
) -> Answer:
    """Settles under the payment's lock: a repayment that was resumed before refuses it."""
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    repayment = open_repayment(tx, payment)
    parked = repayment is not None and is_preemptible(repayment)
    asked = amount_in(command.part, payment)
    part = _planned(payment, asked, on_its_way=repayment is not None and not parked)
    preempted = None
    if parked:
        preempted = transitions.repayment_abandoned(payment, "settled outside of Stripe", tx.now)
    payment = preempt(tx, payment, preempted, command.cause)
    settled = transitions.client_payable_settled(payment, part, command.reason, tx.now)
    tx.record(settled, command.cause)
    left = park_repayment(tx, policy, settled.after, command.cause)
    return answers.client_payable_settled(left, part)


def _planned(payment: Payment, part: int | None, *, on_its_way: bool) -> int:
    """Returns the amount that is settled; all of the client payable with None.

    ``on_its_way`` says that a repayment may be paying it just now.
    """
    owed = payment.client_payable
    asked = owed if part is None else part
    if not owed or asked > owed:
        raise Precondition(
            "AMOUNT_TOO_LARGE",
            f"the client is owed {payment.money(owed)}",
            {
                "payment_id": payment.payment_id,
                "requested": asked,
                "available": owed,
                "currency": payment.currency,
            },
        )
    if on_its_way:
        raise operation_in_progress(payment.payment_id, payment.state)
    return asked
