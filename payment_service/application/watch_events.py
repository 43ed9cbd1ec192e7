"""Hand the feed on to one who watches it, from where the last event was that it got."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from payment_service.application.app import App
from payment_service.domain.errors import Precondition
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import FeedCursor, FeedEvent

#: Events read at once: a watcher never has more in memory, however far behind it is.
_BATCH: Final = 100


async def watch_events(
    app: App, after: FeedCursor, of_user: str = ""
) -> AsyncIterator[Sequence[FeedEvent]]:
    """Batches without end, in the feed's order; waits where there is nothing yet.

    With ``of_user``, the feed is that of the user's payments alone. Neither a thread nor a
    connection is held while the batch is on its way or awaited. Raises :class:`Precondition` if the
    mark is not in this feed.
    """
    await app.database.read(_check, after, of_user)
    position = after.position
    while True:
        batch, position = await app.database.read(_batch, position, of_user)
        if batch:
            yield batch
        if len(batch) < _BATCH:
            await app.feed.beyond(position)


def _check(reader: Reader, after: FeedCursor, of_user: str) -> None:
    """A mark of an event that is not there was given by another feed: before a restore, say.

    A watcher that waited for that position would miss the events before it.
    """
    if not after.position:
        return
    found = reader.feed(after.position - 1, 1, of_user)
    if not found or found[0].mark != after:
        raise Precondition(
            "CURSOR_NOT_IN_FEED",
            "this cursor's event is not in the feed, which was perhaps restored from a backup: "
            "watch from the beginning, and leave out what is known by payment and sequence",
            {"position": after.position, "head": reader.feed_head()},
        )


def _batch(reader: Reader, position: int, of_user: str) -> tuple[Sequence[FeedEvent], int]:
    """Returns the next events, and the position up to which everything was looked at.

    The head is read first: the positions up to it do not change any more. So what others do is
    passed over once, and does not have to be read again with each new event.
    """
    head = reader.feed_head() if of_user else position
    events = reader.feed(position, _BATCH, of_user)
    if len(events) == _BATCH:
        return events, events[-1].position
    return events, max([position, head, *(event.position for event in events[-1:])])
