"""What a call would do, decided before anything is written: the guards, and the exact legs.

A plan is made under the payment's lock and then recorded; with ``validate_only`` the same plan is
shown and thrown away. What a guard refuses raises a :class:`Refusal` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from payment_service.domain import money
from payment_service.domain.errors import Precondition, invalid_field
from payment_service.domain.guards import (
    check_capture_freeze,
    check_refund_freeze,
    check_requested_amount,
    refuse_unless,
)
from payment_service.domain.ledger import CaptureSplit, RefundSplit
from payment_service.domain.payment import Payment, State


@dataclass(frozen=True, slots=True)
class RequestedAmount:
    """An amount that a caller asks for; an empty currency means the payment's own."""

    minor_units: int
    currency: str = ""


def amount_in(part: RequestedAmount | None, payment: Payment) -> int | None:
    """Returns the amount in minor units of the payment's currency; None if none is asked for."""
    if part is None:
        return None
    if part.currency and part.currency.upper() != payment.currency:
        raise invalid_field(
            "amount.currency_code", f"must be {payment.currency}, the payment's own, or empty"
        )
    return part.minor_units


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """What CapturePayment does: at most three legs, in this order."""

    share: CaptureSplit
    #: What the card is charged by it, of a hold that was only authorized; 0 if it was before.
    charges: int
    #: Released to the client by that, never charged.
    released: int
    #: Given back to the client out of escrow afterwards.
    refunded_from_escrow: int


@dataclass(frozen=True, slots=True)
class RefundPlan:
    """What RefundPayment does: ``cancels`` if the card was never charged, else by ``split``."""

    cancels: bool
    minor_units: int
    split: RefundSplit


@dataclass(frozen=True, slots=True)
class ReversibleTransfer:
    """What can still be taken back of one transfer, in the payment's currency."""

    transfer_id: str
    minor_units: int


_REFUNDABLE: Final = (State.PENDING, State.FAILED, State.IN_ESCROW, State.CAPTURED)


def plan_capture(payment: Payment, part: int | None, final: bool, debt: int = 0) -> CapturePlan:
    """How a capture of ``part`` of what is held goes; of all of it with None.

    ``debt`` is what the expert owes in the payment's currency and no other capture keeps back yet.
    """
    refuse_unless(payment, State.IN_ESCROW)
    check_capture_freeze(payment)
    held = payment.held
    if part is not None:
        check_requested_amount(payment, part, held)
    taken = held if part is None else part
    if taken < held and not final and not payment.is_separate:
        raise Precondition(
            "WOULD_RELEASE_REMAINDER",
            "a card hold is captured once and Stripe releases the rest to the client; "
            "say so with final=true, or capture the whole",
            {"payment_id": payment.payment_id, "held": held, "requested": taken},
        )
    commission = money.split_capture(
        payment.net, taken, payment.commission_basis_points, payment.currency
    ).commission
    if commission >= taken:
        raise Precondition(
            "COMMISSION_TOO_LARGE",
            "the commission would be the whole part; the expert must be left something",
            {"amount": taken, "commission": commission},
        )
    # Something must be left to be paid out, or there would be nothing to show for it at Stripe.
    most = taken - commission - money.step(payment.currency)
    netted = max(min(debt, most), 0)
    # A conversion can leave a debt that is no whole step; Stripe would refuse such a fee for ever.
    share = CaptureSplit(taken, commission, netted - netted % money.step(payment.currency))
    if payment.charged:
        return CapturePlan(share, 0, 0, held - taken if final else 0)
    # Parts of a SEPARATE hold stay in escrow: all of it is charged, unless this is to be the last.
    charges = held if payment.is_separate and not final else taken
    return CapturePlan(share, charges, held - charges, 0)


def plan_refund(payment: Payment, part: int | None) -> RefundPlan:
    """How ``part`` goes back to the client; with None all that is held, or else all that was paid.

    Money in escrow goes first; what was paid out goes back only where it is asked for by amount,
    or where nothing is held.
    """
    refuse_unless(payment, *_REFUNDABLE)
    check_refund_freeze(payment)
    if payment.charged:
        available = payment.held + payment.net
        asked = (payment.held or payment.net) if part is None else part
        check_requested_amount(payment, asked, available)
        return RefundPlan(False, asked, split_refund(payment, asked, payment.held))
    # Before the client confirms nothing is held, yet the whole payment can be given up.
    whole = payment.held or payment.amount
    if part is not None:
        check_requested_amount(payment, part, whole)
        if part < whole:
            raise Precondition(
                "PARTIAL_REFUND_NEEDS_CAPTURE",
                "an uncaptured payment is given back whole: leave the amount out, or capture first",
                {"payment_id": payment.payment_id, "held": payment.held, "requested": part},
            )
    return RefundPlan(True, whole, RefundSplit())


def split_refund(payment: Payment, part: int, from_escrow: int) -> RefundSplit:
    """Who gives back what: at most ``from_escrow`` out of escrow; never more commission than kept.

    The rest must not be more than ``payment.net``.
    """
    held = min(part, from_escrow)
    rest = part - held
    if not rest:
        return RefundSplit(held)
    split = money.split_refund(payment.net, rest, payment.commission_basis_points, payment.currency)
    commission = payment.net_commission if rest == payment.net else split.commission
    commission = max(min(commission, payment.net_commission, rest), rest - payment.net_expert)
    return RefundSplit(held, commission, rest - commission)


@dataclass(frozen=True, slots=True)
class LossPlan:
    """Who bears what the client's bank keeps."""

    split: RefundSplit
    #: The client had been given this back before: it is the platform's loss.
    beyond: int


def plan_loss(payment: Payment, part: int) -> LossPlan:
    """Divide ``part`` among them.

    The order: what is owed to the client, who has it now; what is held; what was captured; and the
    rest is beyond that.
    """
    owed = min(part, payment.client_payable)
    rest = min(part - owed, payment.held + payment.net)
    split = replace(split_refund(payment, rest, payment.held), from_owed=owed)
    return LossPlan(split, part - split.whole)


def plan_reversals(part: int, transfers: Sequence[ReversibleTransfer]) -> list[ReversibleTransfer]:
    """Which transfers the expert's ``part`` is taken back from: the newest first.

    ``transfers`` are given oldest first. What they do not cover stays the expert's debt.
    """
    legs = []
    for transfer in reversed(transfers):
        leg = min(part, transfer.minor_units)
        if leg > 0:
            legs.append(ReversibleTransfer(transfer.transfer_id, leg))
            part -= leg
    return legs
