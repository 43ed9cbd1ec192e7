"""The stories of an expert's account, under Accounts v2 and under Accounts v1."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from marketplace.payments.v1 import experts_pb2, onboarding_pb2, operations_pb2
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.requests import new_key
from tests.support.world import CAPTURED, World, until

READY = experts_pb2.EXPERT_STATUS_READY
ONBOARDING = experts_pb2.EXPERT_STATUS_ONBOARDING
PENDING_VERIFICATION = experts_pb2.EXPERT_STATUS_PENDING_VERIFICATION
RESTRICTED = experts_pb2.EXPERT_STATUS_RESTRICTED
REJECTED = experts_pb2.EXPERT_STATUS_REJECTED
DEAUTHORIZED = experts_pb2.EXPERT_STATUS_DEAUTHORIZED

BOTH = pytest.mark.parametrize("api", ["v2", "v1"])
TEN_MINUTES = 601


@pytest.fixture
def api() -> str:
    return "v2"


@pytest.fixture
async def world(start_world: StartWorld, api: str) -> World:
    """A platform whose experts' accounts are created by this version of Stripe's API."""
    world = await start_world(stripe_accounts_api=api)
    await world.stripe.control("POST", "/settings", {"accounts_v1_support": api == "v1"})
    return world


def creation(**fields: Any) -> experts_pb2.CreateExpertAccountRequest:
    given = {"expert_id": "ann", "name": "Ann", "email": "ann@example.com", **fields}
    return experts_pb2.CreateExpertAccountRequest(**given)


async def get(world: World, expert_id: str) -> experts_pb2.Expert:
    request = experts_pb2.GetExpertRequest(expert_id=expert_id)
    return (await world.experts.GetExpert(request)).expert


async def submit(url: str, outcome: str = "complete") -> str:
    """Fills in the hosted form, and returns the token of the page that the browser lands on."""
    async with (
        aiohttp.ClientSession() as browser,
        browser.post(url, data={"outcome": outcome}, allow_redirects=False) as page,
    ):
        return page.headers["Location"].partition("token=")[2]


async def operations(world: World) -> list[operations_pb2.Operation]:
    listed = await world.operations.ListOperations(operations_pb2.ListOperationsRequest())
    return list(listed.operations)


@BOTH
async def test_from_the_form_to_the_first_payment(world: World, api: str) -> None:
    created = await world.experts.CreateExpertAccount(creation())
    assert created.expert.status == ONBOARDING
    assert created.expert.requirements_due
    assert created.expert.disabled_reason == "requirements.past_due"
    path = "/v2/core/accounts" if api == "v2" else "/v1/accounts"
    assert [one["path"] for one in await world.stripe.requests("/accounts")] == [path]
    request = experts_pb2.CreateDashboardLinkRequest(expert_id="ann")
    refused = await refusal(world.experts.CreateDashboardLink(request))
    assert refused.reason == "ONBOARDING_INCOMPLETE"

    token = await submit(created.onboarding_url)
    landed = onboarding_pb2.GetOnboardingStatusRequest(onboarding_token=token)
    assert (await world.onboarding.GetOnboardingStatus(landed)).status == READY
    assert (await world.experts.CreateDashboardLink(request)).url
    expert = await get(world, "ann")
    assert (expert.transfers_active, expert.payouts_enabled) == (True, True)
    assert (list(expert.requirements_due), expert.disabled_reason) == ([], "")
    # Only a merchant may charge by itself. A recipient is paid by the platform.
    assert expert.charges_enabled is (api == "v1")

    payment = await world.captured("ann")
    await world.refund(payment.payment_id, 1_000)
    await check_books(world)
    assert (await world.get(payment.payment_id)).state == CAPTURED


@BOTH
@pytest.mark.parametrize(
    ("outcome", "status"),
    [("pending", PENDING_VERIFICATION), ("unfinished", ONBOARDING)],
)
async def test_what_the_form_leaves(
    world: World, outcome: str, status: experts_pb2.ExpertStatus.ValueType
) -> None:
    created = await world.experts.CreateExpertAccount(creation())
    await submit(created.onboarding_url, outcome)
    expert = await world.expert_status("ann", status)
    assert expert.details_submitted is (outcome == "pending")
    assert bool(expert.requirements_due) is (outcome == "unfinished")


@BOTH
@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("requirements.past_due", RESTRICTED),
        ("requirements.pending_verification", RESTRICTED),
        ("rejected.terms_of_service", REJECTED),
        ("other", RESTRICTED),
    ],
)
async def test_webhooks_report_a_restriction_and_its_end(
    world: World, reason: str, status: experts_pb2.ExpertStatus.ValueType
) -> None:
    expert_id = await world.expert()
    account = world.account_of(expert_id)
    body = {"disabled_reason": reason}
    await world.stripe.control("POST", f"/accounts/{account}/restrict", body)
    expert = await world.expert_status(expert_id, status)
    assert expert.disabled_reason == reason
    assert len(expert.requirements_due) == 1
    refused = await refusal(world.payments.InitiatePayment(world.initiation(expert_id)))
    assert refused.reason == "EXPERT_NOT_READY"
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    await world.expert_status(expert_id, READY)


@BOTH
async def test_an_account_that_revokes_our_access_is_lost_and_replaced(world: World) -> None:
    expert_id = await world.expert()
    former = world.account_of(expert_id)
    await world.stripe.control("POST", f"/accounts/{former}/deauthorize")
    await world.expert_status(expert_id, DEAUTHORIZED)
    request = experts_pb2.ReplaceExpertAccountRequest(
        expert_id=expert_id, reason="left", idempotency_key=new_key()
    )
    replaced = await world.experts.ReplaceExpertAccount(request)
    assert replaced.expert.stripe_account_id != former
    await submit(replaced.onboarding_url)
    await world.expert_status(expert_id, READY)
    assert (await world.captured(expert_id)).state == CAPTURED


@BOTH
@pytest.mark.parametrize("fault", ["reset", "status"])
async def test_an_account_whose_answer_is_lost_is_not_created_twice(
    world: World, fault: str
) -> None:
    await world.stripe.fault("/accounts$", fault, "after")
    refused = await refusal(world.experts.CreateExpertAccount(creation()))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "OUTCOME_UNKNOWN")

    async def created() -> bool:
        return bool((await get(world, "ann")).stripe_account_id)

    await until(created, "the account")
    [made] = await world.stripe.effects("account_created")
    assert (await get(world, "ann")).stripe_account_id == made["object"]


@BOTH
async def test_an_account_is_found_when_its_key_is_too_old(world: World) -> None:
    assert world.service is not None
    await world.stripe.fault("/accounts$", "reset", "after")
    await refusal(world.experts.CreateExpertAccount(creation()))
    [made] = await world.stripe.effects("account_created")
    operation_id = made["metadata"]["operation_id"]
    [(created,)] = world.sql(
        "SELECT create_time FROM operations WHERE operation_id = %s", operation_id
    )
    found = await world.service.app.stripe.find_account(operation_id, created)
    assert found is not None
    assert found.stripe_account_id == made["object"]
    assert await world.service.app.stripe.find_account("op_other", created) is None


@pytest.mark.parametrize(("first", "then"), [("v1", "v2"), ("v2", "v1")])
async def test_an_expert_goes_on_when_the_platform_changes_its_api(
    start_world: StartWorld, first: str, then: str
) -> None:
    world = await start_world(stripe_accounts_api=first)
    await world.stripe.control("POST", "/settings", {"accounts_v1_support": True})
    expert_id = await world.expert()
    fresh = await world.expert(ready=False)
    assert world.service is not None
    settings = world.service.settings
    world.service.settings = settings.model_copy(update={"stripe_accounts_api": then})
    await world.service.restart()
    # v2 does not know an account of v1 in its first ten minutes. That loses nobody.
    request = experts_pb2.RefreshOnboardingRequest(expert_id=fresh)
    for seconds in (0, TEN_MINUTES):
        await world.stripe.advance(seconds)
        account = world.account_of(expert_id)
        await world.stripe.control("POST", f"/accounts/{account}/restrict", {})
        await world.expert_status(expert_id, RESTRICTED)
        await world.stripe.control("POST", f"/accounts/{account}/restore")
        await world.expert_status(expert_id, READY)
        assert (await world.experts.RefreshOnboarding(request)).onboarding_url
    link = experts_pb2.CreateDashboardLinkRequest(expert_id=expert_id)
    assert (await world.experts.CreateDashboardLink(link)).url
    await submit((await world.experts.RefreshOnboarding(request)).onboarding_url)
    await world.expert_status(fresh, READY)
    assert (await world.captured(fresh)).state == CAPTURED
    assert (await world.captured(expert_id)).state == CAPTURED


async def test_a_closed_account_is_lost(world: World) -> None:
    expert_id = await world.expert()
    account = world.account_of(expert_id)
    body = {"applied_configurations": ["recipient"]}
    closed = await world.stripe.api_v2("POST", f"/core/accounts/{account}/close", body)
    assert closed["closed"]
    await world.expert_status(expert_id, DEAUTHORIZED)


# ---- a platform that is not set up ----


async def test_v1_without_its_support_waits_for_the_operator(start_world: StartWorld) -> None:
    world = await start_world(stripe_accounts_api="v1")
    refused = await refusal(world.experts.CreateExpertAccount(creation()))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "PROCESSOR_MISCONFIGURED")
    assert "Dashboard" not in refused.sentence
    [operation] = await operations(world)
    assert "enable Accounts v1 support in the Dashboard" in operation.last_error
    # Nothing is lost: as soon as that is done, the account is created.
    await world.stripe.control("POST", "/settings", {"accounts_v1_support": True})

    async def created() -> bool:
        return bool((await get(world, "ann")).stripe_account_id)

    await until(created, "the account")
    assert len(await world.stripe.effects("account_created")) == 1


@pytest.mark.parametrize(
    "error",
    [
        {"message": "You can only create new accounts if you've signed up for Connect, …"},
        {
            "message": "Please review the responsibilities of managing losses at "
            "https://dashboard.stripe.com/settings/connect/platform-profile."
        },
        {"code": "inactive_api_operation_confirmation_required", "message": "Confirm it."},
        {"code": "accounts_v2_access_blocked", "message": "Accounts v2 is not enabled."},
    ],
    ids=["signup", "profile", "confirmation", "access"],
)
async def test_a_platform_that_is_not_set_up_is_nobodys_refusal(
    world: World, error: dict[str, str]
) -> None:
    await world.stripe.fault("/accounts$", "status", status=400, times=3, **error)
    refused = await refusal(world.experts.CreateExpertAccount(creation()))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "PROCESSOR_MISCONFIGURED")
    [operation] = await operations(world)
    assert error["message"] in operation.last_error

    async def created() -> bool:
        return bool((await get(world, "ann")).stripe_account_id)

    await until(created, "the account")
    assert len(await world.stripe.effects("account_created")) == 1


async def test_an_experts_own_fault_is_still_final(world: World) -> None:
    await world.stripe.fault("/accounts$", "status", status=400, code="email_invalid")
    refused = await refusal(world.experts.CreateExpertAccount(creation()))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "REFUSED_BY_PROCESSOR")
