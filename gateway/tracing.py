"""Traces of deliveries, if they are switched on by OTEL_EXPORTER_OTLP_ENDPOINT.

A span stands for one delivery of Stripe's. The client's channel passes it on to the core, which
stores it with the event, so that the span which applies the event names the delivery.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from gateway.settings import Settings

#: Begins the present span, by its name, and gives the id of its trace, or "".
Spans = Callable[[str], AbstractContextManager[str]]


@dataclass(frozen=True)
class Tracing:
    """Begins spans and sends what is left in the end."""

    span: Spans = lambda _name: nullcontext("")
    close: Callable[[], None] = lambda: None


NOT_TRACED = Tracing()


def tracing_of(settings: Settings) -> Tracing:
    """Returns what the settings ask for. OpenTelemetry is imported only if it is needed."""
    endpoint = settings.otel_exporter_otlp_endpoint
    if not endpoint:
        return NOT_TRACED
    from gateway.otel import tracing_to  # noqa: PLC0415 - its import takes a second

    return tracing_to(endpoint)
