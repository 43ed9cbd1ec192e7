"""Metrics of what waits, what is stuck, and what needs a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.ports.records import Backlog, EventCursor, OpenDiscrepancies

log = structlog.get_logger(__name__)

#: Every label of the backlog, so that an empty one is reported as 0.
BACKLOGS: Final = (
    ("operation", "STARTED"),
    ("operation", "UNKNOWN"),
    ("operation", "PARKED"),
    ("operation", "PENDING_FUNDS"),
    ("webhook_event", "WAITING"),
    ("webhook_event", "PARKED"),
    ("dispute", "NEEDS_RESPONSE"),
    ("dispute", "DUE_SOON"),
    ("expert", "REQUIREMENTS_DUE_SOON"),
    ("feed_event", "PENDING"),
)
#: The queues of the background jobs, as ``Reader.overdue`` names them.
QUEUES: Final = (
    "operation",
    "webhook_event",
    "deadline",
    "deadline_warning",
    "payment_window",
    "hold_check",
    "debt",
    "account_check",
    "catching_up",
)
#: Stripe's lists of events, as ``EventCursor.list_name`` names them.
EVENT_LISTS: Final = ("platform", "connect", "thin")


class WorkMetrics:
    """Backlogs, queues, discrepancies, and the alarms."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self.operations_parked = Counter(
            "payments_operations_parked",
            "Operations that were parked and wait for an operator, by kind.",
            ["kind"],
            registry=r,
        )
        self.events_parked = Counter(
            "payments_webhook_events_parked",
            "Webhook events that could not be applied and wait for an operator.",
            registry=r,
        )
        self.webhooks_received = Counter(
            "payments_webhooks_received",
            "Webhooks that brought an event, stored now or before, by the list of Stripe's that "
            "has the event too (platform, connect, thin).",
            ["list"],
            registry=r,
        )
        self.found_by_polling = Counter(
            "payments_events_found_by_polling",
            "Events that were read in Stripe's lists before a webhook brought them, by list "
            "(platform, connect, thin).",
            ["list"],
            registry=r,
        )
        self.webhooks_refused = Counter(
            "payments_webhooks_refused",
            "Webhooks that were refused for good, by endpoint and fault.",
            ["endpoint", "fault"],
            registry=r,
        )
        self.webhooks_ignored = Counter(
            "payments_webhooks_ignored",
            "Authentic webhooks that are no event of ours, by endpoint and verdict (odd, "
            "other_mode, not_an_event). They are acknowledged and not stored.",
            ["endpoint", "verdict"],
            registry=r,
        )
        self.discrepancies = Counter(
            "payments_discrepancies",
            "Differences between Stripe and the books, by kind.",
            ["kind"],
            registry=r,
        )
        self.open_discrepancies = Gauge(
            "payments_discrepancies_open",
            "Discrepancies that are not over and not resolved, by kind.",
            ["kind"],
            registry=r,
        )
        self.oldest_discrepancy_seconds = Gauge(
            "payments_discrepancies_oldest_age_seconds",
            "Age of the oldest open discrepancy, by kind.",
            ["kind"],
            registry=r,
        )
        self.violations = Gauge(
            "payments_invariant_violations",
            "Payments that violate an invariant of the books, by its name. Must be zero.",
            ["invariant"],
            registry=r,
        )
        self.waiting = Gauge(
            "payments_backlog_items",
            "How much waits now: operations, webhook events, disputes, experts of whom Stripe asks "
            "something soon, and events that are not in the feed yet, by what and state.",
            ["what", "state"],
            registry=r,
        )
        self.oldest_seconds = Gauge(
            "payments_backlog_oldest_age_seconds",
            "Age of the oldest of these.",
            ["what", "state"],
            registry=r,
        )
        self.overdue = Gauge(
            "payments_overdue_items",
            "How much is due in each queue of the background jobs, and not done yet.",
            ["queue"],
            registry=r,
        )
        self.overdue_seconds = Gauge(
            "payments_overdue_oldest_seconds",
            "For how long the oldest of these has been due. It grows if nobody works on it.",
            ["queue"],
            registry=r,
        )
        self.gauges_updated = Gauge(
            "payments_gauges_updated_timestamp_seconds",
            "When the gauges that the database answers were last read, in seconds since 1970.",
            registry=r,
        )
        self.background_failures = Counter(
            "payments_background_failures",
            "Times that a background task of this process failed and began again, by task.",
            ["task"],
            registry=r,
        )
        # From the first scrape on: Prometheus sees no increase where a series begins with 1.
        for kind in DiscrepancyKind:
            self.discrepancies.labels(kind.value)
        for operation in OperationKind:
            self.operations_parked.labels(operation.value)
        for name in EVENT_LISTS:
            self.webhooks_received.labels(name)
            self.found_by_polling.labels(name)

    def observe_backlog(self, backlog: Sequence[Backlog]) -> None:
        """Sets the gauges of what waits. What ``backlog`` does not name is 0."""
        self.waiting.clear()
        self.oldest_seconds.clear()
        for what, state in BACKLOGS:
            self.waiting.labels(what, state).set(0)
            self.oldest_seconds.labels(what, state).set(0)
        for one in backlog:
            self.waiting.labels(one.what, one.state).set(one.count)
            self.oldest_seconds.labels(one.what, one.state).set(one.oldest_seconds)

    def observe_overdue(self, overdue: Sequence[Backlog]) -> None:
        """Sets the gauges of what is due. A queue that ``overdue`` does not name has nothing."""
        found = {one.what: one for one in overdue}
        for queue in QUEUES:
            one = found.get(queue)
            self.overdue.labels(queue).set(one.count if one else 0)
            self.overdue_seconds.labels(queue).set(one.oldest_seconds if one else 0)

    def observe_open_discrepancies(self, found: Sequence[OpenDiscrepancies]) -> None:
        """Sets the gauges of the open discrepancies. A kind that ``found`` does not name has 0."""
        of_kind = {one.kind: one for one in found}
        for kind in DiscrepancyKind:
            one = of_kind.get(kind)
            self.open_discrepancies.labels(kind.value).set(one.count if one else 0)
            self.oldest_discrepancy_seconds.labels(kind.value).set(one.oldest_seconds if one else 0)

    def gauges_read(self) -> None:
        """Records that the gauges are as old as this moment."""
        self.gauges_updated.set_to_current_time()

    def webhook_received(self, list_name: str) -> None:
        self.webhooks_received.labels(list_name).inc()

    def events_found_by_polling(self, cursor: EventCursor, count: int) -> None:
        self.found_by_polling.labels(cursor.list_name).inc(count)
        log.info("events_found_by_polling", scope=cursor.scope, count=count)

    def webhook_refused(self, endpoint: str, fault: str) -> None:
        self.webhooks_refused.labels(endpoint, fault).inc()
        log.warning("webhook_refused", endpoint=endpoint, fault=fault)

    def webhook_ignored(self, endpoint: str, verdict: str) -> None:
        self.webhooks_ignored.labels(endpoint, verdict).inc()
        log.warning("webhook_ignored", endpoint=endpoint, verdict=verdict)

    # ---- alarms: what needs a person ----

    def background_failed(self, job: str, error: str) -> None:
        self.background_failures.labels(job).inc()
        log.error("background_failed", job=job, error=error)

    def operation_parked(self, operation: Operation, why: str) -> None:
        self.operations_parked.labels(operation.kind.value).inc()
        log.error(
            "operation_parked",
            operation=operation.operation_id,
            kind=operation.kind.value,
            payment=operation.payment_id,
            expert=operation.expert_id,
            why=why,
        )

    def event_parked(self, event_id: str, why: str) -> None:
        self.events_parked.inc()
        log.error("webhook_event_parked", event_id=event_id, why=why)

    def invariants(self, violations: Mapping[DiscrepancyKind, Sequence[str]]) -> None:
        for kind, payment_ids in violations.items():
            self.violations.labels(kind.invariant_name).set(len(payment_ids))

    def discrepancy(self, payment_id: str, kind: DiscrepancyKind) -> None:
        self.discrepancies.labels(kind).inc()
        log.error("discrepancy", payment=payment_id, kind=kind)
