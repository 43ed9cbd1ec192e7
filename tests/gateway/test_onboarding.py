"""The landing pages, as a browser gets them."""

from html.parser import HTMLParser

import aiohttp
import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from multidict import CIMultiDictProxy
from typing_extensions import override

from gateway.pages import STANDINGS
from marketplace.payments.v1 import experts_pb2
from tests.gateway.conftest import StartGateway
from tests.gateway.fake_core import FakeCore
from tests.gateway.tricks import TRICKS

TOKEN = "tok-EN_0123456789abcdef"
Status = experts_pb2.ExpertStatus


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: dict[str, str] = {}
        self.buttons: dict[str, str] = {}
        self.text = ""
        self._link: str | None = None
        self._form = ""
        self._inside = ""
        self.feed(text)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        self._link = dict(attrs).get("href") if tag == "a" else None
        if tag == "form":
            assert dict(attrs)["method"] == "post"
            self._form = dict(attrs)["action"] or ""

    @override
    def handle_data(self, data: str) -> None:
        if self._link is not None:
            self.links[data] = self._link
            self._link = None
        if self._inside == "button" and data.strip():
            self.buttons[data] = self._form
        if self._inside != "style":
            self.text += data


async def get(
    browser: aiohttp.ClientSession, url: str, method: str = "GET", **sent: str
) -> tuple[int, CIMultiDictProxy[str], str]:
    names = {name.replace("_", "-"): value for name, value in sent.items()}
    async with browser.request(method, url, headers=names, allow_redirects=False) as response:
        headers = response.headers
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Server"] == "gateway"
        return response.status, headers, await response.text()


@pytest.mark.parametrize(
    "case",
    [
        (Status.EXPERT_STATUS_CREATING, 0, False),
        (Status.EXPERT_STATUS_ONBOARDING, 0, True),
        (Status.EXPERT_STATUS_ONBOARDING, 4, True),
        (Status.EXPERT_STATUS_PENDING_VERIFICATION, 0, False),
        (Status.EXPERT_STATUS_PENDING_VERIFICATION, 1, True),
        (Status.EXPERT_STATUS_READY, 0, False),
        (Status.EXPERT_STATUS_READY, 2, True),
        (Status.EXPERT_STATUS_RESTRICTED, 0, False),
        (Status.EXPERT_STATUS_RESTRICTED, 3, True),
        (Status.EXPERT_STATUS_REJECTED, 3, False),
        (Status.EXPERT_STATUS_DEAUTHORIZED, 3, False),
        (Status.EXPERT_STATUS_UNSPECIFIED, 0, False),
    ],
)
async def test_return_page_says_the_status(
    core: FakeCore,
    gateway: str,
    browser: aiohttp.ClientSession,
    case: tuple[experts_pb2.ExpertStatus.ValueType, int, bool],
) -> None:
    status, due, continues = case
    core.set_status(status, token=TOKEN, due=due)
    code, headers, text = await get(browser, f"{gateway}/onboarding/return?token={TOKEN}")
    page = Page(text)
    assert code == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert ("Continue with Stripe" in page.buttons) is continues
    if continues:
        assert page.buttons["Continue with Stripe"] == f"refresh?token={TOKEN}"
    if (status, due) == (Status.EXPERT_STATUS_RESTRICTED, 0):
        assert "Stripe has paused this account" in page.text
        assert "asks nothing of you" in page.text
    elif status in STANDINGS:
        assert STANDINGS[status].title in page.text
    assert page.tags.count("h1") == 1
    assert not {"script", "img", "link", "iframe", "input"} & set(page.tags)
    assert "style=" not in text


