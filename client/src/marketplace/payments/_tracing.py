"""Passes the caller's trace on, if the caller traces by OpenTelemetry.

This package does not need OpenTelemetry and never imports it: a caller who traces has imported it
before the channel is opened.
"""

import sys
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from marketplace.payments._bearer import Details

HEADER = "traceparent"


def is_traced() -> bool:
    """Returns whether the caller has imported OpenTelemetry."""
    return "opentelemetry.trace" in sys.modules


def traceparent() -> str:
    """Returns the caller's present span in W3C's form, or ""."""
    trace: Any = sys.modules["opentelemetry.trace"]
    found = trace.get_current_span().get_span_context()
    if not found.is_valid:
        return ""
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"


def _is_given(metadata: Any) -> bool:
    """Returns whether the caller, or its own instrumentation, has given a trace already."""
    return any(name == HEADER for name, _ in metadata or ())


class AioTrace(grpc.aio.UnaryUnaryClientInterceptor):
    """For callers with asyncio."""

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        details, trace = client_call_details, traceparent()
        if trace and not _is_given(details.metadata):
            metadata = grpc.aio.Metadata(*(details.metadata or ()))
            metadata.add(HEADER, trace)
            details = grpc.aio.ClientCallDetails(
                details.method,
                details.timeout,
                metadata,
                details.credentials,
                details.wait_for_ready,
            )
        return await continuation(details, request)


class Trace(grpc.UnaryUnaryClientInterceptor):
    """For callers with threads."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        trace = traceparent()
        if trace and not _is_given(details.metadata):
            details = Details(
                details.method,
                details.timeout,
                [*(details.metadata or ()), (HEADER, trace)],
                details.credentials,
                getattr(details, "wait_for_ready", None),
                getattr(details, "compression", None),
            )
        return continuation(details, request)
