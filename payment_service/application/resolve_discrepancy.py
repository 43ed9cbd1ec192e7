"""ResolveDiscrepancy: an operator closes a discrepancy and says why."""

from __future__ import annotations

from payment_service.application.app import App
from payment_service.domain.errors import Precondition, discrepancy_not_found
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause, StoredDiscrepancy


async def resolve_discrepancy(
    app: App, discrepancy_id: str, reason: str, cause: Cause
) -> StoredDiscrepancy:
    """Closes an open discrepancy with the operator and the reason. Raises :class:`Refusal`."""
    return await app.database.transact(resolve, discrepancy_id, reason, cause)


def resolve(tx: Transaction, discrepancy_id: str, reason: str, cause: Cause) -> StoredDiscrepancy:
    """Returns it as it is if it was resolved before, with the same reason."""
    stored = tx.lock_discrepancy(discrepancy_id)
    if stored is None:
        raise discrepancy_not_found(discrepancy_id)
    if stored.resolve_time is None:
        tx.decide_discrepancy(discrepancy_id, cause.caller, reason)
        stored = tx.lock_discrepancy(discrepancy_id)
        assert stored is not None
    elif stored.reason != reason:
        raise Precondition(
            "WRONG_STATE",
            "the discrepancy is already resolved, with another reason",
            {"discrepancy_id": discrepancy_id, "state": "RESOLVED", "allowed_states": "OPEN"},
        )
    return stored
