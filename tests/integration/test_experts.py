"""Experts: kept by webhooks and by asking, paid only when Stripe says that they can be."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from marketplace.payments.v1 import experts_pb2, onboarding_pb2
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.world import World

READY = experts_pb2.EXPERT_STATUS_READY
ONBOARDING = experts_pb2.EXPERT_STATUS_ONBOARDING
PENDING_VERIFICATION = experts_pb2.EXPERT_STATUS_PENDING_VERIFICATION
RESTRICTED = experts_pb2.EXPERT_STATUS_RESTRICTED
REJECTED = experts_pb2.EXPERT_STATUS_REJECTED
DEAUTHORIZED = experts_pb2.EXPERT_STATUS_DEAUTHORIZED


def _creation(**fields: Any) -> experts_pb2.CreateExpertAccountRequest:
    given = {"expert_id": "ann", "name": "Ann", "email": "ann@example.com", **fields}
    return experts_pb2.CreateExpertAccountRequest(**given)


async def test_an_account_is_made_once_and_every_answer_has_a_fresh_link(world: World) -> None:
    answers = await asyncio.gather(
        *(world.experts.CreateExpertAccount(_creation()) for _ in range(8))
    )
    assert len({answer.expert.stripe_account_id for answer in answers}) == 1
    assert len({answer.onboarding_url for answer in answers}) == 8
    assert answers[0].expert.status == ONBOARDING
    assert (answers[0].expert.country, answers[0].expert.commission_basis_points) == ("US", 1_000)
    assert len(await world.stripe.effects("account_created")) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Anne"}, "name"),
        ({"email": "anne@example.com"}, "email"),
        ({"country": "DE"}, "country"),
        ({"business_type": experts_pb2.BUSINESS_TYPE_COMPANY}, "business_type"),
        ({"commission_basis_points": 1_000}, "commission_basis_points"),
    ],
)
async def test_another_description_of_an_expert_is_refused_and_names_the_field(
    world: World, changes: dict[str, Any], field: str
) -> None:
    await world.experts.CreateExpertAccount(_creation())
    before = await world.experts.GetExpert(experts_pb2.GetExpertRequest(expert_id="ann"))
    await world.settle_down()
    rows = world.counts()
    refused = await refusal(world.experts.CreateExpertAccount(_creation(**changes)))
    assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "EXPERT_ALREADY_EXISTS")
    assert refused.facts["field"] == field
    assert world.counts() == rows
    assert await world.experts.GetExpert(experts_pb2.GetExpertRequest(expert_id="ann")) == before


async def test_a_country_that_cannot_be_paid(world: World) -> None:
    refused = await refusal(world.experts.CreateExpertAccount(_creation(country="jp")))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "COUNTRY_UNSUPPORTED")
    assert refused.facts == {"country": "JP", "platform_country": "US"}
    assert world.counts()["experts"] == 0


async def test_onboarding_from_link_to_ready(start_world: StartWorld) -> None:
    world = await start_world(allowed_origins=("https://app.example.com",))
    created = await world.experts.CreateExpertAccount(
        _creation(continue_url="https://app.example.com/done")
    )
    refused = await refusal(
        world.experts.CreateDashboardLink(experts_pb2.CreateDashboardLinkRequest(expert_id="ann"))
    )
    assert refused.reason == "ONBOARDING_INCOMPLETE"
    refused = await refusal(world.payments.InitiatePayment(world.initiation("ann")))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "EXPERT_NOT_READY")
    assert refused.facts["status"] == "ONBOARDING"
    assert refused.facts["requirements_due"]
    async with (
        aiohttp.ClientSession() as browser,
        browser.post(created.onboarding_url, allow_redirects=False) as page,
    ):
        landing = page.headers["Location"]
    token = landing.partition("token=")[2]
    seen = await world.onboarding.GetOnboardingStatus(
        onboarding_pb2.GetOnboardingStatusRequest(onboarding_token=token)
    )
    assert (seen.status, seen.continue_url) == (READY, "https://app.example.com/done")
    link = await world.experts.CreateDashboardLink(
        experts_pb2.CreateDashboardLinkRequest(expert_id="ann")
    )
    assert link.url.startswith("http")
    with world.session() as cursor:
        cursor.execute("SELECT onboarding_tokens::text FROM onboarding_tokens")
        assert not any(token in row for (row,) in cursor.fetchall())
    for onward in ("https://evil.example.com/", "https://app.example.com@evil.example", "//x"):
        refused = await refusal(
            world.experts.RefreshOnboarding(
                experts_pb2.RefreshOnboardingRequest(expert_id="ann", continue_url=onward)
            )
        )
        assert (refused.code, list(refused.fields)) == ("INVALID_ARGUMENT", ["continue_url"])


async def test_ready_by_polling_without_a_webhook(world: World) -> None:
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    expert = await world.expert(ready=False)
    refused = await refusal(world.payments.InitiatePayment(world.initiation(expert)))
    assert refused.reason == "EXPERT_NOT_READY"
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding")
    assert (await world.initiate(expert)).client_secret
    again = await world.experts.GetExpert(experts_pb2.GetExpertRequest(expert_id=expert))
    assert again.expert.status == READY


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (
            {
                "disabled_reason": "requirements.past_due",
                "currently_due": ["individual.id_number"],
                "capabilities": {"transfers": "inactive"},
            },
            RESTRICTED,
        ),
        (
            {"disabled_reason": "rejected.fraud", "capabilities": {"transfers": "inactive"}},
            REJECTED,
        ),
    ],
    ids=["restricted", "rejected"],
)
async def test_a_webhook_changes_an_experts_status(
    world: World, given: dict[str, Any], status: experts_pb2.ExpertStatus.ValueType
) -> None:
    expert = await world.expert()
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/restrict", given)
    seen = await world.expert_status(expert, status)
    assert seen.disabled_reason == given["disabled_reason"]
    assert not seen.transfers_active
    refused = await refusal(world.payments.InitiatePayment(world.initiation(expert)))
    assert refused.reason == "EXPERT_NOT_READY"
    assert refused.facts["disabled_reason"] == given["disabled_reason"]
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    await world.expert_status(expert, READY)
    assert (await world.initiate(expert)).client_secret


async def test_an_expert_who_leaves_while_money_is_in_escrow(world: World) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert)
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/deauthorize")
    await world.expert_status(expert, DEAUTHORIZED)
    for call in (
        world.payments.InitiatePayment(world.initiation(expert)),
        world.experts.CreateDashboardLink(experts_pb2.CreateDashboardLinkRequest(expert_id=expert)),
        world.experts.RefreshOnboarding(experts_pb2.RefreshOnboardingRequest(expert_id=expert)),
    ):
        assert (await refusal(call)).code == "FAILED_PRECONDITION"
    # The client can still have the money back.
    await world.refund(held.payment_id)
    await check_books(world)


async def test_a_missing_or_impossible_commission_is_refused(world: World) -> None:
    expert = await world.expert()
    for given in ({}, {"commission_basis_points": -1}, {"commission_basis_points": 10_000}):
        request = experts_pb2.SetCommissionRequest(expert_id=expert, **given)
        refused = await refusal(world.experts.SetCommission(request))
        assert list(refused.fields) == ["commission_basis_points"]
    for rate in (0, 9_999):
        answer = await world.experts.SetCommission(
            experts_pb2.SetCommissionRequest(expert_id=expert, commission_basis_points=rate)
        )
        assert answer.expert.commission_basis_points == rate
    refused = await refusal(world.payments.InitiatePayment(world.initiation(expert, 50)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "COMMISSION_TOO_LARGE")


async def test_a_refused_account_can_be_corrected(world: World) -> None:
    await world.stripe.fault("/accounts$", "status", status=400, code="email_invalid")
    refused = await refusal(world.experts.CreateExpertAccount(_creation(email="a@b.example")))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "REFUSED_BY_PROCESSOR")
    answer = await world.experts.CreateExpertAccount(_creation())
    assert answer.expert.stripe_account_id
    assert answer.expert.email == "ann@example.com"
