"""The doors that need no database: health, reflection, and an RPC that nobody has decided on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from marketplace.payments.v1 import payments_pb2, payments_pb2_grpc
from payment_service.bootstrap import SERVICES
from payment_service.domain.caller import Role
from payment_service.domain.quotas import Buckets, Quota
from payment_service.metrics import Metrics
from payment_service.rpc import interceptor as interceptor_module
from payment_service.rpc.access import AccessControl
from payment_service.rpc.admission import Admission, CallClass, ClassLimit
from payment_service.rpc.call_context import CALLER, Context
from payment_service.rpc.interceptor import CallInterceptor
from payment_service.server import OPTIONS, _add_reflection, _Health, _until_end
from tests.support.errors import Refused
from tests.support.identity import NOBODY, BelievingAuthenticator, Metadata, as_caller
from tests.support.world import until

_PLACES = {CallClass.HEALTH_WATCH: ClassLimit(4, 0, 0.0)}
_SETTINGS, _HEADERS, _DATA, _END_STREAM, _END_HEADERS = 4, 1, 0, 1, 4
_STATUS = "/marketplace.payments.v1.PaymentService/GetPaymentStatus"


class Echo(payments_pb2_grpc.PaymentServiceServicer):
    """Answers with who calls, and fails like a handler with a bug."""

    async def GetPaymentStatus(  # noqa: N802 - the contract's name
        self, request: payments_pb2.GetPaymentStatusRequest, context: Context
    ) -> payments_pb2.GetPaymentStatusResponse:
        caller = CALLER.get()
        return payments_pb2.GetPaymentStatusResponse(payment_id=f"{caller.name} {caller.act_for}")


def echo() -> payments_pb2_grpc.PaymentServiceServicer:
    return Echo()  # type: ignore[abstract]  # the other methods are not called


@contextlib.asynccontextmanager
async def serving(
    *services: str, addresses: list[str] | None = None
) -> AsyncIterator[tuple[aio.Channel, list[tuple[str, str]]]]:
    """A server with these services known to access, its channel, and what it has counted."""
    counted: list[tuple[str, str]] = []
    access = AccessControl(BelievingAuthenticator(), services)
    admission = Admission(_PLACES, Buckets(Quota(0, 1), {}), Metrics())
    interceptor = CallInterceptor(
        lambda method, code, _: counted.append((method, code)), access, admission
    )
    server = aio.server(interceptors=[interceptor], options=OPTIONS)
    payments_pb2_grpc.add_PaymentServiceServicer_to_server(echo(), server)
    servicer = _Health()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    _add_reflection(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    if addresses is not None:
        addresses.append(f"127.0.0.1:{port}")
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, counted
    await server.stop(0)


async def refusal_of(call: Any) -> Refused:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return Refused.of(caught.value)


def status(channel: aio.Channel, metadata: Metadata) -> Any:
    ask: Any = channel.unary_unary(
        _STATUS, response_deserializer=payments_pb2.GetPaymentStatusResponse.FromString
    )
    return ask(b"", metadata=metadata)


async def test_probes_need_no_credentials() -> None:
    async with serving(*SERVICES) as (channel, counted):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        answer = await stub.Check(request, metadata=NOBODY)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(request, metadata=NOBODY)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        assert ("/grpc.health.v1.Health/Check", "OK") in counted


async def test_a_service_that_health_does_not_know_is_counted_as_not_found() -> None:
    async with serving(*SERVICES) as (channel, counted):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        refused = await refusal_of(stub.Check(health_pb2.HealthCheckRequest(service="unknown")))
        assert refused.code == "NOT_FOUND"
        assert counted == [("/grpc.health.v1.Health/Check", "NOT_FOUND")]


async def test_strangers_watch_health_from_a_bounded_number_of_places() -> None:
    async with serving(*SERVICES) as (channel, _):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        watches = [stub.Watch(request, metadata=NOBODY) for _ in range(3)]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        refused = await refusal_of(stub.Watch(request, metadata=NOBODY).read())
        assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert refused.facts == {"call_class": "HEALTH_WATCH", "limit": "3"}
        assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        watches[0].cancel()

        async def again() -> bool:
            try:
                return bool(await stub.Watch(request, metadata=NOBODY).read())
            except aio.AioRpcError:
                return False

        await until(again, "the place that was left")


@pytest.mark.parametrize("path", [b"/\xff\xfe/x", b"", b"x", b"//", b"/a" * 2_000])
async def test_no_path_of_a_call_ends_the_server(path: bytes) -> None:
    """One that is no UTF-8 ends the loop of grpc.aio 1.84 and 1.85: nobody is served any more."""
    addresses: list[str] = []
    async with serving(*SERVICES, addresses=addresses) as (channel, _):
        host, _, port = addresses[0].rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(one_call(path))
        await asyncio.sleep(0.2)
        assert (await status(channel, as_caller(Role.GIG_SERVICE))).payment_id
        writer.close()


def one_call(path: bytes) -> bytes:
    """Returns the bytes of a connection with one call, whose path gRPC's clients may not send."""
    headers = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"a"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
    block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in headers)
    return b"".join(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            _frame(_SETTINGS, 0, 0),
            _frame(_HEADERS, _END_HEADERS, 1, block),
            _frame(_DATA, _END_STREAM, 1, bytes(5)),
        )
    )


