"""What Stripe will ask of an expert, and by when, is known before payouts stop."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from marketplace.payments.v1 import experts_pb2, onboarding_pb2
from payment_service.application.onboarding import add_onboarding_token, hash_token
from tests.integration.conftest import StartWorld
from tests.support.world import World, until

#: What v1 calls `individual.id_number`, as each version of the API names it.
ID_NUMBER = {"v1": "individual.id_number", "v2": "identity.individual.id_numbers"}
READY = experts_pb2.EXPERT_STATUS_READY
RESTRICTED = experts_pb2.EXPERT_STATUS_RESTRICTED
TOKEN = "a-token-of-this-test-alone"
DAY = 24 * 3600


@pytest.fixture(params=["v2", "v1"])
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def world(start_world: StartWorld, api: str) -> World:
    """A platform whose experts' accounts are created by this version of Stripe's API."""
    world = await start_world(stripe_accounts_api=api)
    await world.stripe.control("POST", "/settings", {"accounts_v1_support": api == "v1"})
    return world


async def announce(world: World, expert: str, **given: Any) -> None:
    await world.stripe.control("POST", f"/accounts/{world.account_of(expert)}/announce", given)


async def asked(world: World, expert: str) -> experts_pb2.Expert:
    """Waits until the expert shows a deadline."""

    async def probe() -> experts_pb2.Expert | None:
        request = experts_pb2.GetExpertRequest(expert_id=expert)
        known = (await world.experts.GetExpert(request)).expert
        dated = known.HasField("requirements_due_time") or known.HasField(
            "future_requirements_due_time"
        )
        return known if dated else None

    return await until(probe, "the requirements")


def kinds(world: World, expert: str) -> list[str]:
    found = world.sql(
        "SELECT kind FROM expert_events WHERE expert_id = %s ORDER BY sequence", expert
    )
    return [kind for (kind,) in found]


async def landing(world: World, expert: str) -> onboarding_pb2.GetOnboardingStatusResponse:
    assert world.service is not None
    await world.service.app.database.transact(
        add_onboarding_token, hash_token(TOKEN), expert, "", 60.0
    )
    request = onboarding_pb2.GetOnboardingStatusRequest(onboarding_token=TOKEN)
    return await world.onboarding.GetOnboardingStatus(request)


async def test_a_future_requirement_is_shown_while_all_is_active(world: World, api: str) -> None:
    expert = await world.expert()
    by = int(time.time()) + 10 * DAY
    await announce(
        world, expert, future={"currently_due": ["individual.id_number"], "current_deadline": by}
    )
    known = await asked(world, expert)
    assert (known.status, known.payouts_enabled) == (READY, True)
    assert list(known.future_requirements) == [ID_NUMBER[api]]
    assert known.future_requirements_due_time.seconds == by
    assert not known.HasField("requirements_due_time")
    assert kinds(world, expert)[-1] == "expert.requirements_announced"
    [(body,)] = world.sql(
        "SELECT body::jsonb FROM expert_events WHERE kind = 'expert.requirements_announced'"
    )
    assert body["future_requirements"] == [ID_NUMBER[api]]
    assert datetime.fromisoformat(body["future_requirements_due_time"]).timestamp() == by
    assert world.service is not None
    backlog = await world.service.app.database.read(lambda reader: reader.backlog())
    assert [(one.state, one.count) for one in backlog if one.what == "expert"] == [
        ("REQUIREMENTS_DUE_SOON", 1)
    ]
    # It is not due yet, and given in time it is over.
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding")

    async def given() -> bool:
        request = experts_pb2.GetExpertRequest(expert_id=expert)
        return not (await world.experts.GetExpert(request)).expert.future_requirements

    await until(given, "the requirement is given")
    assert kinds(world, expert).count("expert.requirements_announced") == 1


async def test_what_is_not_given_in_time_restricts_the_account(world: World, api: str) -> None:
    expert = await world.expert()
    by = int(time.time()) + 30 * DAY
    await announce(world, expert, currently_due=["individual.id_number"], current_deadline=by)
    known = await asked(world, expert)
    assert (known.status, list(known.requirements_due)) == (READY, [ID_NUMBER[api]])
    assert known.requirements_due_time.seconds == by
    await world.stripe.control("POST", "/clock", {"advance_seconds": 31 * DAY})
    stopped = await world.expert_status(expert, RESTRICTED)
    assert not stopped.payouts_enabled


async def test_a_distant_requirement_is_no_backlog_yet(world: World) -> None:
    expert = await world.expert()
    by = datetime.now(UTC) + timedelta(days=90)
    await announce(
        world,
        expert,
        future={"currently_due": ["company.tax_id"], "current_deadline": int(by.timestamp())},
    )
    await asked(world, expert)
    assert world.service is not None
    backlog = await world.service.app.database.read(lambda reader: reader.backlog())
    assert not [one for one in backlog if one.what == "expert"]


@pytest.mark.parametrize("reason", ["under_review", "listed", "platform_paused", "other"])
async def test_a_paused_account_gets_no_link_in_circles(
    world: World, api: str, reason: str
) -> None:
    expert = await world.expert()
    account = world.account_of(expert)
    await world.stripe.control(
        "POST",
        f"/accounts/{account}/restrict",
        {"disabled_reason": reason, "currently_due": []},
    )
    known = await world.expert_status(expert, RESTRICTED)
    # v2 has one word for all of these.
    shown_reason = reason if api == "v1" else "other"
    assert (known.disabled_reason, list(known.requirements_due)) == (shown_reason, [])
    shown = await landing(world, expert)
    assert (shown.status, shown.requirements_due_count) == (RESTRICTED, 0)
    request = onboarding_pb2.CreateOnboardingLinkRequest(onboarding_token=TOKEN)
    assert (await world.onboarding.CreateOnboardingLink(request)).onboarding_url == ""
    # Once Stripe asks for something, there is a link again.
    await world.stripe.control("POST", f"/accounts/{account}/restrict")
    assert (await world.onboarding.CreateOnboardingLink(request)).onboarding_url


async def test_the_experts_to_be_warned_are_listed(world: World) -> None:
    experts = sorted([await world.expert() for _ in range(4)])
    now = int(time.time())
    for number, expert in enumerate(experts[:3]):
        by = now + (number + 1) * 10 * DAY
        due = {"currently_due": ["individual.id_number"], "current_deadline": by}
        await announce(world, expert, **({"future": due} if number % 2 else due))
        await asked(world, expert)

    async def listed(days: int, **fields: Any) -> list[str]:
        found: list[str] = []
        request = experts_pb2.ListExpertsRequest(page_size=1, **fields)
        if days:
            request.max_requirements_due_time.FromSeconds(now + days * DAY)
        while True:
            answer = await world.experts.ListExperts(request)
            found += [one.expert_id for one in answer.experts]
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    assert await listed(25) == experts[:2]
    assert await listed(35) == experts[:3]
    assert await listed(0) == experts
    assert await listed(35, statuses=[READY]) == experts[:3]
    assert await listed(35, statuses=[RESTRICTED]) == []
