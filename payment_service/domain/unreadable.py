"""A payment whose row holds a value that this release does not know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from payment_service.domain.audit_trail import WRITER, AuditFault
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.ports.records import StoredEvent


@dataclass(frozen=True, slots=True)
class UnreadableTrail:
    """What can be read of such a payment. Its events are by sequence."""

    payment_id: str
    update_time: datetime
    events: Sequence[StoredEvent]


def unreadable_faults(trail: UnreadableTrail) -> list[AuditFault]:
    """Judges such a row: only a newer release may have written it, and only that can check it."""
    last = json.loads(trail.events[-1].body) if trail.events else {}
    if last.get("digests", {}).get("writer", WRITER) > WRITER:
        return []
    said = "holds a value that no release up to this one has written"
    return [AuditFault(DiscrepancyKind.ROW_IS_AS_RECORDED, len(trail.events), said)]
