"""Requests that two servers might read in two ways, and what every answer carries."""

import asyncio
import time
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.fake_core import FakeCore, event, sign
from tests.gateway.raw import PATH, answer, connected, head, is_closed

BODY = event("evt_x")
#: For what is refused before anybody asks when it was signed. A signature is stale after minutes,
#: and this module may be loaded long before its tests run.
SIGNED = f"Stripe-Signature: {sign(BODY)}"
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
#: What a smuggler wants to be read as a request of its own.
HIDDEN = b"GET /live HTTP/1.1\r\nHost: gateway\r\n\r\n"


async def all_of(address: str, data: bytes) -> bytes:
    """Everything that is answered until the gateway hangs up."""
    async with connected(address) as (reader, writer):
        writer.write(data)
        async with asyncio.timeout(5):
            return await reader.read()


def get(target: str, version: str = "1.1", *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/{version}", "Host: gateway", *headers, "", ""]).encode(
        "latin-1"
    )


SMUGGLED = {
    "two lengths": (head(SIGNED, LENGTH, "Content-Length: 3") + BODY, 400),
    "the same length twice": (head(SIGNED, LENGTH, LENGTH) + BODY, 400),
    "a list of lengths": (head(SIGNED, f"{LENGTH}, {len(BODY)}") + BODY, 400),
    "a length with a plus": (head(SIGNED, f"Content-Length: +{len(BODY)}") + BODY, 400),
    "a length without end": (head(SIGNED, "Content-Length: " + "9" * 30) + BODY, 400),
    "a space before the colon": (head(SIGNED, LENGTH.replace(":", " :")) + BODY, 400),
    "length and chunks": (head(SIGNED, LENGTH, "Transfer-Encoding: chunked") + CHUNKED, 400),
    "chunks and length": (head(SIGNED, "Transfer-Encoding: chunked", LENGTH) + CHUNKED, 400),
    "chunked twice": (head(SIGNED, "Transfer-Encoding: chunked, chunked") + CHUNKED, 400),
    "chunked in two lines": (head(SIGNED, *["Transfer-Encoding: chunked"] * 2) + CHUNKED, 400),
    "another coding": (head(SIGNED, "Transfer-Encoding: xchunked") + CHUNKED, 400),
    "identity": (head(SIGNED, "Transfer-Encoding: identity") + BODY, 400),
    "compressed chunks": (head(SIGNED, "Transfer-Encoding: gzip, chunked") + CHUNKED, 415),
    "a control byte": (head(SIGNED, "Transfer-Encoding: \x0bchunked") + CHUNKED, 400),
    "chunks of 1.0": (
        head(SIGNED, "Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKED,
        400,
    ),
    "a negative chunk": (head(SIGNED, "Transfer-Encoding: chunked") + b"-1\r\n", 400),
    "a chunk in hexadecimal": (head(SIGNED, "Transfer-Encoding: chunked") + b"0x1\r\nx\r\n", 400),
    "a chunk without end": (head(SIGNED, "Transfer-Encoding: chunked") + b"f" * 64 + b"\r\n", 400),
    "lines that end in LF": (head(SIGNED, LENGTH).replace(b"\r\n", b"\n") + BODY, 400),
    "a length in a trailer": (
        head(SIGNED, "Transfer-Encoding: chunked") + CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n",
        400,
    ),
}


@pytest.mark.parametrize("case", SMUGGLED)
async def test_a_body_with_two_readings_is_refused_and_nothing_behind_it_is_read(
    core: FakeCore, gateway: str, case: str
) -> None:
    data, status = SMUGGLED[case]
    said = await all_of(gateway, data + HIDDEN)
    assert said.startswith(b"HTTP/1.")
    assert said.split()[1] == str(status).encode()
    assert said.count(b"HTTP/1.") == 1
    assert core.webhook_events == {}


@pytest.mark.parametrize(
    "request_",
    [
        get("http://gateway/live"),
        get("https://evil.example/live"),
        get("http://[::1/live"),
        get("http://a:99999/live"),
        get("*"),
        get("live"),
        get("\\live"),
        get("/live#x"),
        get("/%6cive"),
        get("/onboarding/%72eturn?token=" + "a" * 24),
        get("/li\x00ve"),
        get("/liv\xe9"),
        get("/live", "2.0"),
        get("/live", "1.2"),
        get("/live", "1.1", "Host: evil.example"),
        get("/live", "1.1", "X: a\x00b"),
        get("/live", "1.1", "X\xe9: b"),
        get("/live", "1.1", "Expect: <canary>"),
        b"GET /live\r\n\r\n",
        b"GET /live HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
        b"canary /live HTTP/1.1\r\nHost: gateway\r\n\r\n",
    ],
    ids=lambda data: repr(data[:40]),
)
async def test_odd_requests_are_told_one_and_the_same(gateway: str, request_: bytes) -> None:
    said = await all_of(gateway, request_)
    heading, _, body = said.partition(b"\r\n\r\n")
    assert heading.split()[1] == b"400"
    assert body == b'{"error": "refused"}'
    for part in (b"aiohttp", b"Python", b"canary", b"evil"):
        assert part not in said
    assert b"\r\nServer: gateway" in heading
    assert b"\r\nContent-Security-Policy: default-src 'none'" in heading
    assert b"\r\nX-Content-Type-Options: nosniff" in heading


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([SIGNED, "Content-Length: 100", "Content-Encoding: gzip"], b"415"),
        ([SIGNED, "Content-Length: 4194305"], b"413"),
        (["Content-Length: 100"], b"400"),
    ],
)
async def test_a_body_that_will_be_refused_is_not_asked_for(
    gateway: str, headers: list[str], status: bytes
) -> None:
    said = await all_of(gateway, head(*headers, "Expect: 100-continue"))
    assert said.split()[1] == status


