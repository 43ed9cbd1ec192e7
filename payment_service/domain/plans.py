"""What a call would do, decided before anything is written: the guards, and the exact legs.

A plan is made under the payment's lock and then recorded; with ``validate_only`` the same plan is
shown and thrown away. What a guard refuses raises a :class:`Refusal` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from payment_service.domain import money
from payment_service.domain.errors import (
    Busy,
    Precondition,
    invalid_field,
    operation_in_progress,
)
from payment_service.domain.escrow import (
    BUSY,
    ChargeModel,
    EscrowMode,
    Freeze,
    ModeReason,
    OnDeadline,
    Payment,
    State,
    WaitingFor,
    WaitingReason,
)
from payment_service.domain.experts import Expert, ExpertStatus
from payment_service.domain.ledger import RefundSplit, Share


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """What CapturePayment does: at most three legs, in this order."""

    share: Share
    #: What the card is charged by it, of a hold that was only authorized; 0 if it was before.
    charges: int
    #: Released to the client by that, never charged.
    released: int
    #: Given back to the client out of escrow afterwards.
    returned: int


@dataclass(frozen=True, slots=True)
class RefundPlan:
    """What RefundPayment does: ``cancels`` if the card was never charged, else by ``split``."""

    cancels: bool
    minor_units: int
    split: RefundSplit


@dataclass(frozen=True, slots=True)
class Reversible:
    """What can still be taken back of one transfer, in the payment's currency."""

    transfer_id: str
    minor_units: int


_REFUNDABLE: Final = (State.PENDING, State.FAILED, State.IN_ESCROW, State.CAPTURED)


def plan_capture(payment: Payment, part: int | None, final: bool, debt: int = 0) -> CapturePlan:
    """How a capture of ``part`` of what is held goes; of all of it with None.

    ``debt`` is what the expert owes in the payment's currency and no other capture keeps back yet.
    """
    _refuse_unless(payment, State.IN_ESCROW)
    check_capture_freeze(payment)
    held = payment.held
    if part is not None:
        _check_part(payment, part, held)
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
    share = Share(taken, commission, netted - netted % money.step(payment.currency))
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
    _refuse_unless(payment, *_REFUNDABLE)
    check_refund_freeze(payment)
    if payment.charged:
        available = payment.held + payment.net
        asked = (payment.held or payment.net) if part is None else part
        _check_part(payment, asked, available)
        return RefundPlan(False, asked, split_refund(payment, asked, payment.held))
    # Before the client confirms nothing is held, yet the whole payment can be given up.
    whole = payment.held or payment.amount
    if part is not None:
        _check_part(payment, part, whole)
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
    owed = min(part, payment.client_owed)
    rest = min(part - owed, payment.held + payment.net)
    split = replace(split_refund(payment, rest, payment.held), from_owed=owed)
    return LossPlan(split, part - split.whole)


def plan_reversals(part: int, transfers: Sequence[Reversible]) -> list[Reversible]:
    """Which transfers the expert's ``part`` is taken back from: the newest first.

    ``transfers`` are given oldest first. What they do not cover stays the expert's debt.
    """
    legs = []
    for transfer in reversed(transfers):
        leg = min(part, transfer.minor_units)
        if leg > 0:
            legs.append(Reversible(transfer.transfer_id, leg))
            part -= leg
    return legs


def check_promotion(payment: Payment) -> None:
    """Raise unless the hold is one that can be charged onto the platform."""
    _refuse_unless(payment, State.IN_ESCROW)
    if payment.charged or not payment.is_separate:
        raise Precondition(
            "WRONG_STATE",
            "only an authorized card without a destination can be promoted",
            {"payment_id": payment.payment_id, "state": payment.state, "allowed_states": ""},
        )


def check_capture_freeze(payment: Payment) -> None:
    """Raise while the payment is contested: what may have to go back is not paid out."""
    if payment.frozen is not Freeze.NONE:
        raise payment_disputed(payment, "captured")


def check_refund_freeze(payment: Payment) -> None:
    """Raise while the money is at the client's bank, which may give it to the client itself."""
    if payment.frozen is Freeze.CHARGEBACK:
        raise payment_disputed(payment, "refunded")


def check_destination(payment: Payment, expert: Expert) -> None:
    """Raise if the charge can only be split with an account that the expert has no more.

    A charge is given its destination when it is authorized and at no other time (Stripe's rule);
    who transfers on from the platform may choose the account.
    """
    account_id = expert.account.stripe_account_id
    if not payment.is_separate and payment.destination_account_id != account_id:
        raise Precondition(
            "DESTINATION_ACCOUNT_REPLACED",
            "the expert has another account by now, and this charge can only pay the former one; "
            "refund it and initiate it anew",
            {
                "payment_id": payment.payment_id,
                "expert_id": expert.expert_id,
                "destination_account_id": payment.destination_account_id,
                "stripe_account_id": account_id,
            },
        )


def reason_to_wait(payment: Payment, expert: Expert) -> WaitingReason:
    """Why a capture that Stripe refused for the account's sake cannot go on now."""
    account_id = expert.account.stripe_account_id
    if not payment.is_separate and payment.destination_account_id != account_id:
        return WaitingReason.DESTINATION_ACCOUNT_REPLACED
    if expert.status is ExpertStatus.READY:
        return WaitingReason.EXPERT_REFUSED
    return WaitingReason(f"EXPERT_{expert.status}")


