"""The client's channel: calls spread, retried only where that is safe, resumed after a restart."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from dev.ports import first_free_port
from marketplace.payments.channel import connect, connect_sync, service_config, target_of
from marketplace.payments.v1 import payments_pb2, payments_pb2_grpc


class Servicer:
    """Fails so many times, with a delay or without, then answers with its own name."""

    def __init__(self, name: str, failures: int = 0, pushback_ms: int | None = None) -> None:
        self.name = name
        self.failures = failures
        self.pushback_ms = pushback_ms
        self.calls = 0
        self.connections: set[str] = set()

    def get_payment(
        self, request: payments_pb2.GetPaymentRequest, context: Any
    ) -> payments_pb2.GetPaymentResponse:
        self.calls += 1
        self.connections.add(context.peer())
        if self.calls <= self.failures and self.pushback_ms is not None:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(self.pushback_ms)),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "later")
        if self.calls <= self.failures:
            context.abort(grpc.StatusCode.UNAVAILABLE, "again")
        return payments_pb2.GetPaymentResponse(payment=payments_pb2.Payment(payment_id=self.name))


def serve(servicer: Servicer, port: int) -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    read = grpc.unary_unary_rpc_method_handler(
        servicer.get_payment,
        request_deserializer=payments_pb2.GetPaymentRequest.FromString,
        response_serializer=payments_pb2.GetPaymentResponse.SerializeToString,
    )
    name = "marketplace.payments.v1.PaymentService"
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, {"GetPayment": read})]
    )
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    return server


async def ask(channel: grpc.aio.Channel) -> str:
    stub = payments_pb2_grpc.PaymentServiceStub(channel)
    answer = await stub.GetPayment(payments_pb2.GetPaymentRequest(payment_id="pay_1"))
    return answer.payment.payment_id


async def test_calls_are_spread_over_all_addresses() -> None:
    port = first_free_port(2)
    servers = [serve(Servicer(name), port + n) for n, name in enumerate("ab")]
    async with connect(f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}") as channel:
        names: set[str] = set()
        deadline = time.monotonic() + 10
        while names != {"a", "b"} and time.monotonic() < deadline:
            names.add(await ask(channel))
    assert names == {"a", "b"}
    for server in servers:
        server.stop(0).wait()


async def test_channels_share_no_connection() -> None:
    """When a shared one is there again, gRPC may crash: each channel begins to watch its health."""
    port = first_free_port(1)
    servicer = Servicer("a")
    server = serve(servicer, port)
    address = f"127.0.0.1:{port}"
    async with connect(address) as one, connect(address) as other:
        assert [await ask(one), await ask(other)] == ["a", "a"]
    assert len(servicer.connections) == 2
    with connect_sync(address) as one, connect_sync(address) as other:
        for channel in (one, other):
            stub = payments_pb2_grpc.PaymentServiceStub(channel)
            stub.GetPayment(payments_pb2.GetPaymentRequest(payment_id="pay_1"))
    assert len(servicer.connections) == 4
    server.stop(0).wait()


async def test_unavailable_is_asked_again_until_answered() -> None:
    port = first_free_port(1)
    servicer = Servicer("a", failures=3)
    server = serve(servicer, port)
    async with connect(f"127.0.0.1:{port}") as channel:
        assert await ask(channel) == "a"
    assert servicer.calls == 4
    server.stop(0).wait()


async def test_a_refused_call_is_repeated_after_the_delay_that_the_service_asks_for() -> None:
    """gRPC's own first backoff is 50 ms."""
    port = first_free_port(1)
    servicer = Servicer("a", failures=2, pushback_ms=400)
    server = serve(servicer, port)
    async with connect(f"127.0.0.1:{port}") as channel:
        began = time.monotonic()
        assert await ask(channel) == "a"
        waited = time.monotonic() - began
    assert servicer.calls == 3
    assert waited >= 0.8
    server.stop(0).wait()