def _signed_now() -> str:
    return f"Stripe-Signature: {sign(BODY)}"


async def test_a_body_that_may_pass_is_asked_for(gateway: str) -> None:
    async with connected(gateway) as (reader, writer):
        writer.write(head(_signed_now(), LENGTH, "Expect: 100-continue"))
        async with asyncio.timeout(5):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await answer(reader))[0] == 200


async def test_headers_have_a_bound_together(core: FakeCore, gateway: str) -> None:
    cookies = ["Cookie: " + "a=b; " * 800] * 3
    async with connected(gateway) as (reader, writer):
        writer.write(head(_signed_now(), LENGTH, *cookies) + BODY)
        assert await answer(reader) == (
            200,
            b'{"received": true, "event_id": "evt_x", "duplicate": false}',
        )
    async with connected(gateway) as (reader, writer):
        writer.write(head(_signed_now(), LENGTH, *cookies * 2) + BODY)
        assert await answer(reader) == (431, b'{"error": "refused"}')
        assert await is_closed(reader, within=3)
    assert core.calls == ["IngestEvent"]


async def test_refused_requests_are_counted_by_what_is_wrong(
    start_gateway: StartGateway, browser: aiohttp.ClientSession, unused_port: int
) -> None:
    gateway = await start_gateway(gateway_metrics_port=unused_port)
    for request in (get("*"), get("/live", "2.0"), get("/live#x"), b"canary\r\n\r\n"):
        await all_of(gateway, request)
    async with browser.get(f"http://127.0.0.1:{unused_port}/metrics") as response:
        assert response.headers["Server"] == "gateway"
        counted = await response.text()
    for reason, number in (("unparsable", 2), ("version", 1), ("target", 1)):
        assert f'gateway_requests_refused_total{{reason="{reason}"}} {number}.0' in counted
    assert "canary" not in counted


async def test_pipelined_requests_are_answered_in_turn(core: FakeCore, gateway: str) -> None:
    post = head(_signed_now(), LENGTH) + BODY
    async with connected(gateway) as (reader, writer):
        writer.write((post + HIDDEN) * 20)
        statuses = [(await answer(reader))[0] for _ in range(40)]
    assert statuses == [200] * 40
    assert len(core.webhook_events) == 1


async def test_a_client_that_never_reads_holds_no_other_up(
    start_gateway: StartGateway, browser: aiohttp.ClientSession
) -> None:
    gateway = await start_gateway(gateway_max_connections=8)
    async with AsyncExitStack() as stack:
        for _ in range(8):
            _, writer = await stack.enter_async_context(connected(gateway))
            writer.write(HIDDEN * 5_000)
        for _ in range(20):
            async with browser.get(f"{gateway}/live") as response:
                assert response.status == 200


