"""The tokens of landing pages: random, of one expert, stored as hashes, and not to be prolonged."""

from __future__ import annotations

import aiohttp

from marketplace.payments.v1 import experts_pb2, onboarding_pb2
from tests.support.errors import refusal
from tests.support.world import World


async def landing_of(url: str, outcome: str) -> str:
    """Where Stripe's form leads back to."""
    async with (
        aiohttp.ClientSession() as browser,
        browser.post(url, data={"outcome": outcome}, allow_redirects=False) as page,
    ):
        return page.headers["Location"]


async def test_a_renewed_link_leads_back_with_the_same_token(world: World) -> None:
    created = await world.experts.CreateExpertAccount(
        experts_pb2.CreateExpertAccountRequest(expert_id="ann", name="Ann", email="ann@example.com")
    )
    landing = await landing_of(created.onboarding_url, "unfinished")
    stored = world.sql("SELECT * FROM onboarding_tokens")
    assert len(stored) == 1
    request = onboarding_pb2.CreateOnboardingLinkRequest(
        onboarding_token=landing.partition("token=")[2]
    )
    links = [(await world.onboarding.CreateOnboardingLink(request)).onboarding_url for _ in "abc"]
    assert len(set(links)) == 3
    # A used link leads to the refreshing page of the same token.
    assert {await landing_of(link, "unfinished") for link in links} == {landing}
    assert await landing_of(links[0], "unfinished") == landing.replace("/return", "/refresh")
    assert world.sql("SELECT * FROM onboarding_tokens") == stored
    # Looking changes nothing either, and the end of its life is the end.
    look = onboarding_pb2.GetOnboardingStatusRequest(onboarding_token=request.onboarding_token)
    await world.onboarding.GetOnboardingStatus(look)
    assert world.sql("SELECT * FROM onboarding_tokens") == stored
    world.sql("UPDATE onboarding_tokens SET expire_time = now()")
    for call in (
        world.onboarding.CreateOnboardingLink(request),
        world.onboarding.GetOnboardingStatus(look),
    ):
        assert (await refusal(call)).reason == "ONBOARDING_TOKEN_NOT_FOUND"
