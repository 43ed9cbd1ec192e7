"""A fake core and gateways in front of it, both on free ports of this machine."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from gateway.app import running
from gateway.settings import Settings
from tests.gateway.fake_core import FakeCore

StartGateway = Callable[..., Awaitable[str]]


@pytest.fixture
async def core() -> AsyncIterator[FakeCore]:
    fake = FakeCore()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def start_gateway(core: FakeCore) -> AsyncIterator[StartGateway]:
    """Starts a gateway with these settings and returns its address."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> str:
            values: dict[str, Any] = {
                "gateway_port": 0,
                "gateway_metrics_port": 0,
                "gateway_shutdown_seconds": 0.5,
                "core_address": (core.address,),
                "allowed_origins": "https://app.example,http://localhost:3000",
            }
            return await stack.enter_async_context(running(Settings(**values | settings)))

        yield start


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> str:
    return await start_gateway()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    """Follows no redirect, so that tests see where it would have gone."""
    async with aiohttp.ClientSession() as session:
        yield session