def _literal(text: bytes) -> bytes:
    """A text of HPACK, its length before it."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest = len(text) - 127
    return bytes([127, rest % 128 + 128, rest // 128]) + text


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


async def test_a_server_that_ends_by_itself_is_noticed() -> None:
    server = aio.server()
    await server.start()
    ending = asyncio.create_task(_until_end(server, asyncio.Event()))
    await asyncio.sleep(0.05)
    assert not ending.done()
    await server.stop(None)
    assert await asyncio.wait_for(ending, 5) is False


async def test_an_end_that_was_asked_for_is_none() -> None:
    server, stop = aio.server(), asyncio.Event()
    await server.start()
    stop.set()
    assert await asyncio.wait_for(_until_end(server, stop), 5) is True
    await server.stop(None)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_is_for_operators(version: str) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with serving(*SERVICES) as (channel, _):
        reflect: Any = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )

        async def names(metadata: Metadata) -> list[str]:
            call = reflect(iter([request]), metadata=metadata)
            return [one.name for one in (await call.read()).list_services_response.service]

        for role in (Role.OPERATOR, Role.OPERATOR_READ_ONLY):
            assert SERVICES[0] in await names(as_caller(role))
        assert (await refusal_of(names(NOBODY))).code == "UNAUTHENTICATED"
        refused = await refusal_of(names(as_caller(Role.GIG_SERVICE)))
        assert (refused.code, refused.facts["roles"]) == (
            "PERMISSION_DENIED",
            "OPERATOR,OPERATOR_READ_ONLY",
        )


async def test_what_nobody_has_decided_on_is_refused_to_everybody() -> None:
    async with serving() as (channel, _):  # Access knows no service of ours.
        refused = await refusal_of(status(channel, as_caller(*Role)))
    assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "ROLE_REQUIRED")
    assert refused.facts == {"rpc": "PaymentService/GetPaymentStatus", "roles": ""}


async def test_refusals_are_counted_as_what_they_are() -> None:
    async with serving(*SERVICES) as (channel, counted):
        await refusal_of(status(channel, NOBODY))
        await refusal_of(status(channel, as_caller(Role.GATEWAY)))
        await status(channel, as_caller(Role.GIG_SERVICE))
        assert counted == [
            (_STATUS, "UNAUTHENTICATED"),
            (_STATUS, "PERMISSION_DENIED"),
            (_STATUS, "OK"),
        ]


async def test_a_stranger_is_refused_before_its_message_is_awaited() -> None:
    """Otherwise strangers could fill the memory with messages, and all calls with none."""
    never = asyncio.Event()

    async def nothing() -> AsyncIterator[bytes]:
        await never.wait()
        yield b""

    async with serving(*SERVICES) as (channel, _):
        ask: Any = channel.stream_unary(_STATUS)
        refused = await refusal_of(ask(nothing(), metadata=NOBODY, timeout=5))
        assert refused.code == "UNAUTHENTICATED"


async def test_a_message_that_is_too_long_is_refused_as_that() -> None:
    async with serving(*SERVICES) as (channel, counted):
        ask: Any = channel.unary_unary(_STATUS)
        for metadata, code in (
            (NOBODY, "UNAUTHENTICATED"),
            (as_caller(Role.GIG_SERVICE), "RESOURCE_EXHAUSTED"),
        ):
            refused = await refusal_of(ask(bytes(8 * 1024 * 1024), metadata=metadata, timeout=5))
            assert refused.code == code
        # The connection serves on.
        assert (await status(channel, as_caller(Role.GIG_SERVICE))).payment_id
        assert counted[0] == (_STATUS, "UNAUTHENTICATED")


async def test_a_strangers_call_without_its_message_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may ask for health, so its calls may not stay for as long as their connection."""
    monkeypatch.setattr(interceptor_module, "_MESSAGE_SECONDS", 0.1)
    never = asyncio.Event()

    async def nothing() -> AsyncIterator[bytes]:
        await never.wait()
        yield b""

    async def empty() -> AsyncIterator[bytes]:
        for message in list[bytes]():
            yield message

    async with serving(*SERVICES) as (channel, _):
        check: Any = channel.stream_unary("/grpc.health.v1.Health/Check")
        watch: Any = channel.stream_stream("/grpc.health.v1.Health/Watch")
        for messages in (nothing, empty):
            refused = await refusal_of(check(messages(), metadata=NOBODY, timeout=5))
            assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
            refused = await refusal_of(watch(messages(), metadata=NOBODY, timeout=5).read())
            assert refused.code == "INVALID_ARGUMENT"