def payment_disputed(payment: Payment, word: str, **facts: str) -> Precondition:
    """Contested: by our own freeze, or because Stripe says so. ``stage`` is the freeze."""
    return Precondition(
        "PAYMENT_DISPUTED",
        f"the payment is contested ({payment.frozen}) and cannot be {word} until that is decided",
        {
            "payment_id": payment.payment_id,
            "dispute_id": payment.frozen_by,
            "stage": payment.frozen.value,
            **facts,
        },
    )


def waits_for_expert(payment: Payment) -> bool:
    """Its capture rests until the expert's account is well; it may be given up for a refund."""
    return payment.state is State.CAPTURING and payment.waiting_for is WaitingFor.EXPERT


class MovedOn(Busy):
    """The payment is not what the caller has seen; ``payment`` is what it is now."""

    def __init__(self, payment: Payment, expected: int) -> None:
        super().__init__(
            "VERSION_MISMATCH",
            f"the payment has moved on to version {payment.version}; look at it and decide anew",
            {
                "payment_id": payment.payment_id,
                "expected_version": expected,
                "version": payment.version,
                "state": payment.state.value,
            },
        )
        self.payment = payment


def check_version(payment: Payment, expected: int) -> None:
    """Raise unless the payment is as the caller has seen it; 0 means that it does not matter."""
    if expected and payment.version != expected:
        raise MovedOn(payment, expected)


def _refuse_unless(payment: Payment, *states: State) -> None:
    if payment.state in BUSY or (payment.operation_id and payment.state in states):
        raise operation_in_progress(payment.payment_id, payment.state)
    if payment.state not in states:
        raise Precondition(
            "WRONG_STATE",
            f"the payment is {payment.state}; this needs {' or '.join(states)}",
            {
                "payment_id": payment.payment_id,
                "state": payment.state.value,
                "allowed_states": ",".join(states),
            },
        )


def _check_part(payment: Payment, part: int, available: int) -> None:
    try:
        money.check_part(payment.money(part))
    except money.InvalidMoney as fault:
        raise invalid_field("amount.minor_units", str(fault)) from None
    if part > available:
        raise Precondition(
            "AMOUNT_TOO_LARGE",
            f"{payment.money(part)} is more than the {payment.money(available)} that there is",
            {
                "payment_id": payment.payment_id,
                "requested": part,
                "available": available,
                "currency": payment.currency,
            },
        )


# ---- how the money is held ----


@dataclass(frozen=True, slots=True)
class Hold:
    """How a new payment's money is held, and why."""

    mode: EscrowMode
    model: ChargeModel
    reason: ModeReason


@dataclass(frozen=True, slots=True)
class HoldRules:
    """What the choice depends on besides the call. Durations are those of Stripe's rules."""

    #: A gig that ends within so long fits a card's authorization.
    card_hold: timedelta
    holding_limit: timedelta
    #: The currencies in which Stripe settles the platform's charges.
    settlement_currencies: frozenset[str]


def choose_hold(
    asked: EscrowMode | None,
    on_deadline: OnDeadline,
    done_by: datetime | None,
    currency: str,
    rules: HoldRules,
    now: datetime,
) -> Hold:
    """The hold for a gig that is to be done by then. Raises :class:`Refusal` where there is none.

    A charge is given its destination when it is authorized and at no other time (Stripe's rule), so
    a hold that may have to be charged onto the platform is made without one from the start.
    """
    if done_by is not None:
        _check_date(done_by, rules, now)
    hold = _hold(asked, on_deadline, done_by, rules, now)
    if hold.model is ChargeModel.SEPARATE and currency not in rules.settlement_currencies:
        raise Precondition(
            "CURRENCY_NOT_SETTLED",
            f"the platform does not settle in {currency}, so it cannot hold that and pay it on",
            {"currency": currency, "settled": ",".join(sorted(rules.settlement_currencies))},
        )
    return hold


def _hold(
    asked: EscrowMode | None,
    on_deadline: OnDeadline,
    done_by: datetime | None,
    rules: HoldRules,
    now: datetime,
) -> Hold:
    card, platform = EscrowMode.CARD_HOLD, EscrowMode.PLATFORM_HOLD
    destination, separate = ChargeModel.DESTINATION, ChargeModel.SEPARATE
    if on_deadline is OnDeadline.PROMOTE:
        if asked is platform:
            raise invalid_field("on_deadline", "PROMOTE is for a CARD_HOLD; the platform holds it")
        return Hold(card, separate, ModeReason.REQUESTED if asked else ModeReason.PROMOTION)
    if asked is not None:
        return Hold(asked, separate if asked is platform else destination, ModeReason.REQUESTED)
    if done_by is None:
        return Hold(card, destination, ModeReason.DEFAULT)
    if done_by <= now + rules.card_hold:
        return Hold(card, destination, ModeReason.FITS_CARD_HOLD)
    return Hold(platform, separate, ModeReason.OUTLASTS_CARD_HOLD)


def _check_date(done_by: datetime, rules: HoldRules, now: datetime) -> None:
    if done_by <= now:
        raise invalid_field("expected_completion_time", "must be in the future")
    if done_by > now + rules.holding_limit:
        raise Precondition(
            "HOLDING_LIMIT_EXCEEDED",
            "money cannot be held for so long in the platform's country",
            {
                "expected_completion_time": done_by.isoformat(),
                "latest": (now + rules.holding_limit).isoformat(),
            },
        )
