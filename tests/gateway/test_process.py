"""`python -m gateway` as a process: its port, its end, and what its log does not say."""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from signal import SIGINT, SIGTERM

import aiohttp
import grpc
import pytest
from yarl import URL

from tests.gateway.fake_core import FakeCore, event, sign


@asynccontextmanager
async def process(**settings: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The process and the address that it printed."""
    environment = os.environ | {"GATEWAY_PORT": "0", "DEBUG": "", "LOG_LEVEL": ""} | settings
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(20):
            line = (await child.stdout.readline()).decode()
        assert line.startswith("gateway listening on http://127.0.0.1:"), line
        yield child, line.split()[-1]
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def post(browser: aiohttp.ClientSession, address: str, body: bytes) -> int:
    headers = {"Stripe-Signature": sign(body)}
    url = f"{address}/api/v1/webhooks/stripe"
    async with browser.post(url, data=body, headers=headers) as response:
        return response.status


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
async def test_signal_finishes_what_is_under_way_and_exits_0(
    core: FakeCore, browser: aiohttp.ClientSession, number: int
) -> None:
    core.delay = 0.8
    async with process(CORE_ADDRESS=core.address) as (child, address):
        under_way = asyncio.create_task(post(browser, address, event()))
        async with asyncio.timeout(5):
            while not core.calls:  # noqa: ASYNC110 - polls a server
                await asyncio.sleep(0.01)
        child.send_signal(number)
        await asyncio.sleep(0.3)
        with pytest.raises(aiohttp.ClientConnectorError):
            async with aiohttp.ClientSession() as another, another.get(f"{address}/live"):
                pass
        assert await under_way == 200
        async with asyncio.timeout(5):
            assert await child.wait() == 0


async def test_end_waits_no_longer_than_it_may(
    core: FakeCore, browser: aiohttp.ClientSession
) -> None:
    core.delay = 6
    async with process(CORE_ADDRESS=core.address, GATEWAY_SHUTDOWN_SECONDS="0.5") as (
        child,
        address,
    ):
        under_way = asyncio.create_task(post(browser, address, event()))
        url = URL(address)
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"POST / HTTP/1.1\r\nHalf-")
        async with asyncio.timeout(5):
            while not core.calls:  # noqa: ASYNC110 - polls a server
                await asyncio.sleep(0.01)
        started = time.perf_counter()
        child.send_signal(SIGTERM)
        async with asyncio.timeout(5):
            assert await child.wait() == 0
        assert time.perf_counter() - started < 2.5
        with pytest.raises(aiohttp.ClientError):
            await under_way
        writer.close()


async def test_log_is_one_json_line_a_request_and_tells_no_secrets(
    core: FakeCore, browser: aiohttp.ClientSession
) -> None:
    token = "canary_token_0123456789"
    body = b'{"id": "evt_logged", "canary": "canary_body"}'
    async with process(CORE_ADDRESS=core.address, LOG_LEVEL="debug") as (child, address):
        assert await post(browser, address, body) == 200
        for path in (
            f"/onboarding/return?token={token}",
            f"/onboarding/refresh?token={token}&x=canary_query",
            "/canary_path",
        ):
            async with browser.get(address + path, headers={"Cookie": "a=canary_cookie"}):
                pass
        url = URL(address)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"GET /?canary_line HTTP/1.1\r\nBad canary_header: x\r\n\r\n")
        await reader.read()
        writer.close()
        core.failure = grpc.StatusCode.INTERNAL
        assert await post(browser, address, body) == 503
        child.send_signal(SIGTERM)
        _, errors = await child.communicate()
    text = errors.decode()
    assert "canary" not in text
    assert sign(body).partition("v1=")[2] not in text
    lines = [json.loads(line) for line in text.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) == 5
    first = requests[0]
    assert first.pop("duration_ms") > 0
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "request",
        "level": "info",
        "method": "POST",
        "route": "/api/v1/webhooks/stripe",
        "status": 200,
        "outcome": "accepted",
        "event_id": "evt_logged",
    }
    assert requests[-1]["core_code"] == "INTERNAL"
    assert [line["event"] for line in lines if line["event"] != "request"] == [
        "listening",
        "malformed_request",
        "stopping",
        "stopped",
    ]


async def test_taken_port_is_said_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gateway",
            env=os.environ | {"GATEWAY_PORT": port},
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await child.communicate()
    assert child.returncode == 1
    assert errors.decode().startswith(f"gateway: cannot listen on 127.0.0.1, GATEWAY_PORT={port}")
    assert "Traceback" not in errors.decode()
