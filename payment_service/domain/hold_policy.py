"""How the money of a new payment is held: by the card or by the platform."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from payment_service.domain.errors import Precondition, invalid_field
from payment_service.domain.payment import ChargeModel, EscrowMode, ModeReason, OnDeadline
from payment_service.domain.places import allowed_charge_models, country_unsupported


@dataclass(frozen=True, slots=True)
class Hold:
    """How a new payment's money is held, and why."""

    mode: EscrowMode
    model: ChargeModel
    reason: ModeReason


@dataclass(frozen=True, slots=True)
class HoldRules:
    """What decides the choice besides the call. The durations are Stripe's rules."""

    #: A gig that ends within this time fits a card's authorization.
    card_hold: timedelta
    holding_limit: timedelta
    #: The currencies in which Stripe settles the platform's charges.
    settlement_currencies: frozenset[str]
    platform_country: str
    expert_country: str


def choose_hold(
    asked: EscrowMode | None,
    on_deadline: OnDeadline,
    done_by: datetime | None,
    currency: str,
    rules: HoldRules,
    now: datetime,
) -> Hold:
    """Returns the hold for a gig that ends by then. Raises :class:`Refusal` if none is possible.

    A charge is given its destination when it is authorized and at no other time (Stripe's rule), so
    a hold that may have to be charged onto the platform is made without one from the start. So is
    one for an expert to whom Stripe only lets the platform transfer.
    """
    if done_by is not None:
        _check_date(done_by, rules, now)
    hold = _hold(asked, on_deadline, done_by, rules, now)
    allowed = allowed_charge_models(rules.platform_country, rules.expert_country)
    if not allowed:
        raise country_unsupported(rules.expert_country, rules.platform_country)
    if hold.model not in allowed:
        hold = replace(hold, model=ChargeModel.SEPARATE)
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
