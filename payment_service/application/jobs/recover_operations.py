"""Recovery: continues operations whose lease ran out or whose outcome is unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.execution.executor import execute
from payment_service.domain.errors import Refusal
from payment_service.domain.operations import Operation
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause
from payment_service.domain.ports.tracing import Facts

log = structlog.get_logger(__name__)

RECOVERY: Final = Cause("payment_service", "recovery")

_BATCH: Final = 32


async def recover_operations(app: App) -> int:
    """Continues operations that nobody works on any more. Returns how many there were."""
    if app.stripe.is_unavailable:
        return 0
    due = await app.database.transact(lease_due, app.policy)
    await asyncio.gather(*(_recover(app, operation) for operation in due))
    return len(due)


def lease_due(tx: Transaction, policy: Policy) -> Sequence[Operation]:
    """Returns the operations that are due, leased to this process."""
    return tx.lease_due_operations(policy.lease, _BATCH)


async def _recover(app: App, operation: Operation) -> None:
    try:
        kind: Facts = {"payments.operation_kind": operation.kind.value}
        with app.tracer.work("recover operation", kind):
            await execute(app, operation, 0, RECOVERY)
    except Refusal as refusal:
        # It is recorded already, and the lease is released: the operation is tried again later.
        log.info("operation_deferred", operation=operation.operation_id, reason=refusal.reason)
    except Exception as error:  # noqa: BLE001 - the lease runs out, and recovery tries again
        log.error("operation_failed", operation=operation.operation_id, error=type(error).__name__)
