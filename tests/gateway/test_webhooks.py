"""Webhooks through the gateway into a core, by HTTP as Stripe speaks it."""

import asyncio
import time

import aiohttp
import grpc
import pytest

from gateway.webhooks import MAX_LARGE_BODIES, signature_fault
from tests.gateway.conftest import StartGateway
from tests.gateway.fake_core import FakeCore, event, sign

PLATFORM = "/api/v1/webhooks/stripe"
CONNECT = "/api/v1/webhooks/stripe/connect"


async def deliver(
    browser: aiohttp.ClientSession,
    address: str,
    body: bytes,
    headers: dict[str, str] | None = None,
    path: str = PLATFORM,
) -> tuple[int, object]:
    if headers is None:
        headers = {"Stripe-Signature": sign(body)}
    async with browser.post(address + path, data=body, headers=headers) as response:
        return response.status, await response.json()


async def test_event_is_stored_before_it_is_acknowledged(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    body = event("evt_a")
    assert await deliver(browser, gateway, body) == (
        200,
        {"received": True, "event_id": "evt_a", "duplicate": False},
    )
    assert core.webhook_events == {"evt_a": body}
    assert await deliver(browser, gateway, body) == (
        200,
        {"received": True, "event_id": "evt_a", "duplicate": True},
    )


async def test_raw_bytes_arrive_untouched(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    body = b'\r\n {"id" : "evt_raw", "n":1e2, "u":"\xc3\xa9\\u00e9" } \n'
    status, _ = await deliver(browser, gateway, body)
    assert status == 200
    assert core.webhook_events["evt_raw"] == body


async def test_each_address_has_its_own_secret(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    body = event("evt_c")
    headers = {"Stripe-Signature": sign(body, "whsec_connect")}
    assert (await deliver(browser, gateway, body, headers, PLATFORM))[0] == 400
    assert (await deliver(browser, gateway, body, headers, CONNECT))[0] == 200


async def test_two_signatures_while_a_secret_is_rotated(
    gateway: str, browser: aiohttp.ClientSession
) -> None:
    body = event("evt_rotated")
    _, _, new = sign(body).partition(",")
    old = sign(body, "whsec_retired")
    assert (await deliver(browser, gateway, body, {"Stripe-Signature": f"{old},{new}"}))[0] == 200


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "nonsense"])
async def test_content_type_does_not_matter(
    gateway: str, browser: aiohttp.ClientSession, content_type: str
) -> None:
    body = event()
    headers = {"Stripe-Signature": sign(body), "Content-Type": content_type}
    assert (await deliver(browser, gateway, body, headers))[0] == 200


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (code, 400 if code is grpc.StatusCode.INVALID_ARGUMENT else 503)
        for code in grpc.StatusCode
        if code is not grpc.StatusCode.OK
    ],
)
async def test_what_the_core_answers_decides(
    core: FakeCore,
    gateway: str,
    browser: aiohttp.ClientSession,
    code: grpc.StatusCode,
    status: int,
) -> None:
    core.failure = code
    body = event()
    headers = {"Stripe-Signature": sign(body)}
    async with browser.post(gateway + PLATFORM, data=body, headers=headers) as response:
        assert response.status == status
        assert "inside" not in await response.text()
        assert ("Retry-After" in response.headers) == (status == 503)


async def test_refusals_look_alike_from_core_and_gateway(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    body = event()
    answers = [
        await deliver(browser, gateway, body, {}),
        await deliver(browser, gateway, body, {"Stripe-Signature": sign(body, age=301)}),
    ]
    assert core.calls == []
    answers.append(await deliver(browser, gateway, body, {"Stripe-Signature": sign(body, "w")}))
    assert core.calls == ["IngestEvent"]
    assert answers == [(400, {"received": False, "error": "refused"})] * 3


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ("t={now},v1=aa", None),
        ("t={now},v1=aa,v1=bb,v0=cc", None),
        ("v1=aa, t={now}", None),
        ("t={old},v1=aa", None),
        ("t={too_old},v1=aa", "time_stale"),
        ("t={ahead},v1=aa", None),
        ("t={too_far_ahead},v1=aa", "time_in_future"),
        ("", "time_missing"),
        ("v1=aa", "time_missing"),
        ("t=,v1=aa", "time_missing"),
        ("t=-5,v1=aa", "time_missing"),
        ("t=1e9,v1=aa", "time_missing"),
        ("t=99999999999999999999,v1=aa", "time_missing"),
        ("t={now},t={now},v1=aa", "time_missing"),
        ("t={now}", "signature_malformed"),
        ("t={now},v0=aa", "signature_malformed"),
        ("t={now},v1=", "signature_malformed"),
        ("t={now},v1=\u00e9", "signature_malformed"),
        ("t={now},v1=\udcff", "signature_malformed"),
        ("t=\u0661,v1=aa", "signature_malformed"),
        ("t={now},v1=a\ta", "signature_malformed"),
    ],
)
def test_signature_header_is_judged_without_a_secret(header: str, fault: str | None) -> None:
    now = 1_800_000_000
    moments = {
        "now": now,
        "old": now - 300,
        "too_old": now - 301,
        "ahead": now + 60,
        "too_far_ahead": now + 61,
    }
    assert signature_fault(header.format(**moments), now) == fault