#: How a connection may begin that is to be held open.
_BEGINNINGS = (
    b"",
    b"POST ",
    head(SIGNED)[:-2],
    head(SIGNED, "Content-Length: 1000") + b"{",
    head(SIGNED, "Transfer-Encoding: chunked") + b"1\r\nx\r\n",
)


@pytest.mark.parametrize("bound", [64, 512])
async def test_500_half_open_sockets_leave_legitimate_calls_working(
    core: FakeCore, start_gateway: StartGateway, browser: aiohttp.ClientSession, bound: int
) -> None:
    gateway = await start_gateway(
        gateway_max_connections=bound, gateway_keepalive_seconds=6, gateway_body_timeout_seconds=6
    )
    seconds = []
    async with AsyncExitStack() as stack:
        readers = []
        for number in range(500):
            reader, writer = await stack.enter_async_context(connected(gateway))
            writer.write(_BEGINNINGS[number % len(_BEGINNINGS)])
            readers.append(reader)
        for number in range(50):
            body = event(f"evt_{number}")
            headers = {"Stripe-Signature": sign(body), "Connection": "close"}
            started = time.perf_counter()
            async with browser.post(gateway + PATH, data=body, headers=headers) as response:
                assert response.status == 200
            seconds.append(time.perf_counter() - started)
        async with browser.get(f"{gateway}/health") as response:
            assert response.status == 200
        # And each of them is hung up on, however it has begun.
        closed = await asyncio.gather(*(is_closed(reader, within=12) for reader in readers))
    assert all(closed)
    assert len(core.webhook_events) == 50
    assert sorted(seconds)[25] < 0.5


@pytest.mark.parametrize(
    ("public_url", "promised"),
    [("https://pay.example.com", "max-age=31536000"), ("http://127.0.0.1:8005", None)],
)
async def test_every_answer_has_its_headers(
    start_gateway: StartGateway,
    browser: aiohttp.ClientSession,
    public_url: str,
    promised: str | None,
) -> None:
    gateway = await start_gateway(gateway_public_url=public_url)
    stranger = {"Origin": "https://app.example"}
    for method, path in (
        ("GET", "/live"),
        ("GET", "/health"),
        ("OPTIONS", "/health"),
        ("GET", "/nowhere"),
        ("PUT", PATH),
        ("POST", PATH),
        ("GET", "/onboarding/return"),
        ("GET", "/onboarding/elsewhere"),
        ("DELETE", "/onboarding/refresh"),
        ("GET", "/%00"),
    ):
        async with browser.request(method, gateway + path, headers=stranger) as response:
            headers = response.headers
            assert headers.get("Strict-Transport-Security") == promised, path
            assert headers["Server"] == "gateway"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["X-Robots-Tag"] == "noindex, nofollow"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["Cache-Control"] == "no-store"
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            is_health = path in ("/live", "/health")
            assert ("Access-Control-Allow-Origin" in headers) is is_health, path


async def test_what_is_refused_tells_nothing_apart(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    body = event()
    late, early = sign(body, age=400), sign(body, age=-400)
    forged = ["", "t=1", late, early, sign(body, "whsec_connect"), sign(b"another")]
    said = set()
    for signature in forged:
        headers = {"Stripe-Signature": signature}
        async with browser.post(gateway + PATH, data=body, headers=headers) as response:
            shown = {name: value for name, value in response.headers.items() if name != "Date"}
            said.add((response.status, await response.text(), tuple(sorted(shown.items()))))
    assert len(said) == 1
    assert core.webhook_events == {}


async def test_questions_for_health_hold_no_place_against_webhooks(
    core: FakeCore, start_gateway: StartGateway, browser: aiohttp.ClientSession
) -> None:
    gateway = await start_gateway(gateway_max_connections=4)
    core.delay = 0.8
    async with AsyncExitStack() as stack:
        for _ in range(4):
            _, writer = await stack.enter_async_context(connected(gateway))
            writer.write(get("/health"))
        async with asyncio.timeout(2):
            while not core.calls:  # noqa: ASYNC110 - polls a server
                await asyncio.sleep(0.01)
        headers = {"Stripe-Signature": sign(BODY)}
        async with browser.post(gateway + PATH, data=BODY, headers=headers) as response:
            assert response.status == 200
