"""Metrics of the money: volume, success, commission, escrow, payouts, and what is at risk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from payment_service.domain.experts import Expert
from payment_service.domain.payouts import PayoutChange, PayoutState
from payment_service.domain.ports.records import HeldMoney, MoneyAtRisk
from payment_service.domain.state_machine import EventKind, Transition
from payment_service.metrics.vocabulary import Vocabulary

log = structlog.get_logger(__name__)

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


class MoneyMetrics:
    """Counts what committed transactions changed. Amounts are minor units."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
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
        self.held = Gauge(
            "payments_held_minor_units",
            "Money in escrow by currency, mode and the hours left to its first deadline "
            "(fewer than 6, 24, 72, or more). It may expire.",
            ["currency", "mode", "hours_left"],
            registry=r,
        )
        self.at_risk = Gauge(
            "payments_at_risk_minor_units",
            "Money that may be lost or is owed, by what (disputed, expert_debt, client_payable, "
            "pending_refund) and currency.",
            ["what", "currency"],
            registry=r,
        )
        self._codes = Vocabulary()

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
                code = after.failure.decline_code or after.failure.code
                self.failures.labels(self._codes.word(code)).inc()
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

    def observe_held(self, held: Sequence[HeldMoney]) -> None:
        """Sets the gauges of the money in escrow."""
        self.held.clear()
        for one in held:
            self.held.labels(one.currency, one.mode, one.hours_left).set(one.minor_units)

    def observe_at_risk(self, found: Sequence[MoneyAtRisk]) -> None:
        """Sets the gauges of the money at risk."""
        self.at_risk.clear()
        for one in found:
            self.at_risk.labels(one.what, one.currency).set(one.minor_units)

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
