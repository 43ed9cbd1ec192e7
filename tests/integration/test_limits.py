"""What a caller sees of the limits: refused at once, with a delay and the fact; nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2

from marketplace.payments.channel import connect
from marketplace.payments.v1 import operations_pb2, payments_pb2, payments_pb2_grpc
from tests.support.errors import Reply
from tests.support.running import running_world
from tests.support.world import World


def _erasure() -> operations_pb2.EraseUserRequest:
    """The cheapest call that changes something."""
    return operations_pb2.EraseUserRequest(
        kind=operations_pb2.USER_KIND_CLIENT, user_id="nobody", reason="asked"
    )


def _delay(reply: Reply) -> float:
    """The seconds of RetryInfo."""
    info = error_details_pb2.RetryInfo()
    assert reply.refused is not None
    status = status_pb2.Status.FromString(reply.refused.raw)
    assert any(detail.Unpack(info) for detail in status.details), "there is no RetryInfo"
    return info.retry_delay.ToMilliseconds() / 1000


async def _median(call: Callable[[], object], times: int = 15) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        await call()  # type: ignore[misc]  # a coroutine of any result
        found.append(time.perf_counter() - began)
    return sorted(found)[times // 2]


async def test_money_beyond_its_places_is_refused_at_once_while_reads_answer(
    new_database: Callable[[], str],
) -> None:
    async with running_world(
        new_database(), money_calls=4, call_queue_seconds=0.2, loops=False
    ) as world:
        expert = await world.expert()
        known = (await world.initiate(expert)).payment
        await world.stripe.control("POST", "/settings", {"latency_ms": 2_000})
        requests = [world.initiation(expert) for _ in range(30)]
        began = time.monotonic()
        waits: list[float] = []

        async def ask(request: payments_pb2.InitiatePaymentRequest) -> Reply:
            reply = await world.bytes_of("InitiatePayment", request)
            if reply.refused is not None:
                waits.append(time.monotonic() - began)
            return reply

        calls = asyncio.gather(*(ask(request) for request in requests))
        await asyncio.sleep(0.05)
        await asyncio.gather(world.get(known.payment_id), _health(world))
        assert time.monotonic() - began < 1.5, "reads waited for Stripe"
        replies = await calls
        # Four have a place. The caller's share of places and queue is four, too.
        assert Counter(reply.code for reply in replies) == {"OK": 4, "RESOURCE_EXHAUSTED": 26}
        assert max(waits) < 1.5, "a refusal waited for Stripe"
        for reply in replies:
            if reply.refused is not None:
                assert reply.refused.reason == "OVERLOADED"
                assert reply.refused.facts["call_class"] == "MONEY"
                assert 0.5 <= _delay(reply) <= 1.0
        await world.stripe.control("POST", "/settings", {"latency_ms": 0})
        # The same keys again: each is one payment, whether it was refused before or not.
        for request in requests:
            assert (await world.until_answered("InitiatePayment", request)).code == "OK"
        assert world.counts()["payments"] == 31
        assert _metric(world, "payments_calls_refused_total", call_class="MONEY", why="share") == 26


async def test_a_quota_is_named_and_does_not_touch_reads(new_database: Callable[[], str]) -> None:
    async with running_world(new_database(), loops=False, money_rate=0.001, money_burst=3) as world:
        command = _erasure()
        path, request = "OperationsService/EraseUser", command.SerializeToString()
        for _ in range(3):
            assert (await world.raw(path, request)).code == "OK"
        reply = await world.raw(path, request)
        assert reply.refused is not None
        assert (reply.code, reply.refused.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
        assert reply.refused.facts == {
            "caller": "local",
            "quota": "money",
            "rate": "0.001",
            "burst": "3",
        }
        assert _delay(reply) > 100
        assert _metric(world, "payments_calls_refused_total", call_class="MONEY", why="quota") == 1
        assert (await world.raw("LedgerService/ListBalances", b"")).code == "OK"


async def test_a_quota_of_one_caller_replaces_the_common_one(
    new_database: Callable[[], str],
) -> None:
    quotas: dict[str, Any] = {
        "money_rate": 0.001,
        "money_burst": 1,
        "money_quotas": ("local=100/50",),
    }
    async with running_world(new_database(), loops=False, **quotas) as world:
        command = _erasure()
        for _ in range(20):
            reply = await world.raw("OperationsService/EraseUser", command.SerializeToString())
            assert reply.code == "OK"


async def test_a_replay_gives_its_token_back(new_database: Callable[[], str]) -> None:
    async with running_world(new_database(), loops=False, money_rate=0.001, money_burst=4) as world:
        expert = await world.expert()  # One token.
        request = world.initiation(expert)
        first = await world.bytes_of("InitiatePayment", request)  # Two.
        for _ in range(10):
            assert (await world.bytes_of("InitiatePayment", request)).body == first.body
        await world.initiate(expert)  # Three.
        await world.initiate(expert)  # Four.
        reply = await world.bytes_of("InitiatePayment", world.initiation(expert))
        assert reply.refused is not None
        assert reply.refused.reason == "QUOTA_EXCEEDED"


async def test_metadata_beyond_eight_kilobytes_is_refused(
    new_database: Callable[[], str],
) -> None:
    async with running_world(new_database(), loops=False) as world:
        request = payments_pb2.ListPaymentsRequest(user_id="ann")
        await world.payments.ListPayments(request, metadata=(("x-trace", "a" * 6_000),))
        with pytest.raises(aio.AioRpcError) as refused:
            await world.payments.ListPayments(request, metadata=(("x-trace", "a" * 9_000),))
        assert refused.value.code().name == "RESOURCE_EXHAUSTED"
        await world.payments.ListPayments(request)


async def test_the_clients_channel_waits_for_its_quota(new_database: Callable[[], str]) -> None:
    """A caller above its rate is slowed down and sees no error."""
    async with running_world(new_database(), loops=False, money_rate=2, money_burst=2) as world:
        expert = await world.expert()
        async with connect(world.address) as channel:
            payments: payments_pb2_grpc.PaymentServiceAsyncStub = (
                payments_pb2_grpc.PaymentServiceStub(channel)
            )
            began = time.monotonic()
            for _ in range(5):
                await payments.InitiatePayment(world.initiation(expert))
        assert time.monotonic() - began > 1
        assert world.counts()["payments"] == 5
        assert _metric(world, "payments_calls_refused_total", call_class="MONEY", why="quota")


async def test_eight_reconciliations_are_one_run_and_starve_nobody(
    new_database: Callable[[], str],
) -> None:
    async with running_world(new_database(), loops=False) as world:
        expert = await world.expert()
        payments = [await world.initiate(expert) for _ in range(6)]
        known = payments[0].payment.payment_id
        await world.stripe.control("POST", "/settings", {"latency_ms": 400})
        request = operations_pb2.RunReconciliationRequest().SerializeToString()
        path = "OperationsService/RunReconciliation"
        runs = asyncio.gather(*(world.raw(path, request) for _ in range(8)))
        await asyncio.sleep(0.1)
        assert await _median(lambda: world.get(known)) < 0.3
        assert await _median(lambda: _health(world)) < 0.3
        assert not runs.done(), "the run was over before it could starve anybody"
        replies = await runs
        assert {reply.code for reply in replies} == {"OK"}
        assert len({reply.body for reply in replies}) == 1
        reads = [
            one
            for one in (await world.stripe.control("GET", "/requests"))["requests"]
            if one["method"] == "GET" and "/payment_intents/" in one["path"]
        ]
        assert 0 < len(reads) <= 2 * len(payments), "the runs were not shared"


def _metric(world: World, name: str, **labels: str) -> float | None:
    assert world.service is not None
    assert world.service.wired is not None
    return world.service.wired.metrics.registry.get_sample_value(name, labels)


async def _health(world: World) -> None:
    """A health check, or any method of the HEALTH class where a test has no health service."""
    check: aio.UnaryUnaryMultiCallable[bytes, bytes] = world.channel.unary_unary(
        "/grpc.health.v1.Health/Check"
    )
    try:
        await check(health_pb2.HealthCheckRequest().SerializeToString(), timeout=5)
    except aio.AioRpcError as error:
        assert error.code().name == "UNIMPLEMENTED"  # noqa: PT017 - any other code is a fault
