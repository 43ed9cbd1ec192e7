"""Read a payment's audit trail and check its chain on the way."""

from __future__ import annotations

from collections.abc import Sequence

from payment_service.application.app import App
from payment_service.domain.audit_trail import first_broken
from payment_service.domain.errors import payment_not_found
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import StoredEvent


async def read_events(
    app: App, payment_id: str, of_user: str, after: int, limit: int
) -> tuple[Sequence[StoredEvent], int]:
    """Events after a sequence, oldest first, and the first one that is missing or was changed."""
    return await app.database.read(_read, payment_id, of_user, after, limit)


def _read(
    reader: Reader, payment_id: str, of_user: str, after: int, limit: int
) -> tuple[Sequence[StoredEvent], int]:
    payment = reader.payment(payment_id, of_user)
    if payment is None:
        raise payment_not_found(payment_id)
    events = reader.events(payment_id, after, limit)
    broken = first_broken(reader.event_hash(payment_id, after), after, events)
    # Read after the payment, so there may be more events than its version says, and never fewer.
    if not broken and len(events) < limit and after + len(events) < payment.version:
        broken = after + len(events) + 1
    return events, broken
