"""Give events their positions in the feed, and learn how far others have brought it."""

from __future__ import annotations

import asyncio
from typing import Final

from payment_service.application.core import Core
from payment_service.domain.ports import Reader, Transaction

#: Positions given in one transaction: some ten milliseconds.
_BATCH: Final = 500
#: For what another replica may not have seen when it began.
_BUSY_SECONDS: Final = 0.05


async def sequence_feed(core: Core) -> int:
    """One batch; whether there may be more."""
    done = await core.database.transact(_sequence, _BATCH)
    if done is None:
        await asyncio.sleep(_BUSY_SECONDS)
        return 1
    moved, head = done
    core.feed.reached(head)
    return int(moved == _BATCH)


def _sequence(tx: Transaction, limit: int) -> tuple[int, int] | None:
    return tx.sequence_feed(limit)


async def follow_feed(core: Core) -> int:
    """The poll behind the announcements, one for all watchers of this process."""
    core.feed.reached(await core.database.read(_head))
    return 0


def _head(reader: Reader) -> int:
    return reader.feed_head()
