"""Metrics of the calls that are served: rates, errors, latency, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

log = structlog.get_logger(__name__)

_REFUSALS_SECONDS: Final = 10.0
#: Of what a caller waits for. The objectives of docs/watching.md are at 0.5 s and 5 s.
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(slots=True)
class Refusals:
    """The refused calls that no line of the log has counted yet."""

    count: int = 0
    silent_until: float = 0.0


class CallMetrics:
    """The calls of this replica."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rpc_seconds = Histogram(
            "payments_rpc_seconds",
            "Duration of RPCs by method and status code.",
            ["method", "code"],
            buckets=SECONDS,
            registry=registry,
        )
        self.event_watchers = Gauge(
            "payments_event_watchers", "Open streams of WatchEvents.", registry=registry
        )
        self.refused_calls = Counter(
            "payments_calls_refused",
            "Calls that were refused because they were too many, by class and why (full, share, "
            "quota).",
            ["call_class", "why"],
            registry=registry,
        )
        self.calls = Gauge(
            "payments_calls_in_progress",
            "Calls in progress by class.",
            ["call_class"],
            registry=registry,
        )
        self.access_failures = Counter(
            "payments_access_source_failures",
            "Keys, certificates and callers files that could not be renewed, by setting.",
            ["source"],
            registry=registry,
        )
        self.certificate_expires = Gauge(
            "payments_certificate_expires_timestamp_seconds",
            "When the server's certificate ends, in seconds since 1970; 0 without one.",
            registry=registry,
        )
        self._refusals: dict[tuple[str, str], Refusals] = {}

    def observe_rpc(self, method: str, code: str, seconds: float) -> None:
        self.rpc_seconds.labels(method, code).observe(seconds)

    def watch_calls(self, call_class: str, in_progress: Callable[[], float]) -> None:
        self.calls.labels(call_class).set_function(in_progress)

    def call_refused(self, call_class: str, why: str, caller: str) -> None:
        """Counts a call that was one too many. A line of the log speaks for all of ten seconds."""
        self.refused_calls.labels(call_class, why).inc()
        known = self._refusals.setdefault((call_class, why), Refusals())
        known.count += 1
        if time.monotonic() < known.silent_until:
            return
        log.warning(
            "calls_refused", call_class=call_class, why=why, caller=caller, count=known.count
        )
        known.count, known.silent_until = 0, time.monotonic() + _REFUSALS_SECONDS

    def access_source_failed(self, source: str, fault: str) -> None:
        """Counts keys, certificates and callers that cannot be renewed. Any thread may call it."""
        self.access_failures.labels(source).inc()
        log.error("access_source_failed", source=source, fault=fault)
