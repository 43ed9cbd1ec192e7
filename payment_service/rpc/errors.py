"""The one place where errors become gRPC statuses.

One interceptor wraps access, parsing, handler and serialization of every method, health and
reflection included. Without it bad bytes and exceptions would reach the caller as UNKNOWN with the
exception's text. Nothing else maps errors. An unexpected error becomes UNAVAILABLE with a reference
that is in the log; never UNKNOWN, never INTERNAL, never a text from inside.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from payment_service.application.idempotency import ReplayedRefusal
from payment_service.domain.errors import Exhausted, Refusal, Unavailable
from payment_service.domain.guards import VersionMismatch
from payment_service.domain.ports.records import Answer
from payment_service.domain.ports.tracing import NO_TRACER, Span, Tracer, trace_id_of
from payment_service.rpc.call_context import CALLER, identify, metadata_of
from payment_service.rpc.messages.payments import payment_message
from payment_service.rpc.spans import (
    conclude_span,
    is_traced,
    note_call,
    payment_id_of,
    span_facts,
)

log = structlog.get_logger(__name__)

DOMAIN: Final = "payments.marketplace"
#: Details of 17 KB turn the error itself into RESOURCE_EXHAUSTED.
_MAX_DETAILS_BYTES: Final = 4096
_MALFORMED: Final = object()
#: gRPC's own retries wait as long as this says (gRFC A6).
_PUSHBACK: Final = "grpc-retry-pushback-ms"

#: How long the message of a call that was let in may take to arrive.
_MESSAGE_SECONDS: Final = 30.0

Observe = Callable[[str, str, float], None]
#: Lets the caller of a method in, or raises. It runs before anything looks at the request.
Admit = Callable[[str, aio.ServicerContext[Any, Any]], Awaitable[None]]


class _Malformed(Exception):
    """The message is not one, or did not come."""


def status_of(refusal: Refusal) -> status_pb2.Status:
    """Returns the status of a refusal: its ``ErrorInfo`` and, for fields, its ``BadRequest``."""
    status = status_pb2.Status(
        code=code_pb2.Code.Value(refusal.code.value), message=refusal.sentence[:1000]
    )
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN)
    for name, value in sorted(refusal.facts.items()):
        info.metadata[name] = value[:200]
    status.details.add().Pack(info)
    if refusal.fields:
        bad = error_details_pb2.BadRequest()
        for field, fault in refusal.fields[:20]:
            bad.field_violations.add(field=field[:100], description=fault[:200])
        status.details.add().Pack(bad)
    if isinstance(refusal, VersionMismatch):
        status.details.add().Pack(payment_message(refusal.payment))
    if isinstance(refusal, Exhausted):
        status.details.add().Pack(_retry_info(refusal.retry_seconds))
    while status.ByteSize() > _MAX_DETAILS_BYTES:
        del status.details[-1]
    return status


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    """Returns the delay with jitter, so that the refused callers do not come back together."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(round(1000 * seconds * random.uniform(1, 2)))  # noqa: S311
    return info


def _to_grpc(status: status_pb2.Status) -> Any:
    """Returns gRPC's status, with the delay also where gRPC's own retries look for it."""
    found: Any = rpc_status.to_status(status)
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            delay = (_PUSHBACK, str(info.retry_delay.ToMilliseconds()))
            return found._replace(trailing_metadata=(*found.trailing_metadata, delay))
    return found


def refusal_answer(refusal: Refusal) -> Answer:
    """Returns a refusal as bytes, to be stored: maps would serialize in varying order."""
    return Answer(False, status_of(refusal).SerializeToString(deterministic=True))


def _status_of_error(error: Exception, method: str) -> status_pb2.Status:
    if isinstance(error, ReplayedRefusal):
        return status_pb2.Status.FromString(error.answer.body)
    if isinstance(error, Refusal):
        return status_of(error)
    reference = secrets.token_hex(6)
    log.error(
        "unexpected_error",
        method=method,
        error=type(error).__name__,
        where=_where(error),
        reference=reference,
    )
    return status_of(
        Unavailable(
            "UNEXPECTED",
            f"an unexpected error; the log explains it under the reference {reference}",
            {"reference": reference},
        )
    )


