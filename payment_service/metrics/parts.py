"""Metrics of what this replica stands on: Stripe, the database, and its own event loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from payment_service.domain.audit_trail import WRITER

_STRIPE_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30)
_PHASE_SECONDS: Final = (0.005, 0.025, 0.1, 0.5, 2.5)
_LAG_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_LAG_PAUSE_SECONDS: Final = 1.0


class PartMetrics:
    """Stripe as this replica sees it, the pools of the database, and the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self.stripe_seconds = Histogram(
            "payments_stripe_call_seconds",
            "Duration of HTTP requests to Stripe by endpoint and outcome (done, refused, denied, "
            "absent, conflict, rate_limited, failed, no_answer, canceled).",
            ["endpoint", "outcome"],
            buckets=_STRIPE_SECONDS,
            registry=r,
        )
        self.stripe_circuit = Gauge(
            "payments_stripe_circuit_open",
            "1 while calls to Stripe are refused at once because Stripe does not answer.",
            registry=r,
        )
        self.phase_seconds = Histogram(
            "payments_database_transaction_seconds",
            "Duration of transactions by phase, from the first statement to the commit.",
            ["phase"],
            buckets=_PHASE_SECONDS,
            registry=r,
        )
        self.places = Gauge(
            "payments_database_places",
            "Connections of this replica, by pool (write, read, expensive_write, expensive_read) "
            "and state: all, in_use, and how many calls are waiting for one.",
            ["pool", "state"],
            registry=r,
        )
        self.loop_lag = Histogram(
            "payments_event_loop_lag_seconds",
            "How much later than asked for the event loop runs what is due. Read every second.",
            buckets=_LAG_SECONDS,
            registry=r,
        )
        self.build = Info("payments_build", "What runs here.", registry=r)
        self.build.info(build_facts(os.environ) | {"writer": str(WRITER)})
        ProcessCollector(registry=r)
        self.workers = Gauge(
            "payments_workers",
            "How many workers should run here, this one included.",
            registry=r,
        )
        self.worker_starts = Counter(
            "payments_worker_starts",
            "How many processes have had the place of this worker, since their parent started.",
            registry=r,
        )

    def begun(self, *, workers: int, starts: int) -> None:
        """Shows what this process is among the workers."""
        self.workers.set(workers)
        self.worker_starts.inc(starts)

    def observe_stripe(self, endpoint: str, outcome: str, seconds: float) -> None:
        self.stripe_seconds.labels(endpoint, outcome).observe(seconds)

    def observe_phase(self, phase: str, seconds: float) -> None:
        """Any thread may call it."""
        self.phase_seconds.labels(phase).observe(seconds)

    def watch_circuit(self, is_open: Callable[[], bool]) -> None:
        self.stripe_circuit.set_function(lambda: float(is_open()))

    def watch_places(self, prefix: str, read: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Shows the places of a database: ``read`` says them by pool and state."""
        for pool, state in read():
            self.places.labels(f"{prefix}{pool}", state).set_function(
                lambda key=(pool, state): float(read()[key])  # type: ignore[misc]  # bound now
            )

    async def watch_loop(self) -> None:
        """Measures the lag of the event loop until it is cancelled."""
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(_LAG_PAUSE_SECONDS)
            self.loop_lag.observe(max(0.0, time.perf_counter() - begun - _LAG_PAUSE_SECONDS))


def build_facts(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the version and the revision that the image was built from, as far as known."""
    return {
        "version": environment.get("BUILD_VERSION", "") or "unknown",
        "revision": environment.get("BUILD_REVISION", "") or "unknown",
    }
