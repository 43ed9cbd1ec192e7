"""An account as Accounts v2 shows it, in the words of the domain.

v2 has no `details_submitted`, no `payouts_enabled` and no `disabled_reason`. They are taken from
what v2 has instead: the status of each capability, and a list of requirements that says of each who
must act on it, and from when it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import stripe

from payment_service.adapters.stripe.views import metadata_of
from payment_service.domain.experts import Account
from payment_service.domain.ports.stripe import FoundAccount

#: The reasons that both versions have, in v1's words, which the domain uses.
_REASONS = {
    "requirements_past_due": "requirements.past_due",
    "requirements_pending_verification": "requirements.pending_verification",
    "determining_status": "requirements.pending_verification",
    "restricted_other": "other",
}


def account_of_v2(account: stripe.v2.core.Account) -> Account:
    """Returns a connected account and what Stripe still requires of its owner."""
    configuration = account.configuration
    recipient = configuration.recipient if configuration else None
    merchant = configuration.merchant if configuration else None
    granted = recipient.capabilities if recipient else None
    balance = granted.stripe_balance if granted else None
    transfers = balance.stripe_transfers if balance else None
    payouts = balance.payouts if balance else None
    charges = merchant.capabilities.card_payments if merchant and merchant.capabilities else None
    asked = _asked(account.requirements)
    future = getattr(account, "future_requirements", None)
    is_working = _is_active(transfers) or _is_active(payouts)
    return Account(
        stripe_account_id=account.id,
        charges_enabled=_is_active(charges),
        payouts_enabled=_is_active(payouts),
        transfers_active=_is_active(transfers),
        # After Stripe's form nothing is due any more that every new account owes.
        details_submitted=is_working or not any(_is_of_onboarding(entry) for entry in asked),
        requirements_due=_names(asked),
        requirements_due_time=_deadline(account.requirements),
        future_requirements=_names(_asked(future)),
        future_requirements_due_time=_deadline(future),
        disabled_reason=_disabled_reason(transfers) or _disabled_reason(payouts),
    )


def found_account_of_v2(account: stripe.v2.core.Account) -> FoundAccount:
    """Returns a connected account with its metadata."""
    return FoundAccount(
        account_of_v2(account),
        metadata_of(account.metadata),
        datetime.fromisoformat(account.created),
    )


def _asked(hash_: Any) -> list[Any]:
    """Returns what one of the two hashes of requirements asks of the owner."""
    entries = (hash_.entries if hash_ else None) or []
    return [entry for entry in entries if _is_due_from_owner(entry)]


def _names(entries: Sequence[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.description for entry in entries))


def _deadline(hash_: Any) -> datetime | None:
    """Returns when the first of them is due, or None if Stripe names no time."""
    summary = getattr(hash_, "summary", None)
    soonest = summary.minimum_deadline if summary else None
    if soonest is None or not soonest.time or soonest.status == "eventually_due":
        return None
    return datetime.fromisoformat(soonest.time)


def _is_active(capability: Any) -> bool:
    return capability is not None and capability.status == "active"


def _is_due_from_owner(entry: Any) -> bool:
    """Returns whether the owner must act now: not Stripe, and not only some day."""
    return entry.awaiting_action_from == "user" and entry.minimum_deadline.status in (
        "currently_due",
        "past_due",
    )


def _is_of_onboarding(entry: Any) -> bool:
    return any(reason.code == "routine_onboarding" for reason in entry.requested_reasons)


def _disabled_reason(capability: Any) -> str:
    """Returns why a capability is not active, in v1's words if it has them; "" if it is."""
    if capability is None or capability.status == "active":
        return ""
    codes = [detail.code for detail in capability.status_details]
    rejected = [code for code in codes if code.startswith("rejected_")]
    if rejected or capability.status == "rejected":
        return "rejected." + (rejected[0].removeprefix("rejected_") if rejected else "other")
    return _REASONS.get(codes[0], codes[0]) if codes else ""
