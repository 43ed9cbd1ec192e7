"""Makes spans of OpenTelemetry, and sends them by OTLP over gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from payment_service.domain.ports.tracing import NO_TRACER, Facts, Span, parts_of

#: How long a collector may take. It also bounds how much later the process ends without one.
_TIMEOUT_SECONDS: Final = 2


class OtelSpan:
    """One span that is being recorded, or passed over by the sampler."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def note(self, name: str, value: str | int) -> None:
        self._span.set_attribute(name, value)

    def failed(self, why: str) -> None:
        self._span.set_status(trace.StatusCode.ERROR, why)


class OtelTracer:
    """The tracer port. ``OTEL_TRACES_SAMPLER`` says which traces are recorded; by default all."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("payment_service")

    @classmethod
    def sending_to(cls, endpoint: str) -> OtelTracer:
        """Returns a tracer whose spans are sent in batches, by a thread of their own."""
        provider = TracerProvider(
            resource=Resource.create({"service.name": "payment_service"}), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(
            endpoint, insecure=endpoint.startswith("http://"), timeout=_TIMEOUT_SECONDS
        )
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def serve(self, name: str, facts: Facts, parent: str) -> AbstractContextManager[Span]:
        """Begins a span for a call; ``parent`` is the caller's ``traceparent``, or ""."""
        far, context = _span_context_of(parent), Context()
        if far is not None:
            context = trace.set_span_in_context(trace.NonRecordingSpan(far), context)
        return self._begin(name, trace.SpanKind.SERVER, facts, context)

    def work(
        self, name: str, facts: Facts, links: Sequence[str] = ()
    ) -> AbstractContextManager[Span]:
        """Begins a trace for work in the background, linked to the spans that gave reason to it."""
        far = [trace.Link(found) for link in links if (found := _span_context_of(link))]
        return self._begin(name, trace.SpanKind.CONSUMER, facts, Context(), far)

    def step(self, name: str, facts: Facts) -> AbstractContextManager[Span]:
        """Begins a span within the present one. Without one it does nothing."""
        if not trace.get_current_span().get_span_context().is_valid:
            return NO_TRACER.step(name, facts)
        return self._begin(name, trace.SpanKind.INTERNAL, facts)

    def request(self, name: str, facts: Facts) -> AbstractContextManager[Span]:
        """Begins such a span for a request to another system."""
        if not trace.get_current_span().get_span_context().is_valid:
            return NO_TRACER.request(name, facts)
        return self._begin(name, trace.SpanKind.CLIENT, facts)

    def traceparent(self) -> str:
        """Returns the present span in W3C's form, or ""."""
        found = trace.get_current_span().get_span_context()
        if not found.is_valid:
            return ""
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"

    def close(self) -> None:
        """Sends what has not been sent. It may take some seconds."""
        self._provider.shutdown()

    @contextmanager
    def _begin(
        self,
        name: str,
        kind: trace.SpanKind,
        facts: Facts,
        context: Context | None = None,
        links: Sequence[trace.Link] = (),
    ) -> Iterator[Span]:
        # Exceptions are not recorded: their texts may contain values.
        with self._tracer.start_as_current_span(
            name,
            context,
            kind,
            dict(facts),
            links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield OtelSpan(span)


def _span_context_of(traceparent: str) -> trace.SpanContext | None:
    parts = parts_of(traceparent)
    if parts is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in parts)
    return trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
