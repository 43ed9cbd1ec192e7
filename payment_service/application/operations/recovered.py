"""Finds the operation of a key whose claim the database has lost."""

from __future__ import annotations

import itertools

from payment_service.domain.operations import Operation
from payment_service.domain.ports.database import Transaction


def recovered_operation(tx: Transaction, claim_id: str) -> Operation | None:
    """Returns the last operation of a claim's call, if one was recovered from Stripe, or None.

    Operations of a claim that the database knows carry it; recovered ones carry none.
    """
    for number in itertools.count():
        operation = tx.operation(tx.derived_id("op", claim_id, str(number)))
        if operation is None:
            return None
        if not operation.claim_id:
            return _last_leg(tx, operation)
    return None


def _last_leg(tx: Transaction, operation: Operation) -> Operation:
    following = tx.operation(tx.derived_id("op", operation.operation_id, "next", "0"))
    return operation if following is None else _last_leg(tx, following)
