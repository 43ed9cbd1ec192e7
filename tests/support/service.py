"""The payment service inside this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from grpc import aio

from payment_service.access import Access
from payment_service.application.app import App
from payment_service.application.jobs.scheduler import run_background
from payment_service.application.stripe_account import check_account
from payment_service.bootstrap import Wired, add_services, interceptors_of, wire
from payment_service.config import Settings
from payment_service.domain.errors import Unavailable
from payment_service.server import MAXIMUM_CONCURRENT_RPCS, OPTIONS

PLATFORM_SECRET = "whsec_platform_of_tests"
CONNECT_SECRET = "whsec_connect_of_tests"
SECRET_KEY = "sk_test_simulator"
PUBLISHABLE_KEY = "pk_test_simulator"

#: Short intervals of the background jobs, and short pauses between tries: a test sees many.
IMPATIENT: Mapping[str, Any] = {
    "job_interval": 0.3,
    "slow_job_interval": 1.0,
    "retry_first_seconds": 0.1,
    "unsent_pause_seconds": (0.05, 0.1, 0.2),
    "own_event_patience": 0.2,
    # A test that applies the events itself would have to wait for it.
    "event_gathering": 0.0,
    # The minute after which Stripe is believed to have done nothing.
    "arrival_seconds": 0.5,
}


class Service:
    """The payment service inside this process. Stopped and started again, it keeps its address."""

    def __init__(
        self, settings: Settings, authenticator: Access | None = None, **policy: Any
    ) -> None:
        self.settings = settings
        self._authenticator = authenticator
        self._policy = {**IMPATIENT, **policy}
        self._server: aio.Server | None = None
        self._background: asyncio.Task[None] | None = None
        self.wired: Wired | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def app(self) -> App:
        assert self.wired is not None
        return self.wired.app

    async def start(self, *, loops: bool = True) -> None:
        """``loops=False`` leaves the background loops out, for tests that are the background."""
        policy = replace(self.settings.policy, **self._policy)
        wired = wire(self.settings, policy, self._authenticator)
        self.wired = wired
        await self._bind()
        self._server = aio.server(
            interceptors=interceptors_of(wired),
            options=OPTIONS,
            maximum_concurrent_rpcs=MAXIMUM_CONCURRENT_RPCS,
        )
        add_services(self._server, self.wired)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        if loops:
            self.start_loops()

    async def _bind(self) -> None:
        """Binds the books to the account at Stripe, as the first start does if Stripe answers."""
        if await self.app.database.read(lambda reader: reader.beginning()) is None:
            with contextlib.suppress(Unavailable):
                await check_account(self.app, livemode=False)

    def start_loops(self) -> None:
        assert self._background is None
        self._background = asyncio.create_task(run_background(self.app))

    async def stop(self) -> None:
        """As ``server.serve`` ends: callers answered, operations drained, connections closed."""
        if self.wired is None or self._server is None:
            return
        self.wired.app.feed.ending.set()
        if self._background is not None:
            self._background.cancel()
            await asyncio.gather(self._background, return_exceptions=True)
            self._background = None
        await self._server.stop(5)
        self.wired.operations.close()
        await self.wired.operations.drain(10)
        await self.wired.stripe.close()
        await self.wired.database.close()
        await asyncio.get_running_loop().run_in_executor(None, self.wired.tracer.close)
        self.wired = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()