async def test_retries_stop_while_most_calls_are_refused() -> None:
    """Otherwise an overload would be multiplied by the number of tries."""
    port = first_free_port(1)
    servicer = Servicer("a", failures=10_000, pushback_ms=1)
    server = serve(servicer, port)
    calls = 150
    async with connect(f"127.0.0.1:{port}") as channel:
        for _ in range(calls):
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(channel)
    assert servicer.calls < 2 * calls
    server.stop(0).wait()


async def test_server_that_is_back_is_found_within_seconds() -> None:
    port = first_free_port(1)
    server = serve(Servicer("a"), port)
    async with connect(f"127.0.0.1:{port}") as channel:
        assert await ask(channel) == "a"
        server.stop(0).wait()
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(channel)
        server = serve(Servicer("b"), port)
        assert await ask(channel) == "b"
    server.stop(0).wait()


async def test_an_only_server_is_used_soon_after_it_returns() -> None:
    """As long as a replica's start takes; callers ask again where all retries came too soon."""
    port = first_free_port(1)
    server = serve(Servicer("a"), port)
    away = 1.3

    async def come_back() -> grpc.Server:
        await asyncio.sleep(away)
        return serve(Servicer("b"), port)

    async def caller(channel: grpc.aio.Channel) -> str:
        while True:
            try:
                return await ask(channel)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.02)

    async with connect(f"127.0.0.1:{port}") as channel:
        assert await ask(channel) == "a"
        server.stop(0).wait()
        began = time.monotonic()
        coming = asyncio.create_task(come_back())
        answers = await asyncio.gather(*(caller(channel) for _ in range(8)))
        waited = time.monotonic() - began
        assert set(answers) == {"b"}
        assert away <= waited < away + 1.1
    (await coming).stop(0).wait()


def test_callers_without_asyncio_have_the_same_channel() -> None:
    port = first_free_port(1)
    server = serve(Servicer("a", failures=1), port)
    with connect_sync(f"127.0.0.1:{port}") as channel:
        stub = payments_pb2_grpc.PaymentServiceStub(channel)
        answer = stub.GetPayment(payments_pb2.GetPaymentRequest(payment_id="pay_1"))
    assert answer.payment.payment_id == "a"
    server.stop(0).wait()


def test_only_reads_and_keyed_mutations_are_retried() -> None:
    retried, once = service_config()["methodConfig"]
    names = {(name["service"].rpartition(".")[2], name["method"]) for name in retried["name"]}
    assert retried["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
    assert {
        ("PaymentService", "InitiatePayment"),
        ("PaymentService", "CapturePayment"),
        ("PaymentService", "RefundPayment"),
        ("PaymentService", "GetPayment"),
        ("PaymentService", "ListPayments"),
        ("ExpertService", "GetExpert"),
    } <= names
    assert "retryPolicy" not in once
    single = {(name["service"].rpartition(".")[2], name["method"]) for name in once["name"]}
    assert ("WebhookService", "IngestEvent") in single
    assert not names & single


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["payments:50051"], "payments:50051"),
        (["dns:///payments:50051"], "dns:///payments:50051"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[::1]:1", "[::2]:2"], "ipv6:[::1]:1,[::2]:2"),
        (["10.0.0.1:1-3"], "ipv4:10.0.0.1:1,10.0.0.1:2,10.0.0.1:3"),
        (["10.0.0.1:7-7"], "10.0.0.1:7"),
        (["[::1]:1-2", "[::2]:1-2"], "ipv6:[::1]:1,[::1]:2,[::2]:1,[::2]:2"),
    ],
)
def test_addresses_become_one_target(targets: list[str], expected: str) -> None:
    assert target_of(targets) == expected


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ([], "at least one"),
        (["10.0.0.1:1", "payments:2"], "is a name"),
        (["10.0.0.1:1", "10.0.0.2"], "has no port"),
        (["10.0.0.1:1", "[::1]:2"], "mixed"),
        (["payments:1-2"], "is a name"),
        (["10.0.0.1:2-1"], "no range"),
        (["10.0.0.1:0-1"], "no range"),
        (["10.0.0.1:1-65"], "at most 64"),
        (["10.0.0.1:65530-65536"], "no range"),
    ],
)
def test_addresses_that_cannot_share_a_channel_are_refused(targets: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        target_of(targets)