async def test_unavailable_core_is_503_at_once_and_recovers_by_itself(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    body = event()
    assert (await deliver(browser, gateway, body))[0] == 200
    await core.stop()
    started = time.perf_counter()
    status, answer = await deliver(browser, gateway, body)
    assert (status, answer) == (503, {"received": False, "error": "try_again_later"})
    assert time.perf_counter() - started < 2
    await core.start()
    async with asyncio.timeout(5):
        while (await deliver(browser, gateway, body))[0] != 200:  # noqa: ASYNC110 - polls a server
            await asyncio.sleep(0.1)


async def test_slow_core_is_503_after_our_own_deadline(
    core: FakeCore, start_gateway: StartGateway, browser: aiohttp.ClientSession
) -> None:
    gateway = await start_gateway(gateway_ingest_timeout_seconds=0.3)
    core.delay = 5
    started = time.perf_counter()
    assert (await deliver(browser, gateway, event()))[0] == 503
    assert time.perf_counter() - started < 2


async def test_no_more_forwards_than_the_bound(
    core: FakeCore, start_gateway: StartGateway, browser: aiohttp.ClientSession
) -> None:
    gateway = await start_gateway(gateway_max_forwards=2)
    core.delay = 0.5
    bodies = [event(f"evt_{number}") for number in range(8)]
    answers = await asyncio.gather(*(deliver(browser, gateway, body) for body in bodies))
    assert sorted(status for status, _ in answers) == [200] * 2 + [503] * 6
    assert len(core.webhook_events) == 2
    core.delay = 0
    assert (await deliver(browser, gateway, event("evt_later")))[0] == 200


async def test_largest_body_passes_and_one_byte_more_does_not(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    frame = len(event("evt_1"))
    body = event("evt_1", padding=4_194_304 - frame)
    assert len(body) == 4_194_304
    assert (await deliver(browser, gateway, body))[0] == 200
    body = event("evt_1", padding=4_194_305 - frame)
    status, answer = await deliver(browser, gateway, body)
    assert (status, answer) == (413, {"received": False, "error": "too_large"})
    assert core.calls == ["IngestEvent"]


async def test_of_many_large_bodies_at_once_some_are_told_to_come_again(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    core.delay = 0.5
    large = [event(f"evt_{number}", padding=300_000) for number in range(MAX_LARGE_BODIES + 2)]
    small = deliver(browser, gateway, event("evt_small"))
    answers = await asyncio.gather(*(deliver(browser, gateway, body) for body in large), small)
    assert sorted(status for status, _ in answers) == [200] * (MAX_LARGE_BODIES + 1) + [503] * 2
    assert "evt_small" in core.webhook_events
    core.delay = 0
    assert (await deliver(browser, gateway, large[-1]))[0] == 200


@pytest.mark.parametrize("core_says", ["stored", "ignored"])
async def test_an_event_that_the_core_ignores_is_acknowledged(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession, core_says: str
) -> None:
    core.ignores = core_says == "ignored"
    status, answer = await deliver(browser, gateway, event("evt_1"))
    event_id = "" if core.ignores else "evt_1"
    assert (status, answer) == (200, {"received": True, "event_id": event_id, "duplicate": False})


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", [PLATFORM, CONNECT])
async def test_webhooks_take_post_alone(
    gateway: str, browser: aiohttp.ClientSession, method: str, path: str
) -> None:
    headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    async with browser.request(method, gateway + path, headers=headers) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert "Access-Control-Allow-Origin" not in response.headers