async def test_a_burst_waits_for_the_event_loop() -> None:
    """By its default gRPC ends some of more than 1,000 waiting calls as CANCELLED."""
    own = (("grpc.use_local_subchannel_pool", 1),)
    async with contextlib.AsyncExitStack() as stack:
        addresses: list[str] = []
        await stack.enter_async_context(serving(*SERVICES, addresses=addresses))
        channels = [
            await stack.enter_async_context(aio.insecure_channel(addresses[0], own))
            for _ in range(4)
        ]
        metadata = as_caller(Role.GIG_SERVICE)
        await asyncio.gather(*(status(channel, metadata) for channel in channels))
        calls = [status(channels[number % 4], metadata) for number in range(3_600)]
        time.sleep(0.5)  # noqa: ASYNC251 - the event loop is to be busy
        answers = await asyncio.gather(*calls)
        assert {answer.payment_id for answer in answers} == {"tests "}


async def test_an_answer_does_not_wait_for_the_end_of_the_callers_stream() -> None:
    """A caller that ends its stream late, or not before the answer, gets the answer."""

    async def slow() -> AsyncIterator[bytes]:
        yield b""
        await asyncio.sleep(0.05)

    async with serving(*SERVICES) as (channel, _):
        ask: Any = channel.stream_unary(_STATUS)
        for metadata, code in ((as_caller(Role.GIG_SERVICE), "OK"), (NOBODY, "UNAUTHENTICATED")):
            calls = [ask(slow(), metadata=metadata, timeout=10) for _ in range(100)]
            assert {(await call.code()).name for call in calls} == {code}


async def test_calls_at_once_do_not_take_one_anothers_caller() -> None:
    async with serving(*SERVICES) as (channel, _):
        calls = {
            f"service-{number} user-{number}": status(
                channel,
                as_caller(Role.GIG_SERVICE, name=f"service-{number}", act_for=f"user-{number}"),
            )
            for number in range(50)
        }
        for expected, call in calls.items():
            assert (await call).payment_id == expected


async def test_a_broken_authenticator_lets_nobody_in() -> None:
    class Broken(BelievingAuthenticator):
        async def authenticate(self, *_: Any) -> Any:
            raise RuntimeError("a secret")

    access = AccessControl(Broken(), SERVICES)
    server = aio.server(interceptors=[CallInterceptor(lambda *_: None, access)])
    payments_pb2_grpc.add_PaymentServiceServicer_to_server(echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        refused = await refusal_of(status(channel, as_caller(*Role)))
    await server.stop(0)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE.name, "UNEXPECTED")
    assert b"secret" not in refused.raw
