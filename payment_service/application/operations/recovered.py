"""Operations that the database has lost: recorded again, and found by the key of their call."""

from __future__ import annotations

import itertools

from payment_service.domain.marks import MarkedOperation
from payment_service.domain.operations import Operation, OperationState
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


def sent_operation(tx: Transaction, marked: MarkedOperation) -> Operation:
    """Returns a lost operation as one that was sent: it is searched for and not sent again.

    The caller gives it its subject.
    """
    return Operation(
        operation_id=marked.operation_id,
        kind=marked.kind,
        purpose=marked.purpose,
        payload=marked.payload,
        minor_units=marked.minor_units,
        state=OperationState.UNKNOWN,
        tries=1,
        last_error="recovered from Stripe",
        create_time=marked.create_time,
        attempt_time=marked.create_time,
        lease_token=tx.new_id("lease"),
        next_try_time=tx.now,
    )


def _last_leg(tx: Transaction, operation: Operation) -> Operation:
    following = tx.operation(tx.derived_id("op", operation.operation_id, "next", "0"))
    return operation if following is None else _last_leg(tx, following)
