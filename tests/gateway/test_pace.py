"""How often one landing page may ask, since each time is a read at Stripe."""

import aiohttp

from gateway.pace import Pace
from marketplace.payments.v1 import experts_pb2
from tests.gateway.conftest import StartGateway
from tests.gateway.fake_core import FakeCore

TOKEN = "tok-EN_0123456789abcdef"
Status = experts_pb2.ExpertStatus


async def ask(browser: aiohttp.ClientSession, url: str, method: str = "GET") -> int:
    async with browser.request(method, url, allow_redirects=False) as response:
        return response.status


async def test_one_page_gets_a_share_of_the_reads_at_stripe(
    core: FakeCore, start_gateway: StartGateway, browser: aiohttp.ClientSession
) -> None:
    gateway = await start_gateway(gateway_page_calls_per_minute=3)
    other = TOKEN.swapcase()
    for token in (TOKEN, other):
        core.set_status(Status.EXPERT_STATUS_ONBOARDING, token=token)
    page = f"{gateway}/onboarding/return?token={TOKEN}"
    button = f"{gateway}/onboarding/refresh?token={TOKEN}"
    # Tokens that nobody has cost nothing, and push no other out.
    for number in range(5):
        unknown = f"{gateway}/onboarding/return?token={'A' * 40}{number}"
        assert await ask(browser, unknown) == 404
    core.calls.clear()
    answers = [
        await ask(browser, page),
        await ask(browser, button, "POST"),
        await ask(browser, page),
        await ask(browser, button, "POST"),
        await ask(browser, page),
    ]
    assert answers == [200, 303, 200, 503, 503]
    assert len(core.calls) == 3
    assert await ask(browser, page.replace(TOKEN, other)) == 200


def test_a_minute_later_a_page_may_ask_again() -> None:
    clock = [1_000.0]
    pace = Pace(2, lambda: clock[0])
    for _ in range(2):
        assert pace.admits(TOKEN)
        pace.count(TOKEN)
    assert not pace.admits(TOKEN)
    clock[0] += 59
    assert not pace.admits(TOKEN)
    clock[0] += 1
    assert pace.admits(TOKEN)
    pace.count(TOKEN)
    assert pace.admits(TOKEN)
    pace.count(TOKEN)
    assert not pace.admits(TOKEN)
