"""Hand the feed on to one who watches it, from where the last event was that it got."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from payment_service.application.app import App
from payment_service.domain.errors import Precondition
from payment_service.domain.ports.database import Reader
from payment_service.domain.ports.records import FeedCursor, FeedEvent

#: Events read at once: a watcher never has more in memory, however far behind it is.
_BATCH: Final = 100


async def watch_events(app: App, after: FeedCursor) -> AsyncIterator[Sequence[FeedEvent]]:
    """Batches without end, in the feed's order; waits where there is nothing yet.

    Neither a thread nor a connection is held while the batch is on its way or awaited. Raises
    :class:`Precondition` if the mark is not in this feed.
    """
    await app.database.read(_check, after)
    position = after.position
    while True:
        batch = await app.database.read(_batch, position)
        if batch:
            yield batch
            position = batch[-1].position
        if len(batch) < _BATCH:
            await app.feed.beyond(position)


def _check(reader: Reader, after: FeedCursor) -> None:
    """A mark of an event that is not there was given by another feed: before a restore, say.

    A watcher that waited for that position would miss the events before it.
    """
    if not after.position:
        return
    found = reader.feed(after.position - 1, 1)
    if not found or found[0].mark != after:
        raise Precondition(
            "CURSOR_NOT_IN_FEED",
            "this cursor's event is not in the feed, which was perhaps restored from a backup: "
            "watch from the beginning, and leave out what is known by payment and sequence",
            {"position": after.position, "head": reader.feed_head()},
        )


def _batch(reader: Reader, position: int) -> Sequence[FeedEvent]:
    return reader.feed(position, _BATCH)