async def test_what_stripe_will_ask_for_is_shown_with_its_day(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    later = Timestamp(seconds=1_830_297_600)  # 1 January 2028
    core.set_status(
        Status.EXPERT_STATUS_READY,
        token=TOKEN,
        due=2,
        continue_url="https://app.example/done",
        requirements_due_time=Timestamp(seconds=1_798_761_600),  # 1 January 2027
        future_requirements_count=1,
        future_requirements_due_time=later,
    )
    code, _, text = await get(browser, f"{gateway}/onboarding/return?token={TOKEN}")
    page = Page(text)
    # The page is shown although the expert is ready and could continue in the app.
    assert code == 200
    assert "Stripe still asks for 2 things, by 1 January 2027." in page.text
    assert "Stripe will ask for one thing by 1 January 2028." in page.text
    assert set(page.links) == {"Back to the app"}
    assert set(page.buttons) == {"Continue with Stripe"}


def test_every_status_has_its_words() -> None:
    assert set(STANDINGS) == set(Status.values()) - {Status.EXPERT_STATUS_UNSPECIFIED}


async def test_ready_leads_onward_and_the_others_offer_it(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    onward = 'https://app.example/done?a=1&b="><script>alert(1)</script>'
    core.set_status(Status.EXPERT_STATUS_READY, token=TOKEN, continue_url=onward)
    code, headers, _ = await get(browser, f"{gateway}/onboarding/return?token={TOKEN}")
    assert (code, headers["Location"]) == (303, onward)
    core.set_status(Status.EXPERT_STATUS_RESTRICTED, token=TOKEN, due=1, continue_url=onward)
    code, _, text = await get(browser, f"{gateway}/onboarding/return?token={TOKEN}")
    assert code == 200
    assert Page(text).links["Back to the app"] == onward
    assert "<script" not in text
    assert "one thing" in text


async def test_no_trick_leads_out(
    core: FakeCore, start_gateway: StartGateway, browser: aiohttp.ClientSession
) -> None:
    gateway = await start_gateway(gateway_page_calls_per_minute=1_000)
    # Those of the list that are meant for `allowed.example`, turned against this gateway's own.
    tricks = [trick.replace("allowed.example", "app.example") for trick in TRICKS]
    for onward in [trick for trick in tricks if "localhost" not in trick]:
        core.set_status(Status.EXPERT_STATUS_READY, token=TOKEN, continue_url=onward)
        code, headers, text = await get(browser, f"{gateway}/onboarding/return?token={TOKEN}")
        assert (code, headers.get("Location")) == (200, None), onward
        assert Page(text).links == {}, onward


async def test_without_allowed_origins_nothing_leads_out(
    core: FakeCore, start_gateway: StartGateway, browser: aiohttp.ClientSession
) -> None:
    gateway = await start_gateway(allowed_origins="")
    core.set_status(Status.EXPERT_STATUS_READY, token=TOKEN, continue_url="https://app.example/")
    code, _, text = await get(browser, f"{gateway}/onboarding/return?token={TOKEN}")
    assert (code, Page(text).links) == (200, {})


#: What a browser says of the button on our own page.
OURS = {"Sec_Fetch_Site": "same-origin", "Origin": "null"}


async def test_the_button_leads_to_a_new_link(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    core.set_status(Status.EXPERT_STATUS_ONBOARDING, token=TOKEN)
    url = f"{gateway}/onboarding/refresh?token={TOKEN}"
    code, headers, text = await get(browser, url)
    assert (code, Page(text).buttons) == (200, {"Continue with Stripe": f"refresh?token={TOKEN}"})
    # A browser holds the form's redirect against this.
    policy = headers["Content-Security-Policy"]
    assert "form-action 'self' https://*.stripe.com http://127.0.0.1:*" in policy
    code, headers, _ = await get(browser, url, "POST", **OURS)
    assert (code, headers["Location"]) == (303, core.onboarding_url)
    core.onboarding_url = "http://127.0.0.1:12111/onboarding/abc"
    code, headers, _ = await get(browser, url, "POST", **OURS)
    assert (code, headers["Location"]) == (303, core.onboarding_url)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_preview_changes_nothing(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession, method: str
) -> None:
    core.set_status(Status.EXPERT_STATUS_READY, token=TOKEN, continue_url="https://app.example/")
    for page in ("return", "refresh"):
        for more in ({}, {"Sec_Purpose": "prefetch"}, {"Sec_Fetch_Site": "cross-site"}):
            code, headers, _ = await get(
                browser, f"{gateway}/onboarding/{page}?token={TOKEN}", method, **more
            )
            assert "stripe" not in headers.get("Location", "")
            assert code == (303 if page == "return" else 200)
    assert set(core.calls) == {"GetOnboardingStatus"}


@pytest.mark.parametrize(
    ("sent", "is_ours"),
    [
        ({"Sec_Fetch_Site": "same-origin"}, True),
        ({"Sec_Fetch_Site": "same-origin", "Origin": "null"}, True),
        # Browsers without it.
        ({"Origin": "https://pay.example.com"}, True),
        ({"Origin": "null"}, True),
        ({}, True),
        ({"Sec_Fetch_Site": "cross-site", "Origin": "null"}, False),
        ({"Sec_Fetch_Site": "cross-site", "Origin": "https://pay.example.com"}, False),
        ({"Sec_Fetch_Site": "same-site"}, False),
        ({"Sec_Fetch_Site": "none"}, False),
        ({"Sec_Fetch_Site": ""}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "http://pay.example.com"}, False),
        ({"Origin": "https://pay.example.com.evil.example"}, False),
        ({"Origin": "https://app.example"}, False),
    ],
)
async def test_a_form_of_another_site_only_shows_the_page(
    core: FakeCore,
    start_gateway: StartGateway,
    browser: aiohttp.ClientSession,
    sent: dict[str, str],
    is_ours: bool,
) -> None:
    gateway = await start_gateway(gateway_public_url="https://pay.example.com/payments")
    core.set_status(Status.EXPERT_STATUS_ONBOARDING, token=TOKEN)
    url = f"{gateway}/onboarding/refresh?token={TOKEN}"
    code, headers, _ = await get(browser, url, "POST", **sent)
    assert code == 303
    where = core.onboarding_url if is_ours else f"refresh?token={TOKEN}"
    assert headers["Location"] == where
    assert core.calls == (["CreateOnboardingLink"] if is_ours else [])


async def test_a_used_link_of_a_ready_expert_shows_both_ways(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    core.set_status(Status.EXPERT_STATUS_READY, token=TOKEN, continue_url="https://app.example/")
    code, _, text = await get(browser, f"{gateway}/onboarding/refresh?token={TOKEN}")
    page = Page(text)
    assert (code, set(page.links), set(page.buttons)) == (
        200,
        {"Back to the app"},
        {"Continue with Stripe"},
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/",
        "https://evil.example/",
        "https://stripe.com.evil.example/",
        "javascript:alert(1)",
        "//evil.example",
    ],
)
async def test_the_button_leads_nowhere_unsafe(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession, url: str
) -> None:
    core.set_status(Status.EXPERT_STATUS_ONBOARDING, token=TOKEN)
    core.onboarding_url = url
    code, headers, text = await get(
        browser, f"{gateway}/onboarding/refresh?token={TOKEN}", "POST", **OURS
    )
    assert (code, headers.get("Location")) == (503, None)
    assert "evil" not in text


async def test_in_production_the_simulator_is_nowhere_to_go(
    core: FakeCore, start_gateway: StartGateway, browser: aiohttp.ClientSession, unused_port: int
) -> None:
    gateway = await start_gateway(
        environment="production",
        gateway_public_url="https://pay.example.com",
        gateway_port=unused_port,
        allowed_origins="https://app.example",
    )
    core.set_status(Status.EXPERT_STATUS_ONBOARDING, token=TOKEN)
    core.onboarding_url = "http://127.0.0.1:12111/onboarding/abc"
    url = f"{gateway}/onboarding/refresh?token={TOKEN}"
    code, _, _ = await get(browser, url, "POST", **OURS)
    assert code == 503
    _, headers, _ = await get(browser, url)
    assert "form-action 'self' https://*.stripe.com;" in headers["Content-Security-Policy"]


async def test_a_button_without_a_link_goes_back_to_say_why(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    core.set_status(Status.EXPERT_STATUS_REJECTED, token=TOKEN)
    core.onboarding_url = ""
    url = f"{gateway}/onboarding/refresh?token={TOKEN}"
    async with browser.post(url) as response:  # following redirects
        assert response.status == 200
        assert response.url.path == "/onboarding/return"
        assert "turned this account down" in await response.text()


@pytest.mark.parametrize("page", ["return", "refresh"])
@pytest.mark.parametrize(
    "query",
    [
        "",
        "?token=",
        "?token=short",
        "?token=" + "a" * 129,
        "?token=%3Cscript%3Ealert(1)%3C/script%3E",
        "?token=aaaaaaaaaaaaaaaaaaaaaaaa%00",
        "?token=aaaaaaaaaaaaaaaaaaaaaaaa%0A",
        "?token=aaaaaaaaaaaaaaaaaaaaaaa%C3%A9",
        "?token=aaaaaaaaaaaaaaaaaaaaaaa%FF",
        "?token=aaaaaaaaaaaaaaaaaaaaaaaa&token=aaaaaaaaaaaaaaaaaaaaaaaa",
    ],
)
async def test_malformed_token_is_404_without_asking(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession, page: str, query: str
) -> None:
    from yarl import URL  # noqa: PLC0415 - only here, to keep the query exactly as written

    url = URL(f"{gateway}/onboarding/{page}{query}", encoded=True)
    async with browser.get(url) as response:
        assert response.status == 404
        text = await response.text()
    assert "no longer valid" in text
    assert "alert" not in text
    assert core.calls == []


@pytest.mark.parametrize("page", ["return", "refresh"])
@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT])
async def test_unknown_token_is_404(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession, page: str, code: grpc.StatusCode
) -> None:
    core.failure = code
    status, _, text = await get(browser, f"{gateway}/onboarding/{page}?token={TOKEN}")
    assert status == 404
    assert "ask for a new one in the app" in text.lower()


@pytest.mark.parametrize("page", ["return", "refresh"])
@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_anything_else_is_503_with_a_way_to_try_again(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession, page: str, code: grpc.StatusCode
) -> None:
    core.failure = code
    status, headers, text = await get(browser, f"{gateway}/onboarding/{page}?token={TOKEN}")
    assert (status, headers["Retry-After"]) == (503, "10")
    assert Page(text).links == {"Try again": f"{page}?token={TOKEN}"}
    assert "inside" not in text


async def test_unavailable_core_is_503(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    await core.stop()
    status, _, _ = await get(browser, f"{gateway}/onboarding/refresh?token={TOKEN}")
    assert status == 503


async def test_unknown_page_is_a_page(gateway: str, browser: aiohttp.ClientSession) -> None:
    status, headers, _ = await get(browser, f"{gateway}/onboarding/elsewhere")
    assert (status, headers["Content-Type"]) == (404, "text/html; charset=utf-8")
    async with browser.post(f"{gateway}/onboarding/return?token={TOKEN}") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
