"""Where the use cases report what needs a person: metrics and the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.experts import Expert
from payment_service.domain.operations import Operation
from payment_service.domain.payouts import PayoutChange


class Alarms(Protocol):
    """Reports what needs a person: metrics and the log."""

    def operation_parked(self, operation: Operation, why: str) -> None: ...
    def event_parked(self, event_id: str, why: str) -> None: ...
    def payout_changed(self, change: PayoutChange) -> None: ...
    def requirements_announced(self, expert: Expert) -> None: ...
    def discrepancy(self, payment_id: str, kind: DiscrepancyKind) -> None: ...
    def invariants(self, violations: Mapping[DiscrepancyKind, Sequence[str]]) -> None: ...
