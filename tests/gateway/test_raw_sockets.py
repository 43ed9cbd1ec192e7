"""What no well-behaved client sends: bytes written by hand on plain sockets."""

import asyncio
import gzip
import time
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.fake_core import FakeCore, event, sign
from tests.gateway.raw import PATH, answer, connected, head, is_closed


async def exchange(address: str, data: bytes) -> tuple[int, bytes]:
    async with connected(address) as (reader, writer):
        writer.write(data)
        return await answer(reader)


async def test_chunked_body_is_put_together(core: FakeCore, gateway: str) -> None:
    body = event("evt_chunked", padding=1000)
    chunks = [body[start : start + 100] for start in range(0, len(body), 100)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    headers = head(f"Stripe-Signature: {sign(body)}", "Transfer-Encoding: chunked")
    assert (await exchange(gateway, headers + framed))[0] == 200
    assert core.webhook_events["evt_chunked"] == body


async def test_chunked_body_without_end_is_cut_at_the_limit(
    core: FakeCore, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(gateway_max_body_bytes=262_144)
    headers = head(f"Stripe-Signature: {sign(b'x')}", "Transfer-Encoding: chunked")
    async with connected(gateway) as (reader, writer):
        writer.write(headers)
        for _ in range(10):
            writer.write(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        assert (await answer(reader))[0] == 413
        assert await is_closed(reader, within=3)
    assert core.calls == []


async def test_announced_size_is_refused_before_the_body_comes(gateway: str) -> None:
    headers = head(f"Stripe-Signature: {sign(b'x')}", "Content-Length: 4194305")
    started = time.perf_counter()
    assert (await exchange(gateway, headers))[0] == 413
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity", "nonsense"])
@pytest.mark.parametrize("body", [gzip.compress(b"0" * 5_000_000), b"not gzip at all"])
async def test_compressed_bodies_are_refused_unopened(
    core: FakeCore, gateway: str, encoding: str, body: bytes
) -> None:
    headers = head(
        f"Stripe-Signature: {sign(body)}",
        f"Content-Encoding: {encoding}",
        f"Content-Length: {len(body)}",
    )
    assert (await exchange(gateway, headers + body))[0] == 415
    assert core.calls == []


async def test_slow_body_is_408_and_the_connection_ends(
    core: FakeCore, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(gateway_body_timeout_seconds=0.4)
    started = time.perf_counter()
    async with connected(gateway) as (reader, writer):
        writer.write(head(f"Stripe-Signature: {sign(b'x')}", "Content-Length: 1000"))
        trickle = asyncio.create_task(_trickle(writer))
        assert (await answer(reader))[0] == 408
        assert time.perf_counter() - started < 1.5
        assert await is_closed(reader, within=3)
        trickle.cancel()
    assert core.calls == []


async def _trickle(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.1)


async def test_sender_that_disconnects_during_the_body_disturbs_no_other(
    core: FakeCore, gateway: str
) -> None:
    async with connected(gateway) as (_, writer):
        writer.write(head(f"Stripe-Signature: {sign(b'x')}", "Content-Length: 1000") + b"half")
        await writer.drain()
    body = event()
    headers = head(f"Stripe-Signature: {sign(body)}", f"Content-Length: {len(body)}")
    assert (await exchange(gateway, headers + body))[0] == 200
    assert core.calls == ["IngestEvent"]


async def test_repeated_signature_is_refused(core: FakeCore, gateway: str) -> None:
    body = event()
    header = f"Stripe-Signature: {sign(body)}"
    data = head(header, header.lower(), f"Content-Length: {len(body)}") + body
    assert await exchange(gateway, data) == (400, b'{"received": false, "error": "refused"}')
    assert core.calls == []


@pytest.mark.parametrize(
    "headers",
    [
        ["X-Large: " + "x" * 5000],
        ["Stripe-Signature: t=1,v1=" + "a" * 5000],
        [f"X-{number}: x" for number in range(100)],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: -1"],
        ["Content-Length: 0x5"],
        ["Transfer-Encoding: chunked, identity"],
        ["Bad Name: x"],
        ["X-Nul: a\x00b"],
        [" folded: x"],
    ],
    ids=lambda headers: headers[0][:24],
)
async def test_malformed_headers_are_400(core: FakeCore, gateway: str, headers: list[str]) -> None:
    status, _ = await exchange(gateway, head(*headers))
    assert status == 400
    assert core.calls == []


async def test_long_request_line_is_400(gateway: str) -> None:
    assert (await exchange(gateway, head(path="/" + "x" * 5000, method="GET")))[0] == 400


async def test_bytes_that_are_not_http_are_400(gateway: str) -> None:
    assert (await exchange(gateway, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"))[0] == 400


async def test_broken_chunks_are_400(core: FakeCore, gateway: str) -> None:
    headers = head(f"Stripe-Signature: {sign(b'x')}", "Transfer-Encoding: chunked")
    assert (await exchange(gateway, headers + b"zz\r\nxx\r\n"))[0] == 400
    assert core.calls == []


async def test_malformed_signatures_are_400_never_500(core: FakeCore, gateway: str) -> None:
    for value in ("t=\xff,v1=\xff", "t=1,v1=a\xffb", "=,=,=", ",,,,", "t", "t=" + "9" * 3000):
        data = head(f"Stripe-Signature: {value}", "Content-Length: 2") + b"{}"
        assert (await exchange(gateway, data))[0] == 400
    assert core.calls == []


async def test_body_of_any_bytes_reaches_the_core_which_judges(
    core: FakeCore, gateway: str
) -> None:
    body = b"\xff\xfe\x00[[[[[" + b"9" * 5000
    data = head(f"Stripe-Signature: {sign(body, 'wrong')}", f"Content-Length: {len(body)}") + body
    assert (await exchange(gateway, data))[0] == 400
    assert core.calls == ["IngestEvent"]


async def test_half_open_headers_are_hung_up_on(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(gateway_keepalive_seconds=0.6)
    started = time.perf_counter()
    async with AsyncExitStack() as stack:
        silent, _ = await stack.enter_async_context(connected(gateway))
        half, writer = await stack.enter_async_context(connected(gateway))
        writer.write(head("X-Half: x")[:-2])
        trickling, writer = await stack.enter_async_context(connected(gateway))
        writer.write(b"POST / HTTP/1.1\r\nX: ")
        trickle = asyncio.create_task(_trickle(writer))
        for reader in (silent, half, trickling):
            assert await is_closed(reader, within=3)
        trickle.cancel()
    assert time.perf_counter() - started < 3


async def test_half_open_headers_on_a_kept_connection_are_hung_up_on(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(gateway_keepalive_seconds=0.6)
    async with connected(gateway) as (reader, writer):
        writer.write(head(method="GET", path="/live"))
        assert (await answer(reader))[0] == 200
        writer.write(head()[:-2])
        assert await is_closed(reader, within=3)


async def test_half_open_sockets_do_not_keep_webhooks_out(
    core: FakeCore, start_gateway: StartGateway, browser: aiohttp.ClientSession
) -> None:
    gateway = await start_gateway(gateway_max_connections=20)
    seconds = []
    async with AsyncExitStack() as stack:
        for number in range(200):
            _, writer = await stack.enter_async_context(connected(gateway))
            writer.write(head()[:-2])
            if number % 4 == 0:
                body = event(f"evt_{number}")
                headers = {"Stripe-Signature": sign(body), "Connection": "close"}
                started = time.perf_counter()
                async with browser.post(gateway + PATH, data=body, headers=headers) as response:
                    assert response.status == 200
                seconds.append(time.perf_counter() - started)
    assert len(core.webhook_events) == 50
    assert sorted(seconds)[-2] < 0.25


async def test_connections_with_requests_are_not_closed_for_others(
    core: FakeCore, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(gateway_max_connections=4)
    core.delay = 0.6
    body = event("evt_kept")
    async with AsyncExitStack() as stack:
        reader, writer = await stack.enter_async_context(connected(gateway))
        headers = head(f"Stripe-Signature: {sign(body)}", f"Content-Length: {len(body)}")
        writer.write(headers + body)
        async with asyncio.timeout(2):
            while not core.calls:  # noqa: ASYNC110 - polls a server
                await asyncio.sleep(0.01)
        crowd = [await stack.enter_async_context(connected(gateway)) for _ in range(40)]
        assert (await answer(reader))[0] == 200
        closed = [await is_closed(reader, within=0.05) for reader, _ in crowd]
        assert closed.count(False) <= 4
        assert closed[-1] is False
