"""Processes many payments one by one, so that one that fails does not stop the others.

A payment that was processed without success is retried after a pause that doubles, and queues
behind those that have waited longer. So every payment is reached, however many of them fail.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.domain.errors import Refusal
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import JobKind

log = structlog.get_logger(__name__)

Do = Callable[[str], Awaitable[object]]

#: How many seconds a payment pauses after its first turn. Each turn that follows soon doubles it.
_PAUSE_FIRST: Final = 1.0
_PAUSE_MOST: Final = 60.0


async def process_fairly(app: App, job: JobKind, payment_ids: Sequence[str], do: Do) -> int:
    """Processes each payment whose turn no other replica has. Returns how many succeeded."""
    succeeded = 0
    for payment_id in payment_ids:
        if await app.database.transact(claim_turn, job, payment_id):
            succeeded += await isolated(job, payment_id, do)
    return succeeded


def claim_turn(tx: Transaction, job: JobKind, payment_id: str) -> bool:
    """Takes the turn before the work begins, so that it counts even if the process dies."""
    return tx.take_turn(job, payment_id, _PAUSE_FIRST, _PAUSE_MOST)


async def isolated(job: JobKind, subject_id: str, do: Do, *, subject: str = "payment") -> bool:
    """Processes one payment, or another subject of the job.

    Returns whether it succeeded; a failure is only logged.
    """
    logged = {"job": job.value, subject: subject_id}
    try:
        await do(subject_id)
    except Refusal as refusal:
        log.info("job_item_deferred", **logged, reason=refusal.reason)
    except Exception as error:  # noqa: BLE001 - one that fails must not stop the others
        log.error("job_item_failed", **logged, error=type(error).__name__)
    else:
        return True
    return False
