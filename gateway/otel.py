"""Makes the gateway's spans of OpenTelemetry, and sends them by OTLP over gRPC."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from gateway.tracing import Tracing

#: How long a collector may take. It also bounds how much later the process ends without one.
_TIMEOUT_SECONDS = 2


def tracing_to(endpoint: str) -> Tracing:
    """Returns spans that are sent in batches, by a thread of their own."""
    provider = TracerProvider(
        resource=Resource.create({"service.name": "payment_gateway"}), shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(
        endpoint, insecure=endpoint.startswith("http://"), timeout=_TIMEOUT_SECONDS
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("gateway")

    @contextmanager
    def span(name: str) -> Iterator[str]:
        # Strangers can send the header of a trace, so each delivery begins a trace of its own. The
        # texts of exceptions may hold what they sent.
        with tracer.start_as_current_span(
            name,
            Context(),
            trace.SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as begun:
            yield f"{begun.get_span_context().trace_id:032x}"

    return Tracing(span, provider.shutdown)
