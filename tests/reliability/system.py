"""The real processes: PostgreSQL, simulator, gateway and two replicas, of which one can be killed.

One system serves a whole run; a case only kills and restarts a replica of the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from grpc import aio

from dev.child import Child
from dev.processes import is_stopped
from dev.settings import COMMANDS, StackSettings
from dev.stack import Stack
from tests.support.nursery import nursery
from tests.support.service import CONNECT_SECRET, PLATFORM_SECRET
from tests.support.stripe import Stripe
from tests.support.world import CHANNEL_OPTIONS, World

#: Small, so that a lease (twice this) and with it a recovery is over soon.
STRIPE_TIMEOUT = 0.75
VICTIM, SURVIVOR = 0, 1
#: Beyond the grace of a shutdown.
_LONGEST_EXIT = 30.0


@dataclass
class System:
    """The stack, and the files by which the victim is armed and traced."""

    stack: Stack
    order: Path
    trace: Path

    @property
    def victim(self) -> Child:
        return self.stack.services[VICTIM]

    @property
    def survivor(self) -> Child:
        return self.stack.services[SURVIVOR]

    def address(self, replica: int) -> str:
        return self.stack.settings.grpc_addresses[replica]

    def arm(self, place: str, nth: int, action: str = "kill") -> None:
        """The victim dies (or stops) when it reaches the place for the n-th time from now on."""
        beside = self.order.with_suffix(".new")
        beside.write_text(f"{place} {nth} {action}")
        beside.replace(self.order)

    @property
    def is_armed(self) -> bool:
        return self.order.exists()

    def disarm(self) -> None:
        self.order.unlink(missing_ok=True)

    async def death(self, seconds: float) -> bool:
        """Whether the victim was killed by its barrier within the time."""
        deadline = time.monotonic() + seconds
        while self.victim.running:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.01)
        self.victim.wait()
        return self.victim.returncode == -signal.SIGKILL and not self.is_armed

    async def stop(self, seconds: float) -> bool:
        """Whether the victim was stopped by its barrier within the time."""
        deadline = time.monotonic() + seconds
        while self.is_armed or not is_stopped(self.victim.pid):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.005)
        return True

    async def begin(self, replica: int) -> None:
        """Start a replica if it does not run, and wait until it serves."""
        child = self.stack.services[replica]
        if not child.running:
            child.wait()
            child.start()
        await asyncio.to_thread(self.stack.wait_until_serving, replica)

    async def end(self, replica: int) -> None:
        child = self.stack.services[replica]
        child.ask_to_stop()
        assert await asyncio.to_thread(child.wait, 30), f"{child.name} does not stop"

    async def roll(self, replica: int, command: Sequence[str] = ()) -> float:
        """Asks a replica to leave and brings it back, by another ``command`` if one is given.

        Returns how long it took to leave.
        """
        child = self.stack.services[replica]
        began = time.monotonic()
        child.ask_to_stop()
        left = await asyncio.to_thread(child.wait, _LONGEST_EXIT)
        spent = time.monotonic() - began
        assert left, f"{child.name} did not leave within {spent:.0f} s"
        assert child.returncode == 0, (child.name, child.returncode, list(child.tail))
        child.command = list(command) or child.command
        await self.begin(replica)
        return spent

    @contextlib.contextmanager
    def quick_starts(self, victim_database: str = "") -> Iterator[None]:
        """Replicas start without the seconds that imports take; for cases that do not time that.

        The victim may reach its database by another URL meanwhile.
        """
        with nursery() as opened:
            direct = self.victim.environment["DATABASE_URL"]
            try:
                self.victim.environment["DATABASE_URL"] = victim_database or direct
                for child in self.stack.services:
                    child.spawn = opened.serve
                    child.restart()
                for replica in range(len(self.stack.services)):
                    self.stack.wait_until_serving(replica)
                yield
            finally:
                self.victim.environment["DATABASE_URL"] = direct
                for child in self.stack.services:
                    child.spawn = child.run_command
                    child.restart()
                for replica in range(len(self.stack.services)):
                    self.stack.wait_until_serving(replica)

    def start_tracing(self) -> None:
        self.trace.write_text("")

    def traced(self) -> list[str]:
        return self.trace.read_text().splitlines()

    @contextlib.asynccontextmanager
    async def worlds(self) -> AsyncIterator[list[World]]:
        """Each replica as its callers see it, with channels of this event loop."""
        async with contextlib.AsyncExitStack() as stack:
            http = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64))
            )
            stripe = Stripe(self.stack.simulator_url, http)
            await stripe.control("POST", "/webhooks", {"retry_seconds": [0.2, 0.5, 1.0]})
            worlds = []
            for replica in range(self.stack.settings.replicas):
                channel = await stack.enter_async_context(
                    aio.insecure_channel(self.address(replica), CHANNEL_OPTIONS)
                )
                worlds.append(
                    World(
                        address=self.address(replica),
                        database_url=self.stack.database_url,
                        stripe=stripe,
                        channel=channel,
                        gateway_url=self.stack.gateway_url,
                    )
                )
            yield worlds


@contextlib.contextmanager
def running_system(
    commands: Mapping[str, Sequence[str]] = COMMANDS, *, durable: bool = False, **environment: str
) -> Iterator[System]:
    """Two replicas over one of everything else; the first one can be armed.

    Only a ``durable`` database keeps what a base backup needs.
    """
    directory = Path(tempfile.mkdtemp(prefix="payments-reliability-"))
    directory.chmod(0o711)  # Under root, PostgreSQL runs as another user.
    settings = StackSettings.on_free_ports(directory / "data", replicas=2)
    variables: dict[str, Any] = {
        # All callers are one here.
        "ADJUSTMENTS_BY_ONE_PERSON": "true",
        # One expert has the debts of all cases.
        "WRITE_OFF_LIMIT_MINOR_UNITS": "1000000000",
        "STRIPE_TIMEOUT": str(STRIPE_TIMEOUT),
        "STRIPE_WEBHOOK_SECRET": PLATFORM_SECRET,
        "STRIPE_CONNECT_WEBHOOK_SECRET": CONNECT_SECRET,
        "LOG_LEVEL": "WARNING",
        # All callers of a proof are one caller, and it makes more calls than any real one.
        "MONEY_RATE": "0",
        # What is captured is not available for two days, so every refund is paid from this.
        "STRIPE_SIMULATOR_PLATFORM_FUNDS": "1000000000000",
        **environment,
    }
    settings = replace(settings, commands=commands, durable=durable)
    stack = Stack(replace(settings, environment={**settings.environment, **variables}))
    try:
        with stack:
            system = System(stack, directory / "barrier", directory / "trace")
            system.victim.environment["BARRIER_FILE"] = str(system.order)
            system.victim.environment["BARRIER_TRACE"] = str(system.trace)
            system.victim.restart()
            stack.wait_until_serving(VICTIM)
            yield system
    finally:
        shutil.rmtree(directory, ignore_errors=True)
