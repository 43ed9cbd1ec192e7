"""Plans: the exact steps of a call, decided under the payment's lock before anything is written.

With ``validate_only`` the caller gets a preview of the same plan, and nothing is recorded. A plan
that is not allowed raises a :class:`Refusal` and changes nothing. Amounts are minor units of the
payment's currency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from payment_service.domain import money
from payment_service.domain.errors import Precondition, invalid_field
from payment_service.domain.guards import (
    check_capture_freeze,
    check_promotion,
    check_refund_freeze,
    check_requested_amount,
    refuse_unless,
)
from payment_service.domain.ledger import CaptureSplit, RefundSplit
from payment_service.domain.operations import Operation, OperationKind
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
    """What CapturePayment does: at most three steps, in this order."""

    split: CaptureSplit
    #: What the card is charged now; 0 if it was charged before.
    charges: int
    #: What that charge releases of the authorization; the client never pays it.
    released: int
    #: What is refunded to the client out of escrow afterwards.
    refunded_from_escrow: int


@dataclass(frozen=True, slots=True)
class RefundPlan:
    """What RefundPayment does: it cancels if the card was never charged, else ``split`` pays."""

    cancels: bool
    minor_units: int
    split: RefundSplit


@dataclass(frozen=True, slots=True)
class ReversibleTransfer:
    """What can still be reversed of one transfer, in the payment's currency."""

    transfer_id: str
    minor_units: int


_REFUNDABLE: Final = (State.PENDING, State.FAILED, State.IN_ESCROW, State.CAPTURED)


def plan_capture(
    payment: Payment,
    amount: int | None,
    final: bool,
    debt: int = 0,
    settlement_currencies: frozenset[str] = frozenset(),
) -> CapturePlan:
    """Plans the capture of ``amount`` of what is held, or of all of it if None.

    ``debt`` is the expert's debt in the payment's currency that no other capture keeps back yet.
    Stripe's minimum of a charge is checked where Stripe settles in the payment's currency.
    Raises Busy or Precondition if the capture is not possible now, InvalidArgument for the amount.
    """
    refuse_unless(payment, State.IN_ESCROW)
    check_capture_freeze(payment)
    held = payment.held
    if amount is not None:
        check_requested_amount(payment, amount, held)
    taken = held if amount is None else amount
    if taken < held and not final and not payment.is_separate:
        raise Precondition(
            "WOULD_RELEASE_REMAINDER",
            "a card hold is captured once and Stripe releases the remainder to the client; "
            "say so with final=true, or capture the whole",
            {"payment_id": payment.payment_id, "held": held, "requested": taken},
        )
    commission = money.split_capture(
        payment.net, taken, payment.commission_basis_points, payment.currency
    ).commission
    # A SEPARATE capture that is all commission sends nothing, so that any amounts that sum to the
    # whole can be captured. What Stripe splits must leave the expert something.
    if commission >= taken and not payment.is_separate:
        raise Precondition(
            "COMMISSION_TOO_LARGE",
            "the commission would be the whole amount; the expert must be left something",
            {"amount": taken, "commission": commission},
        )
    # At least one step reaches the expert, if there is one: a debt never takes the whole amount.
    most = taken - commission - money.step(payment.currency)
    debt_offset = max(min(debt, most), 0)
    # A conversion can leave a debt that is no whole step of the currency. Stripe would refuse such
    # a fee each time.
    split = CaptureSplit(
        taken, commission, debt_offset - debt_offset % money.step(payment.currency)
    )
    if payment.charged:
        return CapturePlan(split, 0, 0, held - taken if final else 0)
    # SEPARATE: all of the hold is charged and the remainder stays in escrow, unless this is final.
    charges = held if payment.is_separate and not final else taken
    try:
        money.check_minimum(payment.money(charges), settlement_currencies)
    except money.InvalidMoney as fault:
        raise invalid_field(
            "amount.minor_units", f"{fault}: the card would be charged less"
        ) from None
    return CapturePlan(split, charges, held - charges, 0)


