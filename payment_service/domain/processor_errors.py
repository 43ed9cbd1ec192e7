"""Stripe's answers as errors and sentences that may be shown to a caller.

The one place for these texts. Stripe's own messages never leave the process.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from payment_service.domain.errors import (
    Busy,
    Exhausted,
    Precondition,
    Refusal,
    Unavailable,
    outcome_unknown,
    processor_unavailable,
)
from payment_service.domain.payment import Failure
from payment_service.domain.ports.stripe import Misconfigured, NotSent, Unknown
from payment_service.domain.snapshot import Decline

#: Not Stripe's code: Stripe has made an intent that offers no cards.
CARDS_NOT_ENABLED: Final = "card_payments_not_enabled"


def failure_of(decline: Decline, now: datetime) -> Failure:
    """Returns a decline as the payer may see it.

    A lost or stolen card is never named: that is Stripe's advice.
    """
    hidden = decline.decline_code in ("lost_card", "stolen_card", "fraudulent", "pickup_card")
    decline_code = "generic_decline" if hidden else decline.decline_code
    return Failure(decline.code, decline_code, sentence_of(decline.code, decline_code), now)


def sentence_of(code: str, decline_code: str = "") -> str:
    """Returns a sentence for people."""
    sentences = {
        "insufficient_funds": "the card has insufficient funds",
        "expired_card": "the card has expired",
        "incorrect_cvc": "the card's security code is wrong",
        "processing_error": "the card could not be processed; the same card may be tried again",
        "card_velocity_exceeded": "the card was used too often lately",
        "authentication_required": "the bank asks the payer to authenticate",
        "payment_intent_authentication_failure": "the payer's authentication failed",
        CARDS_NOT_ENABLED: "cards are not enabled in the platform's settings at Stripe",
    }
    plain = "the card was declined" if "card" in code or decline_code else f"Stripe says {code}"
    return sentences.get(decline_code) or sentences.get(code) or plain


def refused_by_processor(code: str, request_id: str, **facts: str) -> Precondition:
    """Returns the error of a request that Stripe refused for good."""
    return Precondition(
        "REFUSED_BY_PROCESSOR",
        f"Stripe refused for good: {code or 'no reason given'}",
        {"stripe_code": code, "stripe_request_id": request_id, **facts},
    )


def misconfigured(code: str, request_id: str = "", **facts: str) -> Unavailable:
    """Returns the error of a request that Stripe refused because of this service's own mistake."""
    return Unavailable(
        "PROCESSOR_MISCONFIGURED",
        "Stripe refuses this service's own credentials or requests; an operator is alerted",
        {**facts, "stripe_code": code, "stripe_request_id": request_id},
    )


def rate_limited(**facts: str) -> Exhausted:
    """Returns the error of a request beyond Stripe's rate limit."""
    return Exhausted(
        "PROCESSOR_RATE_LIMITED",
        "Stripe's rate limit is reached; ask again later with the same key",
        facts,
    )


def refusal_of(outcome: NotSent | Unknown | Misconfigured, **facts: str) -> Refusal:
    """Returns what a caller gets while Stripe has neither done nor refused it.

    ``facts`` name the subject: the payment, the dispute or the expert.
    """
    match outcome:
        case Unknown():
            return outcome_unknown(**facts)
        case Misconfigured():
            return misconfigured(outcome.code, outcome.request_id, **facts)
        case NotSent(rate_limited=True):
            return rate_limited(**facts, stripe_code=outcome.why)
        case NotSent(why="unreachable" | "circuit_open"):
            return processor_unavailable(**facts)
        case NotSent():
            return Busy(
                "OPERATION_IN_PROGRESS",
                "Stripe is busy with this payment; ask again with the same key",
                {**facts, "stripe_code": outcome.why, "state": ""},
            )
