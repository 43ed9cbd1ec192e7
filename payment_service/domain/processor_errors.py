"""Stripe's error codes in words that may be shown to a caller."""

from __future__ import annotations

from datetime import datetime

from payment_service.domain.errors import Precondition
from payment_service.domain.payment import Failure
from payment_service.domain.snapshot import Decline


def failure_of(decline: Decline, now: datetime) -> Failure:
    """A decline as the payer may see it: a lost or stolen card is never named (Stripe's advice)."""
    hidden = decline.decline_code in ("lost_card", "stolen_card", "fraudulent", "pickup_card")
    decline_code = "generic_decline" if hidden else decline.decline_code
    return Failure(decline.code, decline_code, sentence_of(decline.code, decline_code), now)


def sentence_of(code: str, decline_code: str = "") -> str:
    """A sentence for people; Stripe's own messages never leave the process."""
    sentences = {
        "insufficient_funds": "the card has insufficient funds",
        "expired_card": "the card has expired",
        "incorrect_cvc": "the card's security code is wrong",
        "processing_error": "the card could not be processed; the same card may be tried again",
        "card_velocity_exceeded": "the card was used too often lately",
        "authentication_required": "the bank asks the payer to authenticate",
        "payment_intent_authentication_failure": "the payer's authentication failed",
    }
    plain = "the card was declined" if "card" in code or decline_code else f"Stripe says {code}"
    return sentences.get(decline_code) or sentences.get(code) or plain


def refused_by_processor(code: str, request_id: str, **facts: str) -> Precondition:
    """Stripe's final refusal, as the caller sees it."""
    return Precondition(
        "REFUSED_BY_PROCESSOR",
        f"Stripe refused for good: {code or 'no reason given'}",
        {"stripe_code": code, "stripe_request_id": request_id, **facts},
    )
