"""What a loop does to many payments: one by one, each in its turn.

A payment that cannot be written, for whatever reason, is a matter of its own: it stops no other.
Nor does it keep its place at the head. Who has had a turn rests for a while, ever longer, and comes
back behind those that have waited for longer; so the others are reached, however many there are of
which nothing comes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from payment_service.application.core import Core
from payment_service.domain.errors import Refusal
from payment_service.domain.ports import Transaction, Work

log = structlog.get_logger(__name__)

Do = Callable[[str], Awaitable[object]]

#: How long a payment rests after its first turn, in seconds; doubled by each that follows soon.
_REST_FIRST: Final = 1.0
_REST_MOST: Final = 60.0


async def in_turn(core: Core, work: Work, payment_ids: Sequence[str], do: Do) -> int:
    """Do it to each payment whose turn no other replica has; with how many it went well."""
    well = 0
    for payment_id in payment_ids:
        if await core.database.transact(take_turn, work, payment_id):
            well += await by_itself(work, payment_id, do)
    return well


def take_turn(tx: Transaction, work: Work, payment_id: str) -> bool:
    """Taken before anything is done, so that it counts whatever comes of that."""
    return tx.take_turn(work, payment_id, _REST_FIRST, _REST_MOST)


async def by_itself(work: Work, payment_id: str, do: Do) -> bool:
    """Do it, and stop nothing else if it fails; whether it went well."""
    try:
        await do(payment_id)
    except Refusal as refusal:
        log.info("work_unsettled", work=work, payment=payment_id, reason=refusal.reason)
    except Exception as error:  # noqa: BLE001 - one poisonous payment must not stop the others
        log.error("work_failed", work=work, payment=payment_id, error=type(error).__name__)
    else:
        return True
    return False
