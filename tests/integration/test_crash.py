"""Real processes: killed in the middle, stopped in order, without their database for a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from grpc import aio
from grpc_health.v1 import health_pb2

from dev.settings import StackSettings
from dev.stack import Stack
from marketplace.payments.v1 import experts_pb2, operations_pb2, payments_pb2
from tests.support.books import check_books
from tests.support.flights import effects_of, flights
from tests.support.nursery import Nursery
from tests.support.requests import capture_request, new_name
from tests.support.stripe import Stripe
from tests.support.world import CAPTURED, CHANNEL_OPTIONS, World, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]


@pytest.fixture(scope="module")
def said() -> list[str]:
    """Every line that any of the processes wrote."""
    return []


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, nursery: Nursery, said: list[str]
) -> Iterator[Stack]:
    settings = StackSettings.on_free_ports(tmp_path_factory.mktemp("stack"))
    more = {"STRIPE_TIMEOUT": "2", "LOG_LEVEL": "DEBUG", "SHUTDOWN_GRACE": "10"}
    settings = replace(settings, environment={**settings.environment, **more})
    with Stack(
        settings,
        sink=lambda name, line: said.append(f"{name}: {line}"),
        spawn=nursery.spawn,
    ) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(stack: Stack) -> AsyncIterator[World]:
    async with (
        aiohttp.ClientSession() as http,
        aio.insecure_channel(stack.grpc_target, CHANNEL_OPTIONS) as channel,
    ):
        world = World(
            address=stack.grpc_target,
            database_url=stack.database_url,
            stripe=Stripe(stack.simulator_url, http),
            channel=channel,
            gateway_url=stack.gateway_url,
        )
        await world.stripe.control("POST", "/webhooks", {"retry_seconds": [0.2, 0.5, 1.0]})
        yield world
        world.close()


async def _restart(stack: Stack, world: World) -> None:
    await asyncio.to_thread(stack.services[0].restart)
    await asyncio.to_thread(stack.wait_until_serving)
    await world.channel.channel_ready()


@pytest.mark.parametrize(
    ("action", "when", "more"),
    [
        ("hang", "before", {"delay_ms": 3_000}),  # The call never has an effect.
        ("hang", "after", {"delay_ms": 3_000}),  # It had one, and nobody lived to hear of it.
        ("delay", "before", {"delay_ms": 2_500}),  # It has one while nobody lives.
    ],
    ids=["before-the-effect", "after-the-effect", "the-effect-comes-later"],
)
async def test_killed_while_every_kind_of_call_is_at_stripe(
    stack: Stack, world: World, action: str, when: str, more: dict[str, Any]
) -> None:
    under_way = await flights(world)
    await world.settle_down()
    accounts = len(await world.stripe.effects("account_created"))
    ann = experts_pb2.CreateExpertAccountRequest(
        expert_id=new_name("crash"), name="Ann", email="ann@example.com"
    )
    for flight in under_way:
        await world.stripe.fault(flight.path, action, when, match=flight.match, **more)
    await world.stripe.fault("/accounts$", action, when, **more)
    calls = [asyncio.create_task(world.bytes_of(f.method, f.request)) for f in under_way]
    creation = asyncio.ensure_future(world.experts.CreateExpertAccount(ann))

    async def all_at_stripe() -> bool:
        return await world.stripe.fired() == len(under_way) + 1

    await until(all_at_stripe, "all calls at Stripe")
    await asyncio.to_thread(stack.services[0].kill)
    replies = await asyncio.gather(*calls)
    assert {reply.code for reply in replies} == {"UNAVAILABLE"}
    with contextlib.suppress(aio.AioRpcError):
        await creation
    await world.stripe.clear_faults()
    await _restart(stack, world)
    for flight in under_way:
        answer = await world.until_answered(flight.method, flight.request)
        assert answer.code == "OK", answer
        payment = payments_pb2.GetPaymentResponse.FromString(answer.body).payment
        assert payment.state == flight.state
        assert await effects_of(world, payment.payment_intent_id) == flight.effects

    async def created() -> experts_pb2.CreateExpertAccountResponse | None:
        try:
            return await world.experts.CreateExpertAccount(ann)
        except aio.AioRpcError:
            return None

    assert (await until(created, "the account")).expert.stripe_account_id
    assert len(await world.stripe.effects("account_created")) == accounts + 1
    await check_books(world)
    assert not await world.discrepancies()


async def test_killed_after_the_answer_was_written_gives_the_same_answer(
    stack: Stack, world: World
) -> None:
    held = await world.escrowed()
    request = capture_request(held.payment_id)
    first = await world.bytes_of("CapturePayment", request)
    assert first.code == "OK"
    await asyncio.to_thread(stack.services[0].kill)
    await _restart(stack, world)
    assert await world.until_answered("CapturePayment", request) == first
    assert len(await world.stripe.effects("captured", held.payment_intent_id)) == 1


async def test_an_orderly_stop_finishes_operations_without_callers(
    stack: Stack, world: World
) -> None:
    held = await world.escrowed()
    await world.settle_down()
    await world.stripe.fault(f"/{held.payment_intent_id}/capture$", "delay", delay_ms=1_500)
    request = capture_request(held.payment_id)
    reply = await world.raw(
        "PaymentService/CapturePayment", request.SerializeToString(), timeout=0.3
    )
    assert reply.code == "DEADLINE_EXCEEDED"
    service = stack.services[0]
    service.ask_to_stop()
    assert await asyncio.to_thread(service.wait, 20)
    assert service.returncode == 0
    [(state,)] = world.sql("SELECT state FROM payments WHERE payment_id = %s", held.payment_id)
    assert state == "CAPTURED"
    await world.stripe.clear_faults()
    await _restart(stack, world)
    assert (await world.bytes_of("CapturePayment", request)).code == "OK"


async def test_postgres_gone_and_back(stack: Stack, world: World) -> None:
    payment = await world.captured()
    await world.settle_down()

    async def says(*, serving: bool) -> bool:
        check: aio.UnaryUnaryMultiCallable[bytes, bytes] = world.channel.unary_unary(
            "/grpc.health.v1.Health/Check"
        )
        answer = health_pb2.HealthCheckResponse.FromString(await check(b""))
        wanted = "SERVING" if serving else "NOT_SERVING"
        return answer.status == health_pb2.HealthCheckResponse.ServingStatus.Value(wanted)

    assert stack.postgres is not None
    await asyncio.to_thread(stack.postgres.kill)
    try:
        await until(lambda: says(serving=False), "NOT_SERVING")
        request = payments_pb2.GetPaymentRequest(payment_id=payment.payment_id)
        reply = await world.bytes_of("GetPayment", request)
        assert reply.refused is not None
        assert (reply.code, reply.refused.reason) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")
    finally:
        world.close()
        await asyncio.to_thread(stack.postgres.start)
    await until(lambda: says(serving=True), "SERVING")
    assert (await world.get(payment.payment_id)) == payment
    assert (await world.captured()).state == CAPTURED
    await check_books(world)


async def test_no_log_ever_said_a_secret(stack: Stack, world: World, said: list[str]) -> None:
    """Last in this module: after crashes, outages and debug logs of all that went before."""
    initiated = await world.initiate(await world.expert())
    await world.confirm(initiated, "pm_card_visa_chargeDeclined")
    written = await world.captured(client_id="client-canary", description="described-canary")
    await world.refund(written.payment_id, 100, reason="reasoned-canary")
    held = await world.escrowed(client_id="client-canary")
    await world.capture(held.payment_id, notes="noted-canary")
    await world.settle_down()
    await world.operations.EraseUser(
        operations_pb2.EraseUserRequest(
            user_id="client-canary",
            kind=operations_pb2.USER_KIND_CLIENT,
            reason="erased-canary",
        )
    )
    answer = await world.experts.CreateExpertAccount(
        experts_pb2.CreateExpertAccountRequest(
            expert_id=new_name("canary"), name="Zebulon Canary", email="zebulon@canary.example"
        )
    )
    secrets = [
        initiated.client_secret,
        answer.onboarding_url.rpartition("/")[2],
        stack.database_url.rpartition("@")[0].rpartition(":")[2],
        "sk_test_simulator",
        "Zebulon",
        "zebulon@canary.example",
        *("described-canary", "reasoned-canary", "noted-canary", "erased-canary"),
        *(path.read_text().strip() for path in (stack.settings.data_dir / "secrets").iterdir()),
    ]
    lines = [line for line in said if not line.startswith("simulator: ")]
    assert len(lines) > 20
    for secret in secrets:
        assert len(secret) > 6
        assert not [line for line in lines if secret in line], secret
