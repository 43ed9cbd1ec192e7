"""The whole system in one event loop: simulator, PostgreSQL, service and gateway, all of them real.

Everything goes over sockets: gRPC into the service, Stripe's SDK to the simulator, webhooks through
the gateway. Only the processes are missing; test_crash.py has those.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from grpc import aio

from gateway.app import running as running_gateway
from gateway.settings import Settings as GatewaySettings
from payment_service.access import Access
from payment_service.config import Settings
from stripe_simulator import Config, start
from tests.support.service import (
    CONNECT_SECRET,
    PLATFORM_SECRET,
    PUBLISHABLE_KEY,
    SECRET_KEY,
    Service,
)
from tests.support.stripe import Stripe, webhook_targets
from tests.support.world import CHANNEL_OPTIONS, World


@contextlib.asynccontextmanager
async def running_world(
    database_url: str,
    *,
    policy: Mapping[str, Any] | None = None,
    simulator: Mapping[str, Any] | None = None,
    loops: bool = True,
    secret_files: Mapping[str, Path] | None = None,
    authenticator: Access | None = None,
    gateway_metrics_port: int = 0,
    **settings: Any,
) -> AsyncIterator[World]:
    """Start everything on free ports; end everything, whatever the test did."""
    async with contextlib.AsyncExitStack() as stack:
        # The platform has money of its own, so that its refunds are paid at once.
        given: dict[str, Any] = {
            "port": 0,
            "seed": "tests",
            "platform_funds": 10_000_000,
            **(simulator or {}),
        }
        simulated = await start(Config(**given))
        stack.push_async_callback(simulated.close)
        service = Service(
            Settings(
                **{
                    "database_url": database_url,
                    "stripe_secret_key": SECRET_KEY,
                    "stripe_publishable_key": PUBLISHABLE_KEY,
                    "stripe_api_base": simulated.base_url,
                    "stripe_webhook_secret": (PLATFORM_SECRET,),
                    "stripe_connect_webhook_secret": (CONNECT_SECRET,),
                    "platform_settlement_currencies": ("USD", "EUR", "GBP", "JPY"),
                    "metrics_port": 0,
                    "money_rate": 0,  # All callers of a test are one caller.
                    # One test's load; each connection costs PostgreSQL a process.
                    "database_write_connections": 6,
                    "database_read_connections": 2,
                    **settings,
                }
            ),
            authenticator,
            **(policy or {}),
        )
        service.settings.read_from(secret_files or {})
        await service.start(loops=loops)
        stack.push_async_callback(service.stop)
        gateway = await stack.enter_async_context(
            running_gateway(
                GatewaySettings(
                    core_address=(service.address,),
                    gateway_port=0,
                    gateway_metrics_port=gateway_metrics_port,
                    otel_exporter_otlp_endpoint=service.settings.otel_exporter_otlp_endpoint,
                )
            )
        )
        http = await stack.enter_async_context(aiohttp.ClientSession())
        channel = await stack.enter_async_context(
            aio.insecure_channel(service.address, CHANNEL_OPTIONS)
        )
        stripe = Stripe(simulated.base_url, http)
        await stripe.control(
            "POST",
            "/webhooks",
            {"targets": webhook_targets(gateway), "retry_seconds": [0.2, 0.5, 1.0]},
        )
        world = World(
            address=service.address,
            database_url=database_url,
            stripe=stripe,
            channel=channel,
            service=service,
            simulator=simulated,
            gateway_url=gateway,
        )
        stack.callback(world.close)
        yield world


@contextlib.asynccontextmanager
async def replica(world: World, *, loops: bool = True, **settings: Any) -> AsyncIterator[World]:
    """Another service on the same database, with other settings if wished."""
    assert world.service is not None
    given = world.service.settings.model_copy(update=settings)
    service = Service(given)
    await service.start(loops=loops)
    try:
        async with aio.insecure_channel(service.address, CHANNEL_OPTIONS) as channel:
            other = dataclasses.replace(
                world, address=service.address, channel=channel, service=service, _connection=None
            )
            yield other
            other.close()
    finally:
        await service.stop()
