"""Ten times more than a replica carries: the excess is refused, and nothing else suffers."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2

from marketplace.payments.v1 import payments_pb2
from tests.reliability import proving
from tests.reliability.system import SURVIVOR, System, running_system
from tests.support.errors import Reply
from tests.support.world import World

_PLACES = 8
_STRIPE_MS = 200
_TIMES = 10
_SECONDS = proving.by_profile(4.0, 20.0)
_MEASURED_SECONDS = 2.5
_TICK_SECONDS = 0.02
_PROBE_SECONDS = 0.04
#: Refused keys that are repeated afterwards; all of them would take ten times as long.
_REPEATED = 40
#: The bound of the medians. On a crowded machine everything is slow: then the ratio counts.
_MEDIAN_SECONDS = 0.1
_TIMES_IDLE = 10
#: What counts as the rate from before, and how many windows of measuring a busy machine gets.
_BACK = 0.8
_WINDOWS = 3


@pytest.fixture(scope="module")
def small() -> Iterator[System]:
    """Replicas that carry so little that one client can offer them ten times as much."""
    with running_system(MONEY_CALLS=str(_PLACES), CALL_QUEUE_SECONDS="0.1") as running:
        yield running


@dataclass
class Load:
    """What was offered, and what became of it."""

    sent: dict[str, payments_pb2.InitiatePaymentRequest] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    reads: list[float] = field(default_factory=list)
    checks: list[float] = field(default_factory=list)

    def keys(self, code: str) -> list[str]:
        return [key for key, reply in self.replies.items() if reply.code == code]


class Client:
    def __init__(self, world: World, expert: str, payment_id: str) -> None:
        self._world = world
        self._expert = expert
        self._payment_id = payment_id
        check = "/grpc.health.v1.Health/Check"
        self._check: aio.UnaryUnaryMultiCallable[bytes, bytes] = world.channel.unary_unary(check)

    async def initiate(self, load: Load) -> str:
        request = self._world.initiation(self._expert)
        key = request.idempotency_key
        load.sent[key] = request
        began = time.monotonic()
        load.replies[key] = await self._world.bytes_of("InitiatePayment", request)
        load.seconds[key] = time.monotonic() - began
        return load.replies[key].code

    async def carried(self) -> float:
        """Returns how many calls a second are answered when callers wait for their answers."""
        load, end = Load(), time.monotonic() + _MEASURED_SECONDS

        async def work() -> None:
            while time.monotonic() < end:
                await self.initiate(load)

        await asyncio.gather(*(work() for _ in range(_PLACES)))
        return len(load.keys("OK")) / _MEASURED_SECONDS

    async def offer(self, load: Load, rate: float, seconds: float) -> None:
        """Sends at this rate whether there are answers or not, and waits for all of them."""
        calls: set[asyncio.Task[str]] = set()
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            for _ in range(round(rate * passed) - len(load.sent)):
                calls.add(asyncio.create_task(self.initiate(load)))
            await asyncio.sleep(_TICK_SECONDS)
        await asyncio.wait(calls)

    @asynccontextmanager
    async def probing(self, load: Load) -> AsyncIterator[None]:
        """Reads a payment and checks the health again and again meanwhile."""
        message = health_pb2.HealthCheckRequest().SerializeToString()

        async def probe(into: list[float], call: Callable[[], Awaitable[object]]) -> None:
            while True:
                began = time.monotonic()
                await call()
                into.append(time.monotonic() - began)
                await asyncio.sleep(_PROBE_SECONDS)

        probes = [
            asyncio.create_task(probe(load.reads, lambda: self._world.get(self._payment_id))),
            asyncio.create_task(probe(load.checks, lambda: self._check(message, timeout=10))),
        ]
        try:
            yield
        finally:
            for task in probes:
                assert not task.done(), task.exception()
                task.cancel()


def _delay(reply: Reply) -> float:
    info = error_details_pb2.RetryInfo()
    status = status_pb2.Status.FromString(reply.body)
    assert any(detail.Unpack(info) for detail in status.details)
    return info.retry_delay.ToMilliseconds() / 1000


@pytest.mark.timeout(240)
def test_ten_times_too_much_is_refused_and_nothing_else_suffers(small: System) -> None:
    async def run() -> None:
        async with small.worlds() as worlds:
            world = worlds[SURVIVOR]
            expert = await world.expert()
            known = (await world.initiate(expert)).payment.payment_id
            client = Client(world, expert, known)
            idle, load = Load(), Load()
            async with client.probing(idle):
                await asyncio.sleep(1)
            await world.stripe.control("POST", "/settings", {"latency_ms": _STRIPE_MS})
            capacity = await client.carried()
            async with client.probing(load):
                began = time.monotonic()
                await client.offer(load, _TIMES * capacity, _SECONDS)
                passed = time.monotonic() - began
            after = [await client.carried()]
            while after[-1] < _BACK * capacity and len(after) < _WINDOWS:
                after.append(await client.carried())
            await world.stripe.control("POST", "/settings", {"latency_ms": 0})
            await check(world, load, idle)
            ok, refused = load.keys("OK"), load.keys("RESOURCE_EXHAUSTED")
            assert len(load.sent) >= 0.7 * _TIMES * capacity * _SECONDS, "the load was too low"
            assert len(ok) / passed >= 0.5 * capacity, "the overload cost the others their answers"
            assert after[-1] >= _BACK * capacity, f"{after} a second instead of {capacity:.0f}"
            quick = statistics.median(load.seconds[key] for key in refused)
            read, check_ = statistics.median(load.reads), statistics.median(load.checks)
            proving.figure(
                "M",
                f"overload: {len(load.sent)} calls at {_TIMES} x {capacity:.0f}/s: {len(ok)} OK, "
                f"{len(refused)} refused after {quick * 1000:.0f} ms, GetPayment "
                f"{read * 1000:.0f} ms and health {check_ * 1000:.0f} ms (medians), afterwards "
                f"{after[-1]:.0f}/s",
            )

    asyncio.run(run())


async def check(world: World, load: Load, idle: Load) -> None:
    """Every call has one of two answers; refused ones did nothing, accepted ones are on record."""
    codes = Counter(reply.code for reply in load.replies.values())
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}, codes
    refused = load.keys("RESOURCE_EXHAUSTED")
    for key in refused:
        reply = load.replies[key]
        assert reply.refused is not None
        assert reply.refused.reason == "OVERLOADED"
        assert 0.5 <= _delay(reply) <= 1
    # The client's own event loop is late under such a load, too, so the bound is a ratio.
    refusal = statistics.median(load.seconds[key] for key in refused)
    answer = statistics.median(load.seconds[key] for key in load.keys("OK"))
    assert refusal <= max(_MEDIAN_SECONDS, answer / 2), f"a refusal took {refusal:.3f} s"
    for name, found, alone in (
        ("GetPayment", load.reads, idle.reads),
        ("health", load.checks, idle.checks),
    ):
        bound = max(_MEDIAN_SECONDS, _TIMES_IDLE * statistics.median(alone))
        assert statistics.median(found) <= bound, f"{name} took {statistics.median(found):.3f} s"
    stored = dict(
        world.sql(
            "SELECT key, payment_id FROM idempotency_keys WHERE key = ANY(%s)", list(load.sent)
        )
    )
    assert set(stored) == set(load.keys("OK"))
    for key in refused[:_REPEATED]:
        assert (await world.until_answered("InitiatePayment", load.sent[key])).code == "OK"
    for key in load.keys("OK")[:_REPEATED]:
        again = await world.bytes_of("InitiatePayment", load.sent[key])
        assert again.body == load.replies[key].body