def check_still_possible(payment: Payment, operation: Operation) -> None:
    """Raises what an operation would be refused with if it were planned on the payment as it is.

    ``payment`` is the payment without the operation. What happened at Stripe meanwhile explains a
    refusal of Stripe better than Stripe's own code does.
    """
    match operation.kind:
        case OperationKind.CAPTURE | OperationKind.TRANSFER:
            plan_capture(payment, operation.amount_to_capture, final=True)
        case OperationKind.CANCEL:
            plan_refund(payment, None)
        case OperationKind.REFUND if operation.returns_remainder:
            check_requested_amount(payment, operation.minor_units, payment.held)
        case OperationKind.REFUND:
            plan_refund(payment, operation.minor_units)
        case OperationKind.PROMOTE:
            check_promotion(payment)
        case _:
            pass  # Nothing of it depends on the payment's amounts.


def plan_refund(payment: Payment, amount: int | None) -> RefundPlan:
    """Plans the refund of ``amount``. None means all that is held or, if nothing is, the net.

    Money in escrow goes first. What was paid out goes back only if the amount requires it, or if
    nothing is held. Raises like ``plan_capture``.
    """
    refuse_unless(payment, *_REFUNDABLE)
    check_refund_freeze(payment)
    if payment.charged:
        available = payment.held + payment.net
        asked = (payment.held or payment.net) if amount is None else amount
        check_requested_amount(payment, asked, available)
        return RefundPlan(False, asked, refund_split_of(payment, asked, payment.held))
    # Before the client confirms nothing is held, and the whole payment can still be canceled.
    whole = payment.held or payment.amount
    if amount is not None:
        check_requested_amount(payment, amount, whole)
        if amount < whole:
            raise Precondition(
                "PARTIAL_REFUND_NEEDS_CAPTURE",
                "an uncaptured payment is given back whole: leave the amount out, or capture first",
                {"payment_id": payment.payment_id, "held": payment.held, "requested": amount},
            )
    return RefundPlan(True, whole, RefundSplit())


def refund_split_of(payment: Payment, amount: int, from_escrow: int) -> RefundSplit:
    """Splits a refund: at most ``from_escrow`` out of escrow, and the remainder out of the net.

    It never returns more commission than the platform still has. Requires that the remainder is at
    most ``payment.net``.
    """
    held = min(amount, from_escrow)
    remainder = amount - held
    if not remainder:
        return RefundSplit(held)
    split = money.split_refund(
        payment.net, remainder, payment.commission_basis_points, payment.currency
    )
    # The last refund returns all that is left, so that no unit of rounding stays behind. Neither
    # side returns more than it still has: the platform's commission, the expert's amount.
    commission = payment.net_commission if remainder == payment.net else split.commission
    commission = max(
        min(commission, payment.net_commission, remainder), remainder - payment.net_expert
    )
    return RefundSplit(held, commission, remainder - commission)


@dataclass(frozen=True, slots=True)
class LossPlan:
    """Who pays for what the client's bank keeps."""

    split: RefundSplit
    #: The client had this by a refund already: the platform's loss.
    beyond: int


def plan_loss(payment: Payment, amount: int) -> LossPlan:
    """Splits the loss of ``amount``: client payable, then escrow, then captured, then the platform.

    The order is our rule. The client has the client payable by the dispute now.
    """
    payable = min(amount, payment.client_payable)
    remainder = min(amount - payable, payment.held + payment.net)
    split = replace(refund_split_of(payment, remainder, payment.held), from_payable=payable)
    return LossPlan(split, amount - split.whole)


def plan_reversals(
    amount: int, transfers: Sequence[ReversibleTransfer]
) -> list[ReversibleTransfer]:
    """Returns the reversals that take ``amount`` back from the expert, newest transfer first.

    ``transfers`` are in the order of their creation. What they do not cover becomes debt.
    """
    legs = []
    for transfer in reversed(transfers):
        leg = min(amount, transfer.minor_units)
        if leg > 0:
            legs.append(ReversibleTransfer(transfer.transfer_id, leg))
            amount -= leg
    return legs
