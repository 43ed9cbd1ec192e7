"""Gives events their positions in the feed, and learns how far other replicas have come."""

from __future__ import annotations

import asyncio
from typing import Final

from payment_service.application.app import App
from payment_service.domain.ports.database import Reader, Transaction

#: How many positions one transaction gives; it takes about ten milliseconds.
_BATCH: Final = 500

#: The pause while another replica gives positions. It may have begun before the latest events.
_BUSY_SECONDS: Final = 0.05


async def sequence_feed(app: App) -> int:
    """Gives one batch of positions. Returns whether there may be more events without one."""
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
    """Reads the head of the feed, in case an announcement was missed.

    One read serves all watchers of this process.
    """
    app.feed.reached(await app.database.read(_head))
    return 0


def _head(reader: Reader) -> int:
    return reader.feed_head()
