"""The metrics for Prometheus: volume, success, commission, latencies, and what needs a human."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.experts import Expert
from payment_service.domain.heads import Heads
from payment_service.domain.operations import Operation
from payment_service.domain.payouts import PayoutChange, PayoutState
from payment_service.domain.ports.records import Backlog, HeldMoney
from payment_service.domain.state_machine import EventKind, Transition

log = structlog.get_logger(__name__)

_REFUSALS_SECONDS: Final = 10.0
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

#: Every label of the backlog, so that an empty one is reported as 0.
_BACKLOGS = (
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
#: The label of each step that moves money, and the payment's amount that grows with it.
_VOLUME_FIELDS: Final = {
    "charged": "charged",
    "captured": "captured",
    "refunded": "refunded_after_capture",
    "returned": "refunded_from_escrow",
}
#: The label of each step of a dispute, by the event that records it.
_DISPUTE_STEPS = {
    EventKind.DISPUTE_OPENED: "opened",
    EventKind.DISPUTE_ESCALATED: "escalated",
    EventKind.DISPUTE_WON: "won",
    EventKind.DISPUTE_LOST: "lost",
    EventKind.DISPUTE_CLOSED: "closed",
    EventKind.FRAUD_WARNING: "fraud_warning",
    EventKind.REVIEW_OPENED: "review_opened",
}


class Recorded(Protocol):
    """A committed transaction's transitions."""

    recorded: list[Transition]


@dataclass(slots=True)
class Refusals:
    """The refused calls that no line of the log has counted yet."""

    count: int = 0
    silent_until: float = 0.0


