"""Read a payment's audit trail and check its chain on the way."""

from __future__ import annotations

from collections.abc import Sequence

from payment_service.application.core import Core
from payment_service.domain.errors import payment_not_found
from payment_service.domain.events import chain_hash
from payment_service.domain.ports import Reader, StoredEvent


async def read_events(
    core: Core, payment_id: str, after: int, limit: int
) -> tuple[Sequence[StoredEvent], bool]:
    """Events after a sequence, oldest first, and whether their hashes hold."""
    return await core.database.read(_read, payment_id, after, limit)


def _read(
    reader: Reader, payment_id: str, after: int, limit: int
) -> tuple[Sequence[StoredEvent], bool]:
    if reader.payment(payment_id) is None:
        raise payment_not_found(payment_id)
    events = reader.events(payment_id, after, limit)
    former, expected, intact = reader.event_hash(payment_id, after), after + 1, True
    for event in events:
        right = chain_hash(
            former, event.payment_id, event.sequence, event.kind, event.time, event.body
        )
        intact = intact and right == event.hash and event.sequence == expected
        former, expected = event.hash, expected + 1
    return events, intact
