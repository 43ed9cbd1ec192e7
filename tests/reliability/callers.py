"""Callers with a channel as the client package opens it, who never ask a second time."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc

from marketplace.payments.channel import connect
from marketplace.payments.v1 import payments_pb2, payments_pb2_grpc
from tests.reliability import proving
from tests.reliability.system import System
from tests.support.requests import capture_request, refund_request
from tests.support.world import CANCELED, CAPTURED, IN_ESCROW, REFUNDED, State, World

T = TypeVar("T")

_DEADLINE = 10.0
_PLATFORM: Final = payments_pb2.ESCROW_MODE_PLATFORM_HOLD


class _Unanswered(Exception):
    """A call failed, and its payment is left as it is; the failure is kept."""


@dataclass
class Load:
    """What the callers do, and each call that was not answered with OK."""

    payments: payments_pb2_grpc.PaymentServiceAsyncStub
    world: World
    expert: str
    chance: random.Random
    failures: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    ending: bool = False

    async def lives(self) -> None:
        """One payment after the other, each ended in one of the ways that there are."""
        ways = (self._captured, self._captured, self._in_parts, self._returned, self._canceled)
        while not self.ending:
            with contextlib.suppress(_Unanswered):
                await self.chance.choice(ways)()

    async def _captured(self) -> None:
        """Paid, captured whole, and refunded in two parts."""
        amount = self.chance.randrange(1_000, 100_000)
        payment_id = await self._paid(amount)
        await self._capture(payment_id)
        await self._until(payment_id, CAPTURED)
        await self._refund(payment_id, amount // 2)
        await self._refund(payment_id)
        await self._until(payment_id, REFUNDED)

    async def _in_parts(self) -> None:
        """Held by the platform: a milestone, a final capture of less, the remainder returned."""
        amount = self.chance.randrange(1_000, 100_000)
        payment_id = await self._paid(amount, escrow_mode=_PLATFORM)
        await self._capture(payment_id, amount // 3, notes="the first part")
        await self._capture(payment_id, amount // 3, notes="the last part", final=True)
        await self._until(payment_id, CAPTURED)

    async def _returned(self) -> None:
        """Paid, declined at first, and given back out of escrow."""
        payment_id = await self._paid(self.chance.randrange(1_000, 100_000), declined=True)
        await self._refund(payment_id)
        await self._until(payment_id, CANCELED)

    async def _canceled(self) -> None:
        """Canceled before it is paid."""
        payment_id = (await self._initiate(5_000)).payment.payment_id
        await self._refund(payment_id)
        await self._until(payment_id, CANCELED)

    async def _paid(self, amount: int, *, declined: bool = False, **fields: Any) -> str:
        initiated = await self._initiate(amount, **fields)
        if declined:
            await self.world.confirm(initiated, "pm_card_visa_chargeDeclined")
        await self.world.confirm(initiated)
        payment_id = initiated.payment.payment_id
        await self._until(payment_id, IN_ESCROW)
        return payment_id

    async def _initiate(self, amount: int, **fields: Any) -> payments_pb2.InitiatePaymentResponse:
        request = self.world.initiation(self.expert, amount, **fields)
        return await self._call("initiate", self.payments.InitiatePayment, request)

    async def _capture(self, payment_id: str, amount: int = 0, **fields: Any) -> None:
        request = capture_request(payment_id, amount, **fields)
        await self._call("capture", self.payments.CapturePayment, request)

    async def _refund(self, payment_id: str, amount: int = 0) -> None:
        request = refund_request(payment_id, amount)
        await self._call("refund", self.payments.RefundPayment, request)

    async def _until(self, payment_id: str, state: State) -> None:
        deadline = time.monotonic() + 30
        request = payments_pb2.GetPaymentRequest(payment_id=payment_id)
        while time.monotonic() < deadline:
            answer = await self._call("read", self.payments.GetPayment, request)
            if answer.payment.state == state:
                return
            await asyncio.sleep(0.1)
        self.failures.append(f"{payment_id} never came to {state}")

    async def _call(self, name: str, method: Callable[..., Awaitable[T]], request: Any) -> T:
        began = time.monotonic()
        self.calls[name] += 1
        try:
            return await method(request, timeout=_DEADLINE)
        except grpc.aio.AioRpcError as error:
            spent = time.monotonic() - began
            self.failures.append(f"{name}: {error.code()} {error.details()} after {spent:.2f} s")
            raise _Unanswered from None
        finally:
            self.seconds.append(time.monotonic() - began)


@asynccontextmanager
async def calling(system: System, world: World, callers: int = 4) -> AsyncIterator[Load]:
    """Lets callers live until the block ends; their last payments are brought to their ends."""
    async with connect(*system.stack.settings.grpc_addresses) as channel:
        chance = random.Random(proving.SEED)
        stub = payments_pb2_grpc.PaymentServiceStub(channel)
        load = Load(stub, world, await world.expert(), chance)
        tasks = [asyncio.create_task(load.lives()) for _ in range(callers)]
        try:
            yield load
        finally:
            load.ending = True
            await asyncio.gather(*tasks)
