"""An account as Accounts v2 shows it, in the words of the domain.

v2 has no `details_submitted`, no `payouts_enabled` and no `disabled_reason`. They are taken from
what v2 has instead: the status of each capability, and a list of requirements that says of each who
must act on it, and from when it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from payment_service.adapters.stripe.fields import (
    Json,
    flag_or_false,
    metadata_of,
    part,
    parts,
    text,
    text_or_empty,
)
from payment_service.domain.experts import Account
from payment_service.domain.ports.stripe import FoundAccount

#: The reasons that both versions have, in v1's words, which the domain uses.
_REASONS = {
    "requirements_past_due": "requirements.past_due",
    "requirements_pending_verification": "requirements.pending_verification",
    "determining_status": "requirements.pending_verification",
    "restricted_other": "other",
}


def account_of_v2(account: Json) -> Account:
    """Returns a connected account and what Stripe still requires of its owner."""
    configuration = part(account, "configuration")
    balance = part(_granted(configuration, "recipient"), "stripe_balance")
    transfers, payouts = part(balance, "stripe_transfers"), part(balance, "payouts")
    charges = part(_granted(configuration, "merchant"), "card_payments")
    requirements = part(account, "requirements")
    future = part(account, "future_requirements")
    asked = _asked(requirements)
    is_working = _is_active(transfers) or _is_active(payouts)
    return Account(
        stripe_account_id=text(account, "id"),
        charges_enabled=_is_active(charges),
        payouts_enabled=_is_active(payouts),
        transfers_active=_is_active(transfers),
        # After Stripe's form nothing is due any more that every new account owes.
        details_submitted=is_working or not any(_is_of_onboarding(entry) for entry in asked),
        requirements_due=_names(asked),
        requirements_due_time=_deadline(requirements),
        future_requirements=_names(_asked(future)),
        future_requirements_due_time=_deadline(future),
        disabled_reason=_disabled_reason(transfers) or _disabled_reason(payouts),
    )


def found_account_of_v2(account: Json) -> FoundAccount:
    """Returns a connected account with its metadata."""
    return FoundAccount(
        account_of_v2(account),
        metadata_of(account),
        datetime.fromisoformat(text(account, "created")),
    )


def is_closed(account: Json) -> bool:
    """Returns whether the account exists no more."""
    return flag_or_false(account, "closed")


def _granted(configuration: Json | None, name: str) -> Json | None:
    """Returns the capabilities of one of an account's configurations."""
    return part(part(configuration, name), "capabilities")


def _asked(requirements: Json | None) -> list[Json]:
    """Returns what one of the two hashes of requirements asks of the owner."""
    return [entry for entry in parts(requirements, "entries") if _is_due_from_owner(entry)]


def _names(entries: Sequence[Json]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text(entry, "description") for entry in entries))


def _deadline(requirements: Json | None) -> datetime | None:
    """Returns when the first of them is due, or None if Stripe names no time."""
    soonest = part(part(requirements, "summary"), "minimum_deadline")
    time = text_or_empty(soonest, "time")
    if not time or text_or_empty(soonest, "status") == "eventually_due":
        return None
    return datetime.fromisoformat(time)


def _is_active(capability: Json | None) -> bool:
    return text_or_empty(capability, "status") == "active"


def _is_due_from_owner(entry: Json) -> bool:
    """Returns whether the owner must act now: not Stripe, and not only some day."""
    deadline = part(entry, "minimum_deadline")
    return text(entry, "awaiting_action_from") == "user" and text_or_empty(deadline, "status") in (
        "currently_due",
        "past_due",
    )


def _is_of_onboarding(entry: Json) -> bool:
    reasons = parts(entry, "requested_reasons")
    return any(text(reason, "code") == "routine_onboarding" for reason in reasons)


def _disabled_reason(capability: Json | None) -> str:
    """Returns why a capability is not active, in v1's words if it has them; "" if it is."""
    if capability is None or _is_active(capability):
        return ""
    codes = [text(detail, "code") for detail in parts(capability, "status_details")]
    rejected = [code for code in codes if code.startswith("rejected_")]
    if rejected or text(capability, "status") == "rejected":
        return "rejected." + (rejected[0].removeprefix("rejected_") if rejected else "other")
    return _REASONS.get(codes[0], codes[0]) if codes else ""
