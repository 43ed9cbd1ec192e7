"""Gives events their positions in the feed, and learns how far other replicas have come."""

from __future__ import annotations

import asyncio
from typing import Final

from payment_service.application.app import App
from payment_service.domain.ports.database import Reader, Transaction

#: Positions given in one transaction: some ten milliseconds.
_BATCH: Final = 500


#: For what another replica may not have seen when it began.
_BUSY_SECONDS: Final = 0.05


async def sequence_feed(app: App) -> int:
    """One batch; whether there may be more."""
    done = await app.database.transact(_sequence, _BATCH)
    if done is None:
        await asyncio.sleep(_BUSY_SECONDS)
        return 1
    moved, head = done
    app.feed.reached(head)
    return int(moved == _BATCH)


def _sequence(tx: Transaction, limit: int) -> tuple[int, int] | None:
    return tx.sequence_feed(limit)


async def advance_feed(app: App) -> int:
    """The poll behind the announcements, one for all watchers of this process."""
    app.feed.reached(await app.database.read(_head))
    return 0


def _head(reader: Reader) -> int:
    return reader.feed_head()
