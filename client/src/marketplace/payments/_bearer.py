"""Adds the caller's token to each call. Used by `marketplace.payments.channel`."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio

from marketplace.payments.credentials import NoToken, Token


class Details(NamedTuple):
    """What gRPC calls ClientCallDetails, for threads."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class NoTokenError(grpc.RpcError):
    """The call was not made, because there is no token. It looks like any error of a call."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self._sentence = sentence

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return self._sentence


class Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """For callers with threads."""

    def __init__(self, token: Token) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def _with_token(self, details: Any) -> Details:
        try:
            token = self._token.at_hand() or self._token.renewed()
        except NoToken as fault:
            raise NoTokenError(str(fault)) from None
        return Details(
            details.method,
            details.timeout,
            [*(details.metadata or ()), ("authorization", f"Bearer {token}")],
            details.credentials,
            getattr(details, "wait_for_ready", None),
            getattr(details, "compression", None),
        )


class AioBearer(grpc.aio.UnaryUnaryClientInterceptor):
    """For callers with asyncio."""

    def __init__(self, token: Token) -> None:
        self._token = token

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(await _with_token(self._token, client_call_details), request)


class AioStreamBearer(grpc.aio.UnaryStreamClientInterceptor):
    """For streams: gRPC takes one interceptor for one kind of call."""

    def __init__(self, token: Token) -> None:
        self._token = token

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(await _with_token(self._token, client_call_details), request)


async def _with_token(token: Token, details: Any) -> grpc.aio.ClientCallDetails:
    try:
        text = token.at_hand() or await asyncio.to_thread(token.renewed)
    except NoToken as fault:
        empty = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, empty, empty, details=str(fault)
        ) from None
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    metadata.add("authorization", f"Bearer {text}")
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )
