"""A collector of OTLP over gRPC: it decodes what is sent, and keeps the spans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from grpc import aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Seen:
    """One span, with the service that it came from."""

    service: str
    span: Span

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def trace(self) -> str:
        return self.span.trace_id.hex()

    @property
    def facts(self) -> dict[str, str | int]:
        return {
            fact.key: fact.value.string_value or fact.value.int_value
            for fact in self.span.attributes
        }


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that was sent to it."""

    address: str = ""
    spans: list[Seen] = field(default_factory=list)
    sent: bytes = b""

    async def Export(  # noqa: N802 - the contract's name
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        context: aio.ServicerContext[object, object],
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.sent += request.SerializeToString()
        for resource in request.resource_spans:
            service = next(
                fact.value.string_value
                for fact in resource.resource.attributes
                if fact.key == "service.name"
            )
            for scope in resource.scope_spans:
                self.spans += [Seen(service, span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, start: str) -> list[Seen]:
        return [seen for seen in self.spans if seen.name.startswith(start)]

    def children(self, parent: Seen) -> list[Seen]:
        return [seen for seen in self.spans if seen.span.parent_span_id == parent.span.span_id]


@asynccontextmanager
async def running_collector() -> AsyncIterator[Collector]:
    collector, server = Collector(), aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]  # generated
    port = server.add_insecure_port("127.0.0.1:0")
    collector.address = f"http://127.0.0.1:{port}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(0)
