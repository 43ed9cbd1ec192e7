"""What the refusal of a new account says: that of an expert, or of a platform not set up for it.

Stripe has most of the refusals that are about the platform's own settings as a 400 without a code.
No expert can correct those, so they are an operator's affair and not final.
"""

from __future__ import annotations

from typing import Final

import stripe

from payment_service.adapters.stripe.outcomes import outcome_of, said_of
from payment_service.domain.ports.stripe import Misconfigured, NotSent, Refused, Unknown

#: Codes and types of errors that mean the platform, whatever parameter they name.
_PLATFORM_CODES: Final = frozenset(
    {
        "inactive_api_operation_confirmation_required",
        "accounts_v2_access_blocked",
        "non_connect_platform_accounts_v2_access_blocked",
        "account_controller_express_dash_without_application_losses_or_fees",
        "platform_account_required",
        "feature_not_enabled",
        "capability_not_enabled",
        "blocked_by_stripe",
    }
)
#: So do these words, which name pages of the platform's own Dashboard.
_PLATFORM_WORDS: Final = (
    "signed up for connect",
    "settings/connect/platform-profile",
    "settings/features/",
    "accounts v1 support",
)


def outcome_of_creation(error: BaseException) -> Refused | NotSent | Unknown | Misconfigured:
    """Returns what an exception says about the creation of an account."""
    outcome = outcome_of(error)
    if not isinstance(outcome, Refused) or not isinstance(error, stripe.StripeError):
        return outcome
    if not _is_about_platform(error, outcome.code):
        return outcome
    return Misconfigured(
        outcome.code or "platform_not_set_up",
        outcome.request_id,
        said_of(error),
        is_not_set_up=True,
        # A key of v1 would give this refusal again for a day.
        spent_key=True,
    )


def _is_about_platform(error: stripe.StripeError, code: str) -> bool:
    detail = error.error
    kind = getattr(detail, "type", None) or ""
    param = getattr(detail, "param", None) or ""
    words = (error.user_message or "").lower()
    return (
        not (code or param)
        or bool(_PLATFORM_CODES & {code, kind})
        or any(part in words for part in _PLATFORM_WORDS)
    )
