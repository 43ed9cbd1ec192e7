"""Gives events their positions in the feed."""

from __future__ import annotations

import asyncio
from typing import Final

from payment_service.application.app import App
from payment_service.domain.ports.database import Transaction

#: How many positions one transaction gives; it takes about ten milliseconds.
_BATCH: Final = 500

#: The pause while another replica gives positions. It may have begun before the latest events.
_BUSY_SECONDS: Final = 0.05


async def sequence_feed(app: App) -> int:
    """Gives one batch of positions. Returns whether there may be more events without one."""
    done = await app.database.write(_sequence, _BATCH)
    if done is None:
        await asyncio.sleep(_BUSY_SECONDS)
        return 1
    moved, head = done
    app.feed.reached(head)
    return int(moved == _BATCH)


def _sequence(tx: Transaction, limit: int) -> tuple[int, int] | None:
    return tx.sequence_feed(limit)
