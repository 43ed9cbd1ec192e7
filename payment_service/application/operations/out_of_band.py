"""Records why a parked operation must not be sent: something was moved out of band."""

from __future__ import annotations

from dataclasses import replace

from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.payment import Payment, WaitingFor
from payment_service.domain.ports.database import Transaction
from payment_service.domain.sync.changes import ChangeSet


def record_out_of_band(
    tx: Transaction, before: Payment, followed: ChangeSet, operation: Operation | None
) -> Operation | None:
    """Writes down why an operation that is parked already must not be sent as it is.

    Returns the operation if it waits for an operator only now.
    """
    why = not_sent_because(followed.blocked_by) if followed.blocked_by else ""
    if operation is None or operation.state is not OperationState.PARKED or not why:
        return None
    if operation.last_error != why:
        unsure = operation.unsure_until
        left = None if unsure is None else max((unsure - tx.now).total_seconds(), 0.0)
        tx.postpone_operation(operation, OperationState.PARKED, why, None, unsure_seconds=left)
    waited = before.waiting_for is WaitingFor.OPERATOR
    return None if waited else replace(operation, last_error=why)


def not_sent_because(why: str) -> str:
    """Returns why an operation is parked that a sync did not find at Stripe."""
    return f"not at Stripe; {why}"
