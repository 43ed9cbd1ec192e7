"""What every call passes: who calls, how many are in progress, and what an error becomes.

One interceptor wraps every method, health and reflection included. Without it bad bytes and
exceptions would reach the caller as UNKNOWN with the exception's text. What does not change from
call to call is made once for each method.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import code_pb2
from grpc import aio

from payment_service.domain.ports.tracing import NO_TRACER, Span, Tracer, trace_id_of
from payment_service.rpc.access import AccessControl
from payment_service.rpc.admission import Admission, CallClass, class_of
from payment_service.rpc.call_context import CALLER, REQUEST_ID, Context, Place, identify
from payment_service.rpc.errors import Malformed, status_of_error, to_grpc
from payment_service.rpc.spans import (
    conclude_span,
    is_traced,
    note_call,
    payment_id_of,
    span_facts,
)

#: How long the message of a call that anybody may make may take to arrive.
_MESSAGE_SECONDS: Final = 30.0

#: Gets the method, status code and seconds of each call.
Observe = Callable[[str, str, float], None]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"


@dataclass(slots=True)
class _Arrival:
    """What is known of a call before its message is received."""

    began: float
    traceparent: str
    refusal: Exception | None = None


#: Of the call in progress: gRPC runs interceptor and handler in one task.
_ARRIVAL: Final[ContextVar[_Arrival]] = ContextVar("arrival")


@dataclass(frozen=True, slots=True)
class _Doors:
    """The two handlers of a method: one serves, and one says why not, without any message."""

    serving: Handler
    refusing: Handler


class CallInterceptor(aio.ServerInterceptor):
    """Lets callers in, gives calls their places, and maps and counts what comes of them.

    Who calls is known from the headers. gRPC receives the message of a call only when the
    interceptor has chosen a handler that takes one message, so that of a stranger is never
    received. The message is parsed when the call has its place.
    """

    def __init__(
        self,
        observe: Observe,
        access: AccessControl,
        admission: Admission | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self.observe = observe
        self._access = access
        self._admission = admission
        self._tracer = tracer
        self._doors: dict[str, _Doors] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        method = handler_call_details.method
        doors = self._doors.get(method)
        if doors is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            doors = self._doors[method] = self._doors_of(method, handler)
        metadata = handler_call_details.invocation_metadata or ()
        arrival = _arrive(metadata)
        try:
            await self._access.admit_by_headers(method, metadata)
        except Exception as refusal:  # noqa: BLE001 - it is mapped where the call can be answered
            arrival.refusal = refusal
            return doors.refusing
        return doors.serving

    def _doors_of(self, method: str, handler: Any) -> _Doors:
        if handler.request_streaming and not handler.response_streaming:
            raise AssertionError("no service here takes a stream and answers once")
        tracer = self._tracer if is_traced(method) and not handler.response_streaming else NO_TRACER
        one = _Method(method, handler, tracer, self, self._access.is_public(method))
        return _Doors(one.serving(), one.refusing())

    @asynccontextmanager
    async def admitted(
        self, method: str, call_class: CallClass, context: Context
    ) -> AsyncIterator[None]:
        """Lets the call in. It has its place, if it needs one, until the block ends."""
        place = await self._place(method, call_class, context)
        try:
            yield
        finally:
            if place is not None:
                place.leave()

    async def _place(self, method: str, call_class: CallClass, context: Context) -> Place | None:
        await self._access.admit_by_connection(method, context)
        caller = CALLER.get(None)
        if caller is not None:  # Health answers anybody, so nobody is known there.
            structlog.contextvars.bind_contextvars(caller=caller.name)
        if self._admission is None:
            return None
        peer = "" if caller else context.peer().rpartition(":")[0]
        return await self._admission.enter(call_class, caller, peer)


class _Method:
    """One method: how its calls are served."""

    def __init__(
        self, name: str, handler: Any, tracer: Tracer, door: CallInterceptor, is_public: bool
    ) -> None:
        self.name = name
        self.observe, self.tracer = door.observe, tracer
        self._handler, self._door = handler, door
        self._span_name, self._facts = name.lstrip("/"), span_facts(name)
        self._call_class = class_of(name)
        self._parse = _strict(handler.request_deserializer)
        #: Its calls read their message themselves: gRPC would wait for it as long as the
        #: connection lives, and anybody could keep such calls open.
        self._reads = is_public

    def serving(self) -> Handler:
        """Returns the handler of calls that were let in. It gets the message as bytes."""
        handler = self._handler
        if not handler.response_streaming:
            make = (
                grpc.stream_unary_rpc_method_handler
                if self._reads
                else grpc.unary_unary_rpc_method_handler
            )
            return make(self._answer(handler.unary_unary))
        # A stream's messages are serialized by grpc itself: some handlers write them to the
        # context, past any wrapper.
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(handler.stream_stream),
                response_serializer=handler.response_serializer,
            )
        make = (
            grpc.stream_stream_rpc_method_handler
            if self._reads
            else grpc.unary_stream_rpc_method_handler
        )
        return make(
            self._stream(handler.unary_stream), response_serializer=handler.response_serializer
        )

    def refusing(self) -> Handler:
        """Returns the handler of calls that were refused. To gRPC it takes a stream, unread."""

        async def refuse(_: Any, context: Context) -> bytes:
            arrival = _ARRIVAL.get()
            with self._span(arrival) as span:
                async with _Guard(self, arrival, context, span):
                    raise arrival.refusal or AssertionError("nobody has refused")
            raise AssertionError("abort raises")

        if not self._handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(refuse)
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _span(self, arrival: _Arrival) -> Any:
        return self.tracer.serve(self._span_name, self._facts, arrival.traceparent)

    def _admitted(self, context: Context) -> AbstractAsyncContextManager[None]:
        return self._door.admitted(self.name, self._call_class, context)

    def _answer(self, inner: Any) -> Any:
        serialize = self._handler.response_serializer

        async def answer(given: Any, context: Context) -> bytes:
            arrival = _ARRIVAL.get()
            with self._span(arrival) as span:
                async with _Guard(self, arrival, context, span), self._admitted(context):
                    request = await self._request(given, context)
                    note_call(span, _bind_payment(request))
                    return _bytes(await inner(request, context), serialize)
            raise AssertionError("abort raises")

        return answer

    def _stream(self, inner: Any) -> Any:
        """A stream has no span of its own: it may last for days."""

        async def generate(given: Any, context: Context) -> AsyncIterator[Any]:
            async with _Guard(self, _ARRIVAL.get(), context), self._admitted(context):
                async for response in inner(await self._request(given, context), context):
                    yield response

        async def write(given: Any, context: Context) -> None:
            async with _Guard(self, _ARRIVAL.get(), context), self._admitted(context):
                await inner(await self._request(given, context), context)

        return generate if inspect.isasyncgenfunction(inner) else write

    async def _request(self, given: Any, context: Context) -> Any:
        """Returns the message of a call, or the messages if it sends a stream."""
        if self._handler.request_streaming:
            return self._parsed(given)
        return self._parse(await _only_message(context) if self._reads else given)

    async def _parsed(self, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for request in requests:
            yield self._parse(request)


class _Guard:
    """Turns what a call raises into its status, counts the call, and ends its span."""

    def __init__(
        self, method: _Method, arrival: _Arrival, context: Context, span: Span | None = None
    ) -> None:
        self._method, self._arrival, self._context, self._span = method, arrival, context, span

    async def __aenter__(self) -> None:
        if self._span is not None:
            _bind({"trace_id": trace_id_of(self._method.tracer.traceparent())})
            note_call(self._span, {"request_id": REQUEST_ID.get()})

    async def __aexit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        code = "OK"
        try:
            if error is None:
                return
            code = "CANCELLED"
            if isinstance(error, aio.AbortError):
                given: Any = self._context.code()  # the number 0, if none was set
                code = given.name if isinstance(given, grpc.StatusCode) else code
            elif isinstance(error, Exception):
                status = status_of_error(error, self._method.name)
                code = code_pb2.Code.Name(status.code)
                await self._context.abort_with_status(to_grpc(status))
        finally:
            seconds = time.perf_counter() - self._arrival.began
            self._method.observe(self._method.name, code, seconds)
            if self._span is not None:
                conclude_span(self._span, code)


def _arrive(metadata: Any) -> _Arrival:
    """Reads the headers once, and lets every line of the log name the call."""
    request_id = traceparent = ""
    for name, value in metadata:
        if name == "x-request-id" and isinstance(value, str):
            request_id = value
        elif name == "traceparent" and isinstance(value, str):
            traceparent = value
    _bind({"request_id": identify(request_id), "trace_id": trace_id_of(traceparent)})
    arrival = _Arrival(time.perf_counter(), traceparent)
    _ARRIVAL.set(arrival)
    return arrival


def _bind_payment(request: Any) -> Mapping[str, str]:
    """Lets the lines of the log name the payment that a call names."""
    return _bind({"payment": payment_id_of(request)})


def _bind(names: Mapping[str, str]) -> Mapping[str, str]:
    known = {name: value for name, value in names.items() if value}
    if known:
        structlog.contextvars.bind_contextvars(**known)
    return known


async def _only_message(context: Context) -> bytes:
    """Returns the message of a call. Raises :class:`Malformed` unless there is one."""
    try:
        async with asyncio.timeout(_MESSAGE_SECONDS):
            request: Any = await context.read()
            more: Any = aio.EOF if request is aio.EOF else await context.read()
    except TimeoutError:
        raise Malformed from None
    if request is aio.EOF or more is not aio.EOF:
        raise Malformed
    return bytes(request)


def _strict(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Parses, or raises :class:`Malformed`."""

    def parsed(data: bytes) -> Any:
        if parse is None:
            return data
        try:
            return parse(data)
        except (DecodeError, ValueError, RecursionError):
            raise Malformed from None

    return parsed


def _bytes(response: Any, serialize: Callable[[Any], bytes] | None) -> bytes:
    """Returns the bytes of a response. Stored answers are bytes already."""
    if isinstance(response, bytes) or serialize is None:
        return bytes(response)
    return serialize(response)
