"""Experts: what follows from what Stripe says of an account."""

from datetime import timedelta

import pytest

from payment_service.domain.errors import Precondition
from payment_service.domain.experts import (
    Account,
    BusinessType,
    Expert,
    ExpertStatus,
)
from tests.unit.domain.builders import NOW

Status = ExpertStatus


def new_expert(account: Account, *, deauthorized: bool = False) -> Expert:
    return Expert(
        expert_id="expert_1",
        name="Ada",
        email="ada@example.com",
        country="US",
        business_type=BusinessType.INDIVIDUAL,
        commission_basis_points=1_000,
        account=account,
        deauthorized=deauthorized,
        create_time=NOW,
        update_time=NOW + timedelta(seconds=1),
    )


def test_expert_without_account_is_being_created() -> None:
    assert new_expert(Account("")).status is Status.CREATING
    assert new_expert(Account("", transfers_active=True)).status is Status.CREATING


@pytest.mark.parametrize(
    ("transfers", "submitted", "due", "disabled_reason", "status"),
    [
        (False, False, (), "", Status.ONBOARDING),
        (False, False, ("email",), "requirements.past_due", Status.ONBOARDING),
        (False, True, (), "", Status.PENDING_VERIFICATION),
        (False, True, (), "requirements.pending_verification", Status.PENDING_VERIFICATION),
        (False, True, ("id_number",), "", Status.RESTRICTED),
        (False, True, ("id_number",), "requirements.pending_verification", Status.RESTRICTED),
        (False, True, ("id_number",), "requirements.past_due", Status.RESTRICTED),
        (False, True, (), "under_review", Status.RESTRICTED),
        (False, True, (), "platform_paused", Status.RESTRICTED),
        (True, True, (), "", Status.READY),
        (True, True, ("id_number",), "", Status.READY),
        (True, False, ("email",), "", Status.READY),
        (True, True, (), "rejected.fraud", Status.REJECTED),
        (False, False, (), "rejected.other", Status.REJECTED),
    ],
)
def test_status_is_derived_from_the_account(
    transfers: bool, submitted: bool, due: tuple[str, ...], disabled_reason: str, status: Status
) -> None:
    account = Account(
        "acct_1",
        transfers_active=transfers,
        details_submitted=submitted,
        requirements_due=due,
        disabled_reason=disabled_reason,
    )
    assert new_expert(account).status is status
    assert new_expert(account, deauthorized=True).status is Status.DEAUTHORIZED


READY = Account("acct_1", transfers_active=True, details_submitted=True)
RESTRICTED = Account(
    "acct_1",
    details_submitted=True,
    requirements_due=tuple(f"field_{n}" for n in range(12)),
    disabled_reason="requirements.past_due",
)


def test_ready_expert_passes_every_check() -> None:
    new_expert(READY).check_ready()
    new_expert(READY).check_onboarded()


def test_expert_who_cannot_be_paid_is_refused_with_what_is_missing() -> None:
    with pytest.raises(Precondition) as refusal:
        new_expert(RESTRICTED).check_ready()
    assert refusal.value.reason == "EXPERT_NOT_READY"
    assert refusal.value.facts == {
        "expert_id": "expert_1",
        "status": "RESTRICTED",
        "disabled_reason": "requirements.past_due",
        "requirements_due": ",".join(f"field_{n}" for n in range(10)),
    }


@pytest.mark.parametrize(
    ("account", "deauthorized", "status"),
    [
        (Account(""), False, "CREATING"),
        (Account("acct_1"), False, "ONBOARDING"),
        (Account("acct_1", details_submitted=True), False, "PENDING_VERIFICATION"),
        (RESTRICTED, False, "RESTRICTED"),
        (Account("acct_1", disabled_reason="rejected.terms_of_service"), False, "REJECTED"),
        (READY, True, "DEAUTHORIZED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_a_ready_expert_can_be_paid(account: Account, deauthorized: bool, status: str) -> None:
    with pytest.raises(Precondition) as refusal:
        new_expert(account, deauthorized=deauthorized).check_ready()
    assert refusal.value.facts["status"] == status


@pytest.mark.parametrize(
    ("account", "deauthorized", "status"),
    [
        (Account(""), False, "CREATING"),
        (Account("acct_1"), False, "ONBOARDING"),
        (
            Account("acct_1", details_submitted=True, disabled_reason="rejected.fraud"),
            False,
            "REJECTED",
        ),
        (READY, True, "DEAUTHORIZED"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_dashboard_before_onboarding_or_after_the_end(
    account: Account, deauthorized: bool, status: str
) -> None:
    with pytest.raises(Precondition) as refusal:
        new_expert(account, deauthorized=deauthorized).check_onboarded()
    assert refusal.value.reason == "ONBOARDING_INCOMPLETE"
    assert refusal.value.facts == {"expert_id": "expert_1", "status": status}


@pytest.mark.parametrize("account", [RESTRICTED, Account("acct_1", details_submitted=True)])
def test_restricted_expert_still_has_a_dashboard(account: Account) -> None:
    new_expert(account).check_onboarded()
