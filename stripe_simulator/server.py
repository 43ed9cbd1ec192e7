"""Putting the parts together, and running them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging

from aiohttp import web

from stripe_simulator import payment_element
from stripe_simulator.api import Api
from stripe_simulator.balance import fund_platform
from stripe_simulator.config import Config
from stripe_simulator.control import Control
from stripe_simulator.faults import Faults
from stripe_simulator.pages import Pages
from stripe_simulator.routes import register_all
from stripe_simulator.simulation import Simulation
from stripe_simulator.webhooks import Webhooks

log = logging.getLogger("stripe_simulator")

# How often what the clock has made due is looked for when nobody asks for anything.
TICK_SECONDS = 0.5


@dataclasses.dataclass
class RunningSimulator:
    """A simulator that listens; `close()` ends it."""

    base_url: str
    simulation: Simulation
    webhooks: Webhooks
    faults: Faults
    api: Api
    _runner: web.AppRunner
    _ticker: asyncio.Task[None]

    async def close(self) -> None:
        """Finish what is being answered, stop the deliveries, close the file."""
        self._ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticker
        await self._runner.cleanup()
        await self.webhooks.close()
        self.simulation.store.close()


async def start(config: Config) -> RunningSimulator:
    """Start a simulator in this event loop; port 0 takes a free one."""
    simulation = Simulation(config)
    register_all(simulation)
    fund_platform(simulation)
    faults = Faults(f"{simulation.ids.seed}:faults")
    api = Api(simulation, faults)
    webhooks = Webhooks(simulation)
    control = Control(simulation, api, webhooks)
    pages = Pages(simulation)

    app = web.Application(client_max_size=1024 * 1024)
    app.add_routes(control.routes())
    app.add_routes(pages.routes())
    app.add_routes(payment_element.routes())
    app.router.add_route("OPTIONS", "/v1/{tail:.*}", _preflight)
    app.router.add_route("*", "/v1/{tail:.*}", api.handle)
    app.router.add_route("*", "/v2/{tail:.*}", api.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, config.host, config.port, backlog=1024)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        simulation.store.close()
        raise
    host, port = runner.addresses[0][:2]
    base_url = f"http://{host}:{port}"
    simulation.base_url = config.public_url or base_url
    await webhooks.start()
    ticker = asyncio.create_task(_tick(simulation))
    return RunningSimulator(base_url, simulation, webhooks, faults, api, runner, ticker)


async def _tick(simulation: Simulation) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        try:
            simulation.process_due()
        except Exception:
            # The next tick must come whatever this one met.
            log.exception("what was due could not be done")


async def _preflight(_request: web.Request) -> web.Response:
    """Stripe.js calls from a page of another origin."""
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, "
            "Stripe-Account, Stripe-Version",
            "Access-Control-Max-Age": "300",
        },
    )
