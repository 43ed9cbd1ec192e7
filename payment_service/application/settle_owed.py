"""SettleOwed: what a client is owed after a bounced refund is settled outside of Stripe."""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.capture_payment import Part, minor_units_of
from payment_service.application.core import Core, Keyed
from payment_service.application.keyed import run_at_once
from payment_service.application.make_way import make_way, may_be_given_up, open_repayment
from payment_service.application.settle import park_repayment
from payment_service.domain import escrow
from payment_service.domain.errors import Precondition, operation_in_progress, payment_not_found
from payment_service.domain.escrow import Payment
from payment_service.domain.ports import Answer, Answers, Policy, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleOwed(Keyed):
    payment_id: str
    #: None means all that is owed.
    part: Part | None
    note: str


async def settle_owed(core: Core, command: SettleOwed) -> bytes:
    """One transaction: nothing is asked of Stripe. Raises :class:`Refusal`."""
    return await run_at_once(core, settle, command)


def settle(tx: Transaction, answers: Answers, policy: Policy, command: SettleOwed) -> Answer:
    """Under the payment's lock: a repayment is resumed before it, and then refuses it, or after."""
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    repayment = open_repayment(tx, payment)
    parked = repayment is not None and may_be_given_up(repayment)
    asked = minor_units_of(command.part, payment)
    part = _planned(payment, asked, on_its_way=repayment is not None and not parked)
    given_up = None
    if parked:
        given_up = escrow.repayment_given_up(payment, "settled outside of Stripe", tx.now)
    payment = make_way(tx, payment, given_up, command.cause)
    settled = escrow.owed_settled(payment, part, command.note, tx.now)
    tx.record(settled, command.cause)
    left = park_repayment(tx, policy, settled.after, command.cause)
    return answers.owed_settled(left, part)


def _planned(payment: Payment, part: int | None, *, on_its_way: bool) -> int:
    """What of the client's claim is settled outside of Stripe; all of it with None.

    ``on_its_way`` says that a repayment may be paying it just now.
    """
    owed = payment.client_owed
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
