"""The metrics for Prometheus, a file for each subject.

calls.py    what is served: rates, errors, latency, refusals
money.py    volume, success, commission, escrow, money at risk
work.py     what waits, what is stuck, what needs a person
trail.py    the audit trail's proofs
parts.py    Stripe, the database, the event loop, the build
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from payment_service.metrics.calls import CallMetrics
from payment_service.metrics.money import MoneyMetrics
from payment_service.metrics.parts import PartMetrics
from payment_service.metrics.trail import TrailMetrics
from payment_service.metrics.work import WorkMetrics

__all__ = ["Metrics"]


class Metrics(CallMetrics, MoneyMetrics, WorkMetrics, TrailMetrics, PartMetrics):
    """All metrics, in a registry of their own. Amounts are minor units."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        CallMetrics.__init__(self, self.registry)
        MoneyMetrics.__init__(self, self.registry)
        WorkMetrics.__init__(self, self.registry)
        TrailMetrics.__init__(self, self.registry)
        PartMetrics.__init__(self, self.registry)
