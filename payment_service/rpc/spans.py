"""What the spans and the lines of the log of a call say of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from payment_service.domain.ports.tracing import Span

#: What a payment's id looks like. Anything else that a caller sends in its place is not logged.
_PAYMENT_ID: Final = re.compile(r"pay_[A-Za-z0-9]{1,60}")
#: The codes for which the service is at fault, by OpenTelemetry's rules for servers.
_OUR_FAULTS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


def is_traced(method: str) -> bool:
    """Returns whether calls of a method have spans. Health is asked every second by everybody."""
    return method.startswith("/marketplace.payments.")


def note_call(span: Span, names: Mapping[str, str]) -> None:
    """Records by which ids the log and the audit trail know the call."""
    for name in ("request_id", "payment"):
        if name in names:
            span.note(f"payments.{name}", names[name])


def span_facts(method: str) -> dict[str, str | int]:
    """Returns what OpenTelemetry calls a method of gRPC."""
    service, _, name = method.lstrip("/").partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


def conclude_span(span: Span, code: str) -> None:
    """Records the status of the call."""
    span.note("rpc.response.status_code", code)
    if code in _OUR_FAULTS:
        span.failed(code)


def payment_id_of(request: Any) -> str:
    """Returns the payment that a request names, or ""."""
    found = getattr(request, "payment_id", "")
    return found if isinstance(found, str) and _PAYMENT_ID.fullmatch(found) else ""
