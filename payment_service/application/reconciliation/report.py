"""What a run of the reconciliation checked and found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from payment_service.application.reconciliation.recheck import Checked
from payment_service.domain.audit_trail import AuditFault
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.sync.changes import Discrepancy


@dataclass(slots=True)
class Report:
    """What a run checked and found."""

    began: datetime
    checked_payments: int = 0
    corrected_payments: int = 0
    checked_lines: int = 0
    #: The balance transactions that Stripe showed, and those of them that were compared.
    shown: set[str] = field(default_factory=set)
    compared: set[str] = field(default_factory=set)
    #: The payments that contradict their own history.
    faults: Mapping[str, Sequence[AuditFault]] = field(default_factory=dict)
    #: The ledger accounts whose balance at Stripe could not be read.
    unread: list[str] = field(default_factory=list)
    violations: Mapping[DiscrepancyKind, Sequence[str]] = field(default_factory=dict)
    discrepancies: list[Discrepancy] = field(default_factory=list)

    @property
    def checked(self) -> Checked:
        """Returns what a re-check of open discrepancies can rely on."""
        return Checked(self.shown, self.compared, list(self.violations), self.faults)
