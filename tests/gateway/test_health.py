"""Health, the webhook test page, CORS and metrics."""

import asyncio
import socket

import aiohttp
import pytest
from grpc_health.v1 import health_pb2

from tests.gateway.conftest import StartGateway
from tests.gateway.fake_core import FakeCore, event, sign


async def test_health_says_what_the_core_says(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    async with browser.get(f"{gateway}/health") as response:
        assert response.status == 200
        assert await response.json() == {"status": "ok", "core": "serving"}
        assert response.headers["Cache-Control"] == "no-store"
    async with browser.head(f"{gateway}/health") as response:
        assert response.status == 200


async def test_health_when_the_core_is_not_serving(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    core.health = health_pb2.HealthCheckResponse.NOT_SERVING
    async with browser.get(f"{gateway}/health") as response:
        assert response.status == 503
        assert await response.json() == {"status": "degraded", "core": "not_serving"}


async def test_health_when_the_core_goes_and_comes(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    await core.stop()
    async with browser.get(f"{gateway}/health") as response:
        assert response.status == 503
        assert await response.json() == {"status": "degraded", "core": "unreachable"}
    async with browser.get(f"{gateway}/live") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
    async with browser.get(f"{gateway}/api/v1/webhooks/test") as response:
        assert response.status == 200
        assert (await response.json())["core"] == "unreachable"
    await core.start()
    async with asyncio.timeout(5):
        while True:
            async with browser.get(f"{gateway}/health") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.2)


async def test_slow_core_is_unreachable_within_a_second(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    core.delay = 5
    async with asyncio.timeout(2):
        async with browser.get(f"{gateway}/health") as response:
            assert (await response.json())["core"] == "unreachable"


async def test_one_question_serves_everybody(
    core: FakeCore, gateway: str, browser: aiohttp.ClientSession
) -> None:
    async def ask() -> int:
        async with browser.get(f"{gateway}/health") as response:
            return response.status

    assert set(await asyncio.gather(*(ask() for _ in range(50)))) == {200}
    assert core.calls == ["Check"]


async def test_webhook_test_page(gateway: str, browser: aiohttp.ClientSession) -> None:
    async with browser.get(f"{gateway}/api/v1/webhooks/test") as response:
        assert response.status == 200
        answer = await response.json()
    assert answer["core"] == "serving"
    assert answer["endpoints"] == {
        "platform": "/api/v1/webhooks/stripe",
        "connect": "/api/v1/webhooks/stripe/connect",
    }


@pytest.mark.parametrize("path", ["/health", "/live", "/api/v1/webhooks/test"])
@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://app.example", True),
        ("http://localhost:3000", True),
        ("https://evil.example", False),
        ("https://app.example.evil", False),
        ("http://app.example", False),
        ("null", False),
        ("*", False),
    ],
)
async def test_cors_is_for_allowed_origins_alone(
    gateway: str, browser: aiohttp.ClientSession, path: str, origin: str, allowed: bool
) -> None:
    for method, asked in (("GET", {}), ("OPTIONS", {"Access-Control-Request-Method": "GET"})):
        headers = {"Origin": origin, **asked}
        async with browser.request(method, gateway + path, headers=headers) as response:
            assert response.status == (200 if method == "GET" else 204)
            assert response.headers["Vary"] == "Origin"
            given = response.headers.get("Access-Control-Allow-Origin")
            assert given == (origin if allowed else None)
            assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/health/", "/api/v1/webhooks", "/../etc/passwd"]
)
async def test_nothing_else_is_there(
    gateway: str, browser: aiohttp.ClientSession, path: str
) -> None:
    async with browser.get(gateway + path) as response:
        assert response.status == 404
        assert await response.json() == {"error": "not_found"}


async def test_metrics_are_on_their_own_port(
    start_gateway: StartGateway, browser: aiohttp.ClientSession
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gateway = await start_gateway(gateway_metrics_port=port)
    body = event()
    for signature in (sign(body), sign(body), sign(body, age=400)):
        headers = {"Stripe-Signature": signature}
        async with browser.post(
            f"{gateway}/api/v1/webhooks/stripe", data=body, headers=headers
        ) as response:
            await response.read()
    async with browser.get(f"http://127.0.0.1:{port}/metrics") as response:
        assert response.status == 200
        text = await response.text()
    for outcome in ("accepted", "duplicate", "time_stale"):
        assert f'gateway_webhooks_total{{endpoint="platform",outcome="{outcome}"}} 1.0' in text
    assert 'gateway_webhook_seconds_count{endpoint="platform"} 3.0' in text
    assert "gateway_connections " in text
