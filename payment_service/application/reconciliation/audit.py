"""Audits each payment's stored rows against its hash chain."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from payment_service.domain.audit_trail import AuditFault, audit
from payment_service.domain.ports.database import Database
from payment_service.domain.ports.reader import Reader
from payment_service.domain.unreadable import UnreadableTrail, unreadable_faults

#: To check a trail takes half a millisecond, and the event loop waits for the whole page.
_PAGE: Final = 10
_BEFORE_ALL: Final = (datetime.min.replace(tzinfo=UTC), "")


async def audit_payments(
    database: Database, since: datetime, payment_id: str = ""
) -> dict[str, list[AuditFault]]:
    """Returns the faults of every payment that changed since then, or of one payment."""
    found: dict[str, list[AuditFault]] = {}
    after = _BEFORE_ALL
    while True:
        # One read for each page, so that neither a connection nor the event loop waits for long.
        places, faults = await database.read(_page, since, after, payment_id)
        found |= faults
        if len(places) < _PAGE:
            return found
        after = places[-1]


def _page(
    reader: Reader, since: datetime, after: tuple[datetime, str], payment_id: str
) -> tuple[Sequence[tuple[datetime, str]], dict[str, list[AuditFault]]]:
    """Returns the keyset position of each payment of the page, and the faults that were found."""
    trails = reader.trails(since, after, _PAGE, payment_id)
    audited = {
        trail.payment_id: (
            unreadable_faults(trail) if isinstance(trail, UnreadableTrail) else audit(trail)
        )
        for trail in trails
    }
    return (
        [(trail.update_time, trail.payment_id) for trail in trails],
        {name: faults for name, faults in audited.items() if faults},
    )
