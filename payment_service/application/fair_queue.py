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


#: How long a payment rests after its first turn, in seconds; doubled by each that follows soon.
_PAUSE_FIRST: Final = 1.0


_PAUSE_MOST: Final = 60.0


async def process_fairly(app: App, work: JobKind, payment_ids: Sequence[str], do: Do) -> int:
    """Do it to each payment whose turn no other replica has; with how many it went well."""
    well = 0
    for payment_id in payment_ids:
        if await app.database.transact(claim_turn, work, payment_id):
            well += await isolated(work, payment_id, do)
    return well


def claim_turn(tx: Transaction, work: JobKind, payment_id: str) -> bool:
    """Taken before anything is done, so that it counts whatever comes of that."""
    return tx.take_turn(work, payment_id, _PAUSE_FIRST, _PAUSE_MOST)


async def isolated(work: JobKind, payment_id: str, do: Do) -> bool:
    """Do it, and stop nothing else if it fails; whether it went well."""
    try:
        await do(payment_id)
    except Refusal as refusal:
        log.info("job_item_deferred", work=work, payment=payment_id, reason=refusal.reason)
    except Exception as error:  # noqa: BLE001 - one poisonous payment must not stop the others
        log.error("job_item_failed", work=work, payment=payment_id, error=type(error).__name__)
    else:
        return True
    return False
