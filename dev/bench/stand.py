"""Starts what is measured: a stack, and the bare handlers with their canned Stripe."""

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc

from dev import probes
from dev.bench.bare import NAME as BARE
from dev.bench.calls import Marketplace
from dev.bench.costs import Backends, Meter
from dev.ports import first_free_port
from dev.processes import family_of
from dev.settings import ROOT, StackSettings
from dev.stack import Stack
from marketplace.payments.channel import connect
from marketplace.payments.v1 import payments_pb2_grpc

SERVICE = "payment_service"
_READY_SECONDS = 120.0

Say = Callable[[str], None]


@dataclass
class Stand:
    """What is measured, with a caller of it and the meters of both programs."""

    stack: Stack
    backends: Backends
    market: Marketplace
    bare: Any
    canned_url: str
    service_meter: Meter
    bare_meter: Meter

    async def slow_down(self, milliseconds: int) -> None:
        """Sets how long both servers that stand for Stripe take to answer."""
        await self.market.control("settings", {"latency_ms": milliseconds})
        async with (
            aiohttp.ClientSession() as web,
            web.get(f"{self.canned_url}/pause?seconds={milliseconds / 1000}") as answer,
        ):
            answer.raise_for_status()


@asynccontextmanager
async def started(say: Say, workers: int = 1) -> AsyncIterator[Stand]:
    directory = Path(tempfile.mkdtemp(prefix="payments-bench-"))
    await asyncio.to_thread(directory.chmod, 0o711)  # PostgreSQL's user must be able to enter it
    say("starting the stack and the bare handlers")
    settings = StackSettings.on_free_ports(directory / "data", workers=workers)
    # One caller is all the load there is. Asked is what is carried, not what is admitted.
    limits = {"MONEY_RATE": "0", "MONEY_CALLS": "1024"}
    stack = Stack(replace(settings, environment={**settings.environment, **limits}))
    try:
        await asyncio.to_thread(stack.start)
        assert stack.postgres is not None
        backends = Backends(stack.postgres.admin_url())
        stack.postgres.create_database(BARE)
        bare_url = stack.postgres.owner_url(BARE)
        canned_port, bare_port = first_free_port(1), first_free_port(1)
        with (
            _process("dev.bench.canned", f"--port={canned_port}", port=canned_port),
            _process(
                "dev.bench.bare",
                f"--port={bare_port}",
                f"--service-url={stack.database_url}",
                f"--bare-url={bare_url}",
                f"--stripe-url=http://127.0.0.1:{canned_port}",
                port=bare_port,
            ) as bare,
        ):
            async with (
                aiohttp.ClientSession() as web,
                connect(
                    *stack.settings.grpc_addresses, tls=stack.access.tls, token=stack.access.token
                ) as channel,
                grpc.aio.insecure_channel(f"127.0.0.1:{bare_port}") as bare_channel,
            ):
                yield Stand(
                    stack,
                    backends,
                    Marketplace(channel, web, stack.simulator_url),
                    payments_pb2_grpc.PaymentServiceStub(bare_channel),
                    f"http://127.0.0.1:{canned_port}",
                    Meter(SERVICE, lambda: family_of(stack.services[0].pid), backends),
                    Meter(BARE, lambda: [bare.pid], backends),
                )
        backends.close()
    finally:
        await asyncio.to_thread(stack.stop)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _process(module: str, *arguments: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a module of the bench until the block ends; yields once its port answers."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT)
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while not probes.taken(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{module} did not come up")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
