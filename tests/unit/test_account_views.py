"""What Accounts v2 shows of an account, in the words of the domain."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

from payment_service.adapters.stripe.account_outcomes import outcome_of_creation
from payment_service.adapters.stripe.views_v2 import account_of_v2
from payment_service.domain.ports.stripe import Misconfigured, Refused


def entry(name: str, **fields: Any) -> dict[str, Any]:
    given = {
        "awaiting_action_from": "user",
        "description": name,
        "errors": [],
        "minimum_deadline": {"status": "past_due"},
        "requested_reasons": [{"code": "routine_verification"}],
        **fields,
    }
    if given.pop("onboarding", False):
        given["requested_reasons"] = [{"code": "routine_onboarding"}]
    return given


def capability(status: str, *codes: str) -> dict[str, Any]:
    details = [{"code": code, "resolution": "provide_info"} for code in codes]
    return {"status": status, "status_details": details}


def shown(
    transfers: dict[str, Any] | None = None,
    payouts: dict[str, Any] | None = None,
    *entries: dict[str, Any],
) -> dict[str, Any]:
    return {
        "id": "acct_1",
        "object": "v2.core.account",
        "configuration": {
            "merchant": None,
            "recipient": {
                "applied": True,
                "capabilities": {
                    "stripe_balance": {"stripe_transfers": transfers, "payouts": payouts}
                },
            },
        },
        "requirements": {"entries": list(entries)},
    }


ACTIVE = capability("active")
PAST_DUE = capability("restricted", "requirements_past_due")


def test_an_account_that_works() -> None:
    account = account_of_v2(shown(ACTIVE, ACTIVE))
    assert (account.transfers_active, account.payouts_enabled) == (True, True)
    assert (account.details_submitted, account.requirements_due) == (True, ())
    assert (account.charges_enabled, account.disabled_reason) == (False, "")


def test_a_new_account_has_not_submitted_its_details() -> None:
    account = account_of_v2(shown(PAST_DUE, PAST_DUE, entry("external_account", onboarding=True)))
    assert not account.details_submitted
    assert account.requirements_due == ("external_account",)
    assert account.disabled_reason == "requirements.past_due"


def test_only_what_the_owner_must_do_now_is_due() -> None:
    later = entry("later", minimum_deadline={"status": "eventually_due"}, onboarding=True)
    theirs = entry("document", awaiting_action_from="stripe")
    soon = entry("soon", minimum_deadline={"status": "currently_due"})
    account = account_of_v2(shown(ACTIVE, ACTIVE, later, theirs, soon))
    assert account.requirements_due == ("soon",)
    assert account.details_submitted


@pytest.mark.parametrize(
    ("transfers", "reason"),
    [
        (capability("pending", "requirements_pending_verification"),
         "requirements.pending_verification"),
        (capability("pending", "determining_status"), "requirements.pending_verification"),
        (PAST_DUE, "requirements.past_due"),
        (capability("restricted", "restricted_other"), "other"),
        (capability("rejected", "rejected_fraud"), "rejected.fraud"),
        (capability("rejected", "requirements_past_due", "rejected_platform_terms_of_service"),
         "rejected.platform_terms_of_service"),
        (capability("rejected"), "rejected.other"),
        (capability("unsupported", "unsupported_country"), "unsupported_country"),
        (capability("restricted"), ""),
    ],
)  # fmt: skip
def test_why_a_capability_does_not_work(transfers: dict[str, Any], reason: str) -> None:
    assert account_of_v2(shown(transfers, ACTIVE)).disabled_reason == reason


def test_payouts_that_do_not_work_are_named_where_transfers_do() -> None:
    account = account_of_v2(shown(ACTIVE, PAST_DUE))
    assert (account.transfers_active, account.payouts_enabled) == (True, False)
    assert account.disabled_reason == "requirements.past_due"


def test_an_account_without_the_recipient_configuration() -> None:
    values = {"id": "acct_1", "object": "v2.core.account", "configuration": None}
    assert account_of_v2({**values, "requirements": None}).transfers_active is False


def refusal(message: str, code: str | None = None, param: str | None = None) -> Exception:
    error = {"message": message, "type": "invalid_request_error"}
    error |= {name: value for name, value in (("code", code), ("param", param)) if value}
    return stripe.InvalidRequestError(  # type: ignore[no-untyped-call]  # Stripe's, untyped
        message, param, code, http_status=400, json_body={"error": error}
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (refusal("Anything without a code."), "platform_not_set_up"),
        (refusal("Confirm it.", "inactive_api_operation_confirmation_required"),
         "inactive_api_operation_confirmation_required"),
        (refusal("You can only create new accounts if you've signed up for Connect.", None, "type"),
         "platform_not_set_up"),
    ],
)  # fmt: skip
def test_a_refusal_that_means_the_platform(error: Exception, code: str) -> None:
    outcome = outcome_of_creation(error)
    assert isinstance(outcome, Misconfigured)
    assert (outcome.code, outcome.is_not_set_up) == (code, True)
    assert outcome.said.endswith(str(error))


@pytest.mark.parametrize(
    "error",
    [
        refusal("Invalid email address: a", "email_invalid", "email"),
        refusal("Country 'XX' is unknown.", None, "country"),
    ],
)
def test_a_refusal_that_means_the_expert(error: Exception) -> None:
    assert isinstance(outcome_of_creation(error), Refused)
