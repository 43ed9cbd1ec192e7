"""Replicas are asked to leave and come back, one after the other, and no caller ever notices."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import pytest

from marketplace.payments.channel import connect
from marketplace.payments.v1 import payments_pb2, payments_pb2_grpc
from payment_service.config import Settings
from tests.reliability import proving
from tests.reliability.system import System
from tests.support.requests import capture_request, refund_request
from tests.support.world import CAPTURED, IN_ESCROW, REFUNDED, World

T = TypeVar("T")

_ROLLS = proving.by_profile(3, 100)
#: A full run ends after so long even if the machine is too busy for all of them.
_SECONDS = proving.by_profile(60.0, 1500.0)
_CALLERS = 4
_DEADLINE = 10.0
_GRACE = float(Settings.model_fields["shutdown_grace"].default)
#: Beyond the grace: closing the pools, and the interpreter's own end.
_EXIT_SLACK = 1.0


@dataclass
class Load:
    """Callers with a channel as the client package opens it, who never ask a second time."""

    payments: payments_pb2_grpc.PaymentServiceAsyncStub
    world: World
    expert: str
    chance: random.Random
    failures: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    ending: bool = False

    async def life(self) -> None:
        """One payment after the other: initiated, paid, captured, refunded, and read meanwhile."""
        while not self.ending:
            amount = self.chance.randrange(1_000, 100_000)
            initiated = await self._call(
                "initiate",
                self.payments.InitiatePayment,
                self.world.initiation(self.expert, amount),
            )
            if initiated is None:
                continue
            payment_id = initiated.payment.payment_id
            await self.world.confirm(initiated)
            await self._until(payment_id, IN_ESCROW)
            await self._call("capture", self.payments.CapturePayment, capture_request(payment_id))
            await self._until(payment_id, CAPTURED)
            await self._call(
                "refund", self.payments.RefundPayment, refund_request(payment_id, amount // 2)
            )
            await self._call("refund", self.payments.RefundPayment, refund_request(payment_id))
            await self._until(payment_id, REFUNDED)

    async def _until(self, payment_id: str, state: int) -> None:
        deadline = time.monotonic() + 30
        request = payments_pb2.GetPaymentRequest(payment_id=payment_id)
        while time.monotonic() < deadline:
            answer = await self._call("read", self.payments.GetPayment, request)
            if answer is not None and answer.payment.state == state:
                return
            await asyncio.sleep(0.1)
        self.failures.append(f"{payment_id} never came to {state}")

    async def _call(self, name: str, method: Callable[..., Awaitable[T]], request: Any) -> T | None:
        began = time.monotonic()
        self.calls[name] += 1
        try:
            return await method(request, timeout=_DEADLINE)
        except grpc.aio.AioRpcError as error:
            spent = time.monotonic() - began
            self.failures.append(f"{name}: {error.code()} {error.details()} after {spent:.2f} s")
            return None
        finally:
            self.seconds.append(time.monotonic() - began)


@asynccontextmanager
async def _load(system: System, world: World) -> Any:
    async with connect(*system.stack.settings.grpc_addresses) as channel:
        chance = random.Random(proving.SEED)
        stub = payments_pb2_grpc.PaymentServiceStub(channel)
        load = Load(stub, world, await world.expert(), chance)
        callers = [asyncio.create_task(load.life()) for _ in range(_CALLERS)]
        try:
            yield load
        finally:
            load.ending = True
            await asyncio.gather(*callers)


async def _roll(system: System, replica: int) -> float:
    """Ask one replica to leave, and bring it back; how long it took to leave."""
    child = system.stack.services[replica]
    began = time.monotonic()
    child.ask_to_stop()
    left = await asyncio.to_thread(child.wait, _GRACE + 10)
    spent = time.monotonic() - began
    assert left, f"{child.name} did not leave within {spent:.0f} s"
    assert child.returncode == 0, (child.name, child.returncode, list(child.tail))
    await system.begin(replica)
    return spent


@pytest.mark.timeout(proving.by_profile(180, 1800))
def test_callers_notice_no_rolling_restart(system: System) -> None:
    async def run() -> None:
        async with system.worlds() as worlds, _load(system, worlds[0]) as load:
            exits: list[float] = []
            began = time.monotonic()
            replicas = len(system.stack.services)
            while len(exits) < _ROLLS and time.monotonic() - began < _SECONDS:
                await asyncio.sleep(load.chance.uniform(0.0, 0.4))
                exits.append(await _roll(system, len(exits) % replicas))
                if not len(exits) % 10:
                    proving.progress(
                        f"rolling: {len(exits)} of {_ROLLS}, {len(load.failures)} failures in "
                        f"{load.calls.total()} calls"
                    )
        assert not load.failures, "\n".join(load.failures[:20])
        assert max(exits) <= _GRACE + _EXIT_SLACK
        for name in ("initiate", "capture", "refund", "read"):
            assert load.calls[name] > len(exits) // 2, load.calls
        proving.figure(
            "K",
            f"rolling: {len(exits)} SIGTERMs over {replicas} replicas under {load.calls.total()} "
            f"calls ({dict(load.calls)}), 0 failed, slowest {max(load.seconds):.2f} s; left after "
            f"{statistics.median(exits):.2f} s, at most {max(exits):.2f} s (grace {_GRACE:.0f} s)",
        )

    asyncio.run(run())
