"""A gRPC server whose one method says who calls it, with the service's own authentication."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from payment_service.access import authenticator_of, grpc_credentials
from payment_service.config import Settings
from payment_service.domain.errors import Refusal
from payment_service.domain.ports.identity import Authenticator
from payment_service.rpc.errors import status_of
from payment_service.server import OPTIONS

METHOD: Final = "/marketplace.payments.v1.PaymentService/GetPayment"
STREAM: Final = "/marketplace.payments.v1.EventService/WatchEvents"
#: So that each channel makes a connection of its own.
OWN_CONNECTION: Final = [("grpc.use_local_subchannel_pool", 1)]


class WhoCalls(aio.ServerInterceptor):
    """Answers every call with its caller, as JSON; a stream says it three times. Health passes."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        if handler_call_details.method.startswith("/grpc.health.v1."):
            return await continuation(handler_call_details)

        async def repeat(request: bytes, context: aio.ServicerContext[Any, Any]) -> Any:
            for _ in range(3):
                yield await tell(request, context)

        async def tell(request: bytes, context: aio.ServicerContext[Any, Any]) -> bytes:
            try:
                caller = await self._authenticator.authenticate(
                    tuple(context.invocation_metadata() or ()), context.auth_context()
                )
            except Refusal as refusal:
                await context.abort_with_status(rpc_status.to_status(status_of(refusal)))
                raise AssertionError("abort raises") from None
            return json.dumps([caller.name, sorted(caller.roles), caller.act_for]).encode()

        if handler_call_details.method == STREAM:
            return grpc.unary_stream_rpc_method_handler(repeat)
        return grpc.unary_unary_rpc_method_handler(tell)


@contextlib.asynccontextmanager
async def door(settings: Settings, reports: list[tuple[str, str]]) -> AsyncIterator[str]:
    """Yields the address of a server with the settings' authenticator and TLS."""

    def report(source: str, fault: str) -> None:
        reports.append((source, fault))

    authenticator = authenticator_of(settings, report)
    server = aio.server(interceptors=[WhoCalls(authenticator)], options=OPTIONS)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", "marketplace.payments.v1"):  # the second is what the client's channels watch
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    credentials = grpc_credentials(settings, report)
    port = (
        server.add_secure_port("127.0.0.1:0", credentials)
        if credentials
        else server.add_insecure_port("127.0.0.1:0")
    )
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def ask(channel: aio.Channel, *authorization: str) -> list[Any]:
    """Returns who the server says is calling."""
    metadata = [("authorization", value) for value in authorization]
    method: Any = channel.unary_unary(METHOD)
    told = json.loads(await method(b"", metadata=metadata, timeout=5))
    assert isinstance(told, list)
    return told


def refusal_of(error: aio.AioRpcError) -> tuple[str, str, Mapping[str, str]]:
    """Returns status code, reason and metadata of a refused call."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has all of it
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return error.code().name, info.reason, dict(info.metadata)
    return error.code().name, "", {}
