"""The SQL of the feed: positions are given by whoever holds one lock, and read in their order.

An event comes before the feed by a trigger on ``events``, in the statement that records it; a
replica of a version that knows no feed does it too. Two statements, not one: a statement sees what
was committed when it began, and so would not see what the former holder of the lock had done.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg2
import psycopg2.extensions
import structlog

from payment_service.adapters.rows import stored_event_of
from payment_service.adapters.statements import Statements
from payment_service.domain.ports import FedEvent

log = structlog.get_logger(__name__)

#: The channel of NOTIFY on which the feed's head is announced.
CHANNEL: Final = "payments_feed"
#: Any constant will do.
_LOCK: Final = 7_205_759_403_792_794
#: A holder that is stopped between its statements loses the lock after a second, not after ten.
_TRY_LOCK: Final = (
    "SELECT pg_try_advisory_xact_lock(:lock) AS mine, "
    "set_config('idle_in_transaction_session_timeout', '1s', true)"
)
_SEQUENCE: Final = """
WITH taken AS (
    DELETE FROM feed_pending WHERE pending_id IN (
        SELECT pending_id FROM feed_pending ORDER BY pending_id LIMIT :limit)
    RETURNING pending_id, payment_id, sequence
), fed AS (
    INSERT INTO feed (position, payment_id, sequence)
    SELECT (SELECT coalesce(max(position), 0) FROM feed) + row_number() OVER (ORDER BY pending_id),
        payment_id, sequence
    FROM taken RETURNING position
), moved AS (SELECT count(*) AS count, coalesce(max(position), 0) AS head FROM fed)
SELECT count, head, CASE WHEN count > 0 THEN pg_notify(:channel, head::text) END FROM moved
"""
_RECONNECT_SECONDS: Final = 1.0


class FeedWrites(Statements):
    """What a transaction does with the feed."""

    def sequence_feed(self, limit: int) -> tuple[int, int] | None:
        """Give so many waiting events their positions: how many, and the last one's.

        None if another replica is at it. Whoever listens hears of it with the commit.
        """
        if not self._one(_TRY_LOCK, lock=_LOCK)["mine"]:
            return None
        row = self._one(_SEQUENCE, limit=limit, channel=CHANNEL)
        return row["count"], row["head"]


class FeedReads(Statements):
    """What is read of the feed."""

    def feed_head(self) -> int:
        """The last position; 0 if there is none."""
        return int(self._one("SELECT coalesce(max(position), 0) AS head FROM feed")["head"])

    def feed(self, after: int, limit: int) -> Sequence[FedEvent]:
        """The events after a position, in the feed's order."""
        found = self._all(
            "SELECT feed.position, events.* FROM feed JOIN events USING (payment_id, sequence) "
            "WHERE feed.position > :after ORDER BY feed.position LIMIT :limit",
            after=after,
            limit=limit,
        )
        return [FedEvent(row["position"], stored_event_of(row)) for row in found]


async def listen(url: str, hear: Callable[[int], None]) -> None:
    """Hand on every announced head until cancelled, on one connection that is made anew.

    What is announced while there is none goes unheard: behind every wake-up there is a poll.
    """
    while True:
        try:
            connection = await asyncio.to_thread(_connect, url)
        except psycopg2.Error:
            log.warning("feed_listener_waits")
        else:
            with contextlib.closing(connection):
                await _until_it_breaks(connection, hear)
            log.warning("feed_listener_lost")
        await asyncio.sleep(random.uniform(0, _RECONNECT_SECONDS))  # noqa: S311 - jitter


def _connect(url: str) -> Any:
    connection = psycopg2.connect(
        url,
        connect_timeout=3,
        application_name="payment_service feed",
        target_session_attrs="read-write",
        keepalives_idle=30,
        keepalives_interval=10,
        keepalives_count=3,
    )
    connection.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT)
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"LISTEN {CHANNEL}")
    except psycopg2.Error:
        connection.close()
        raise
    return connection


async def _until_it_breaks(connection: Any, hear: Callable[[int], None]) -> None:
    loop, broken = asyncio.get_running_loop(), asyncio.Event()
    # Kept: a connection whose backend died does not tell its descriptor any more, and one that
    # stays registered would make the next connection deaf that gets the same number.
    descriptor = connection.fileno()

    def readable() -> None:
        try:
            connection.poll()
        except psycopg2.Error:
            loop.remove_reader(descriptor)
            broken.set()
            return
        while connection.notifies:
            payload = connection.notifies.pop(0).payload
            if payload.isascii() and payload.isdigit():
                hear(int(payload))

    loop.add_reader(descriptor, readable)
    try:
        await broken.wait()
    finally:
        loop.remove_reader(descriptor)
