"""Traces, if they are switched on by OTEL_EXPORTER_OTLP_ENDPOINT.

OpenTelemetry's SDK takes a second to import. A service that does not trace pays neither for that
nor for spans.
"""

from __future__ import annotations

from payment_service.config import Settings
from payment_service.domain.ports.tracing import NO_TRACER, Tracer

__all__ = ["tracer_of"]


def tracer_of(settings: Settings) -> Tracer:
    """Returns the tracer that the settings ask for."""
    endpoint = settings.otel_exporter_otlp_endpoint
    if not endpoint:
        return NO_TRACER
    from payment_service.tracing.otel import OtelTracer  # noqa: PLC0415 - only when it is needed

    return OtelTracer.sending_to(endpoint)