def _where(error: BaseException) -> str:
    """Returns file and line, never the text: the text of an exception can contain values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"


def _malformed() -> status_pb2.Status:
    status = status_pb2.Status(
        code=code_pb2.INVALID_ARGUMENT, message="the bytes are not a message of the expected type"
    )
    info = error_details_pb2.ErrorInfo(reason="MALFORMED_MESSAGE", domain=DOMAIN)
    status.details.add().Pack(info)
    return status


class ErrorInterceptor(aio.ServerInterceptor):
    """Wraps every method. ``observe`` gets the method, status code and seconds of each call.

    ``admit`` is called here and not in an interceptor of its own, so that what it raises is mapped
    and counted as everything else. A server cannot be made without it.

    To gRPC every method takes a stream of messages, here of one. So gRPC calls us with the headers
    alone, and the message is read after ``admit``: a stranger can neither fill the memory
    with messages nor keep calls open that never get theirs.
    """

    def __init__(self, observe: Observe, admit: Admit, tracer: Tracer = NO_TRACER) -> None:
        self._observe = observe
        self._admit = admit
        self._tracer = tracer

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        parse = _tolerant(handler.request_deserializer)
        # A stream's messages are serialized by grpc itself: some handlers write them to the
        # context, past any wrapper.
        if handler.response_streaming:
            streams_in = bool(handler.request_streaming)
            inner = handler.stream_stream if streams_in else handler.unary_stream
            return grpc.stream_stream_rpc_method_handler(
                self._stream(method, inner, streams_in),
                request_deserializer=parse,
                response_serializer=handler.response_serializer,
            )
        if handler.request_streaming:
            raise AssertionError("no service here takes a stream and answers once")
        return grpc.stream_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary, handler.response_serializer),
            request_deserializer=parse,
            response_serializer=None,
        )

    def _unary(self, method: str, inner: Any, serialize: Any) -> Any:
        async def call(_: Any, context: aio.ServicerContext[Any, Any]) -> bytes:
            parent = metadata_of(context, "traceparent")
            tracer = self._tracer if is_traced(method) else NO_TRACER
            with tracer.serve(method.lstrip("/"), span_facts(method), parent) as span:
                async with self._guarded(method, context, span):
                    request = await _only_message(context)
                    note_call(span, _bind_payment(request))
                    return _bytes(await inner(request, context), serialize)
            raise AssertionError("abort raises")

        return call

    @asynccontextmanager
    async def _guarded(
        self, method: str, context: aio.ServicerContext[Any, Any], span: Span | None = None
    ) -> AsyncIterator[None]:
        """Lets the caller in, and turns what a call or a stream raises into its status.

        A stream has no span of its own: it may last for days.
        """
        begun, code = time.perf_counter(), "OK"
        try:
            known = self._bind_log(context)
            if span is not None:
                note_call(span, known)
            await self._admit(method, context)
            # Health answers anybody, so nobody is known there.
            if (caller := CALLER.get(None)) is not None:
                structlog.contextvars.bind_contextvars(caller=caller.name)
            yield
        except _Malformed:
            code = "INVALID_ARGUMENT"
            await context.abort_with_status(rpc_status.to_status(_malformed()))
        except (aio.AbortError, asyncio.CancelledError, GeneratorExit):
            code = code if code != "OK" else "CANCELLED"
            raise
        except NotImplementedError:
            code = "UNIMPLEMENTED"
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not implemented")
        except Exception as error:  # noqa: BLE001 - nothing leaves unmapped
            status = _status_of_error(error, method)
            code = code_pb2.Code.Name(status.code)
            await context.abort_with_status(_to_grpc(status))
        finally:
            self._observe(method, code, time.perf_counter() - begun)
            if span is not None:
                conclude_span(span, code)

    def _bind_log(self, context: aio.ServicerContext[Any, Any]) -> Mapping[str, str]:
        """Lets every line of the log that this call leads to name the call. Returns its names."""
        trace = self._tracer.traceparent() or metadata_of(context, "traceparent")
        names = {"request_id": identify(context), "trace_id": trace_id_of(trace)}
        return _bind(names)

    def _stream(self, method: str, inner: Any, streams_in: bool) -> Any:
        async def given(requests: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            if streams_in:
                return _well_formed(requests)
            request = await _only_message(context)
            _bind_payment(request)
            return request

        async def generate(
            requests: Any, context: aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            async with self._guarded(method, context):
                async for response in inner(await given(requests, context), context):
                    yield response

        async def write(requests: Any, context: aio.ServicerContext[Any, Any]) -> None:
            async with self._guarded(method, context):
                await inner(await given(requests, context), context)

        return generate if inspect.isasyncgenfunction(inner) else write


def _bind_payment(request: Any) -> Mapping[str, str]:
    """Lets the lines of the log name the payment that a call names."""
    return _bind({"payment": payment_id_of(request)})


def _bind(names: Mapping[str, str]) -> Mapping[str, str]:
    known = {name: value for name, value in names.items() if value}
    structlog.contextvars.bind_contextvars(**known)
    return known


async def _only_message(context: aio.ServicerContext[Any, Any]) -> Any:
    """Returns the message of a call. Raises :class:`_Malformed` unless there is one.

    It waits until the caller has said that there are no more. An answer before that would reset the
    stream, and the caller could see CANCELLED in place of the answer.
    """
    try:
        async with asyncio.timeout(_MESSAGE_SECONDS):
            request: Any = await context.read()
            more: Any = aio.EOF if request is aio.EOF else await context.read()
    except TimeoutError:
        raise _Malformed from None
    if request is _MALFORMED or request is aio.EOF or more is not aio.EOF:
        raise _Malformed
    return request


async def _well_formed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if request is _MALFORMED:
            raise _Malformed
        yield request


def _tolerant(parse: Callable[[bytes], Message] | None) -> Callable[[bytes], object]:
    """Parses, or returns a sentinel: an exception here would reach the caller as UNKNOWN."""

    def deserialize(data: bytes) -> object:
        if parse is None:
            return data
        try:
            return parse(data)
        except (DecodeError, ValueError, RecursionError):
            return _MALFORMED

    return deserialize


def _bytes(response: Any, serialize: Callable[[Any], bytes] | None) -> bytes:
    """Returns the bytes of a response. Stored answers are bytes already."""
    if isinstance(response, bytes) or serialize is None:
        return bytes(response)
    return serialize(response)
