"""ResolveDiscrepancy: an operator closes a discrepancy and says why."""

from __future__ import annotations

from payment_service.application.app import App
from payment_service.domain.errors import NotFound, Precondition, Refusal
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause, StoredDiscrepancy


async def resolve_discrepancy(
    app: App, discrepancy_id: int, note: str, cause: Cause
) -> StoredDiscrepancy:
    """Somebody has looked into it and decided; who and what stays with it."""
    return await app.database.transact(resolve, discrepancy_id, note, cause)


def resolve(tx: Transaction, discrepancy_id: int, note: str, cause: Cause) -> StoredDiscrepancy:
    """One that is decided already, with the same note, is answered as it is."""
    stored = tx.lock_discrepancy(discrepancy_id)
    if stored is None:
        raise item_not_found(str(discrepancy_id))
    if stored.resolve_time is None:
        tx.decide_discrepancy(discrepancy_id, cause.caller, note)
        stored = tx.lock_discrepancy(discrepancy_id)
        assert stored is not None
    elif stored.note != note:
        raise Precondition(
            "WRONG_STATE",
            "the discrepancy is not open any more",
            {"id": discrepancy_id, "state": "RESOLVED", "allowed_states": "OPEN"},
        )
    return stored


def item_not_found(item: str) -> Refusal:
    return NotFound("ITEM_NOT_FOUND", "there is no such item", {"id": item})