class Metrics:
    """All metrics, in a registry of their own. Amounts are minor units."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.rpc_seconds = Histogram(
            "payments_rpc_seconds",
            "Duration of RPCs by method and status code.",
            ["method", "code"],
            buckets=_SECONDS,
            registry=r,
        )
        self.transitions = Counter(
            "payments_transitions",
            "Changes of payments, by event kind and currency. Their ratios are success rates.",
            ["kind", "currency"],
            registry=r,
        )
        self.volume = Counter(
            "payments_volume_minor_units",
            "Money by step (initiated, authorized, charged, captured, refunded, returned out of "
            "escrow) and currency.",
            ["step", "currency"],
            registry=r,
        )
        self.commission = Counter(
            "payments_commission_minor_units",
            "Commission taken and given back, by currency.",
            ["direction", "currency"],
            registry=r,
        )
        self.failures = Counter(
            "payments_failed_attempts",
            "Attempts that failed, by Stripe's code.",
            ["code"],
            registry=r,
        )
        self.disputes = Counter(
            "payments_disputes",
            "Disputes by step (opened, escalated, won, lost, closed; fraud_warning, "
            "review_opened) and currency.",
            ["step", "currency"],
            registry=r,
        )
        self.disputed = Counter(
            "payments_disputed_minor_units",
            "The disputed money, by the same steps and currency.",
            ["step", "currency"],
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
        self.payouts = Counter(
            "payments_payouts",
            "Experts' payouts, by the state that they reached and currency.",
            ["state", "currency"],
            registry=r,
        )
        self.payout_volume = Counter(
            "payments_payout_minor_units",
            "Money of experts' payouts, by the state that they reached and currency.",
            ["state", "currency"],
            registry=r,
        )
        self.requirements = Counter(
            "payments_expert_requirements_announced",
            "Requirements that Stripe announced for an expert, each with a time to come.",
            registry=r,
        )
        self.discrepancies = Counter(
            "payments_discrepancies",
            "Differences between Stripe and the books, by kind.",
            ["kind"],
            registry=r,
        )
        self.access_failures = Counter(
            "payments_access_source_failures", "Renewals that failed.", ["source"], registry=r
        )
        self.certificate_expires = Gauge(
            "payments_certificate_expires_timestamp_seconds", "Unix time; 0 without.", registry=r
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

        self.held = Gauge(
            "payments_held_minor_units",
            "Money in escrow by currency, mode and the hours left to its first deadline "
            "(fewer than 6, 24, 72, or more). It may expire.",
            ["currency", "mode", "hours_left"],
            registry=r,
        )

        self.event_watchers = Gauge(
            "payments_event_watchers", "Open streams of WatchEvents.", registry=r
        )
        self.refused_calls = Counter(
            "payments_calls_refused",
            "Calls that were refused because they were too many, by class and why (full, share, "
            "quota).",
            ["call_class", "why"],
            registry=r,
        )
        self.calls = Gauge(
            "payments_calls_in_progress",
            "Calls in progress by class.",
            ["call_class"],
            registry=r,
        )
        self._refusals: dict[tuple[str, str], Refusals] = {}
        self.background_failures = Counter(
            "payments_background_failures",
            "Times that a background task of this process failed and began again, by task.",
            ["job"],
            registry=r,
        )
        self.heads_time = Gauge(
            "payments_heads_exported_timestamp_seconds",
            "When this replica last exported the heads of the audit trail, in seconds since 1970; "
            "0 if another replica did.",
            registry=r,
        )
        self.gauges_updated = Gauge(
            "payments_gauges_updated_timestamp_seconds",
            "When the gauges of backlog and held money were last read, in seconds since 1970.",
            registry=r,
        )

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

    def observe_commit(self, tx: Recorded) -> None:
        """Counts what a transaction changed, after it committed."""
        for transition in tx.recorded:
            after, before = transition.after, transition.before
            currency = after.currency
            self.transitions.labels(transition.kind.value, currency).inc()
            log.info(
                "payment_changed",
                payment=after.payment_id,
                kind=transition.kind.value,
                state=after.state.value,
                amount=after.amount,
                currency=currency,
            )
            if transition.kind is EventKind.INITIATED:
                self.volume.labels("initiated", currency).inc(after.amount)
            if transition.kind is EventKind.AUTHORIZED:
                self.volume.labels("authorized", currency).inc(after.held)
            if transition.kind in _DISPUTE_STEPS:
                self._dispute_moved(transition)
            if before is None:
                continue
            for step, field in _VOLUME_FIELDS.items():
                grown = getattr(after, field) - getattr(before, field)
                if grown > 0:
                    self.volume.labels(step, currency).inc(grown)
            change = after.net_commission - before.net_commission
            if change:
                direction = "taken" if change > 0 else "given_back"
                self.commission.labels(direction, currency).inc(abs(change))
            if after.failure is not None and after.failure != before.failure:
                self.failures.labels(after.failure.decline_code or after.failure.code).inc()
                log.warning(
                    "payment_attempt_failed",
                    payment=after.payment_id,
                    kind=transition.kind.value,
                    code=after.failure.code,
                    decline_code=after.failure.decline_code,
                )

    def _dispute_moved(self, transition: Transition) -> None:
        """Counts and logs one step. A dispute without an answer is lost, so each step is logged."""
        step, payment = _DISPUTE_STEPS[transition.kind], transition.after
        disputed = transition.facts.get("disputed", 0)
        self.disputes.labels(step, payment.currency).inc()
        self.disputed.labels(step, payment.currency).inc(
            disputed if isinstance(disputed, int) else 0
        )
        log.warning(
            "payment_disputed",
            payment=payment.payment_id,
            step=step,
            dispute=transition.facts.get("dispute_id", ""),
            freeze=payment.frozen.value,
        )

    def observe_backlog(self, backlog: Sequence[Backlog]) -> None:
        """Sets the gauges of what waits. What ``backlog`` does not name is 0."""
        self.waiting.clear()
        self.oldest_seconds.clear()
        for what, state in _BACKLOGS:
            self.waiting.labels(what, state).set(0)
            self.oldest_seconds.labels(what, state).set(0)
        for one in backlog:
            self.waiting.labels(one.what, one.state).set(one.count)
            self.oldest_seconds.labels(one.what, one.state).set(one.oldest_seconds)

    def observe_held(self, held: Sequence[HeldMoney]) -> None:
        """Sets the gauges of the money in escrow."""
        self.held.clear()
        for one in held:
            self.held.labels(one.currency, one.mode, one.hours_left).set(one.minor_units)

    def webhook_refused(self, endpoint: str, fault: str) -> None:
        self.webhooks_refused.labels(endpoint, fault).inc()
        log.warning("webhook_refused", endpoint=endpoint, fault=fault)

    def webhook_ignored(self, endpoint: str, verdict: str) -> None:
        self.webhooks_ignored.labels(endpoint, verdict).inc()
        log.warning("webhook_ignored", endpoint=endpoint, verdict=verdict)

    def gauges_read(self) -> None:
        """Records that the gauges are as old as this moment."""
        self.gauges_updated.set_to_current_time()

    # ---- alarms: what needs a human ----

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

    def access_source_failed(self, source: str, fault: str) -> None:
        """Counts keys, certificates and callers that cannot be renewed. Any thread may call it."""
        self.access_failures.labels(source).inc()
        log.error("access_source_failed", source=source, fault=fault)

    def event_parked(self, event_id: str, why: str) -> None:
        self.events_parked.inc()
        log.error("webhook_event_parked", event_id=event_id, why=why)

    def payout_changed(self, change: PayoutChange) -> None:
        """Counts payouts. A failed one needs the expert, and perhaps an operator."""
        payout = change.after
        if not change.moved_on:
            return
        state = payout.state.lower()
        self.payouts.labels(state, payout.currency).inc()
        self.payout_volume.labels(state, payout.currency).inc(abs(payout.minor_units))
        if payout.state is PayoutState.FAILED:
            log.error(
                "payout_failed",
                payout=payout.payout_id,
                expert=payout.expert_id,
                stripe_account=payout.stripe_account_id,
                code=payout.failure_code,
                was_paid=change.before is not None and change.before.state is PayoutState.PAID,
            )

    def requirements_announced(self, expert: Expert) -> None:
        """Counts what Stripe will ask of an expert: payouts stop if it is not given in time."""
        account = expert.account
        self.requirements.inc()
        log.warning(
            "expert_requirements_announced",
            expert=expert.expert_id,
            stripe_account=account.stripe_account_id,
            deadline=account.first_deadline and account.first_deadline.isoformat(),
            due=list(account.requirements_due),
            future=list(account.future_requirements),
        )

    def invariants(self, violations: Mapping[DiscrepancyKind, Sequence[str]]) -> None:
        for kind, payment_ids in violations.items():
            self.violations.labels(kind.invariant_name).set(len(payment_ids))

    def trail_broken(self, position: int) -> None:
        log.error("trail_broken", position=position)

    def heads_exported(self, heads: Heads) -> None:
        """Logs the heads: with the kept log, a later change of what they cover is found."""
        self.heads_time.set(heads.time.timestamp())
        log.info(
            "heads_exported",
            installation_id=heads.installation_id,
            heads_time=heads.time.isoformat(timespec="microseconds"),
            events=heads.events,
            events_root=heads.events_root.hex(),
            records=heads.records,
            records_root=heads.records_root.hex(),
            key_id=heads.key_id,
            heads_signature=heads.signature.hex(),
        )

    def discrepancy(self, payment_id: str, kind: DiscrepancyKind) -> None:
        self.discrepancies.labels(kind).inc()
        log.error("discrepancy", payment=payment_id, kind=kind)
