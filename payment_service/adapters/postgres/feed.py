"""The feed of all payments' events: their positions, and the notice that there are new ones.

A trigger on ``events`` puts each event into ``feed_pending`` in the statement that records it.
Later, the holder of one advisory lock gives positions to the pending events. Taking the lock and
giving the positions are two statements, because a statement sees only what was committed when it
began: one statement would not see the positions that the former holder of the lock gave. They are
sent together, so that no holder of the lock can stop between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import psycopg2
import psycopg2.extensions
import structlog

from payment_service.adapters.postgres.rows import stored_event_of
from payment_service.adapters.postgres.statements import Statements, TransactionStatements
from payment_service.adapters.postgres.texts import TEXTS_OF_EVENT
from payment_service.domain.ports.records import FeedEvent

log = structlog.get_logger(__name__)

#: The NOTIFY channel on which the last position is announced.
CHANNEL: Final = "payments_feed"
#: The number of the advisory lock. Any constant would do.
_LOCK: Final = 7_205_759_403_792_794
#: Whether this transaction has the lock, for the statement that comes after.
_MINE: Final = "payments.sequences_feed"
_TRY_LOCK: Final = f"SELECT set_config('{_MINE}', pg_try_advisory_xact_lock(:lock)::text, true)"
_SEQUENCE: Final = f"""
WITH mine AS (SELECT current_setting('{_MINE}')::boolean AS mine), taken AS (
    DELETE FROM feed_pending WHERE (SELECT mine FROM mine) AND pending_id IN (
        SELECT pending_id FROM feed_pending ORDER BY pending_id LIMIT :limit)
    RETURNING pending_id, payment_id, sequence
), fed AS (
    INSERT INTO feed (position, payment_id, sequence)
    SELECT (SELECT coalesce(max(position), 0) FROM feed) + row_number() OVER (ORDER BY pending_id),
        payment_id, sequence
    FROM taken RETURNING position
), moved AS (SELECT count(*) AS count, coalesce(max(position), 0) AS head FROM fed)
SELECT mine, count, head, CASE WHEN count > 0 THEN pg_notify(:channel, head::text) END
FROM moved, mine
"""
#: From the user's payments, whose events are found by an index each.
_OF_PARTY: Final = (
    " AND payment_id IN (SELECT payment_id FROM payments WHERE client_id = :of_user "
    "UNION ALL SELECT payment_id FROM payments WHERE expert_id = :of_user)"
)
_RECONNECT_SECONDS: Final = 1.0


class FeedWrites(TransactionStatements):
    """Gives positions to events."""

    def sequence_feed(self, limit: int) -> tuple[int, int] | None:
        """Gives at most ``limit`` events a position. Returns (number of events, last position).

        Returns None if another replica does this at the moment. Listeners are notified when the
        transaction commits.
        """
        self._later(_TRY_LOCK, lock=_LOCK)
        row = self._one(_SEQUENCE, limit=limit, channel=CHANNEL)
        return (row["count"], row["head"]) if row["mine"] else None


class FeedReads(Statements):
    """Reads the feed outside transactions."""

    def feed_head(self) -> int:
        """Returns the last position, or 0 if the feed is empty."""
        return int(self._one("SELECT coalesce(max(position), 0) AS head FROM feed")["head"])

    def feed(self, after: int, limit: int, of_user: str = "") -> Sequence[FeedEvent]:
        """Returns at most ``limit`` events after a position, in the order of the feed.

        With ``of_user``, only those of payments that this user is a party to.
        """
        found = self._all(
            f"SELECT feed.position, events.*, {TEXTS_OF_EVENT} "
            "FROM feed JOIN events USING (payment_id, sequence) "
            f"WHERE feed.position > :after{_OF_PARTY if of_user else ''} "
            "ORDER BY feed.position LIMIT :limit",
            after=after,
            limit=limit,
            of_user=of_user,
        )
        return [FeedEvent(row["position"], stored_event_of(row)) for row in found]


async def listen(url: str, channels: Mapping[str, Callable[[str], None]]) -> None:
    """Calls what belongs to a channel with everything announced there, until it is cancelled.

    Uses one connection, and opens another when that one breaks. Notices in between are lost, so
    callers must poll as well.
    """
    while True:
        try:
            connection = await asyncio.to_thread(_connect, url, tuple(channels))
        except psycopg2.Error:
            log.warning("feed_listener_waits")
        else:
            with contextlib.closing(connection):
                await _until_it_breaks(connection, channels)
            log.warning("feed_listener_lost")
        await asyncio.sleep(random.uniform(0, _RECONNECT_SECONDS))  # noqa: S311 - jitter


def position_heard(hear: Callable[[int], None]) -> Callable[[str], None]:
    """Returns what reads an announced position; anything else is left alone."""

    def heard(payload: str) -> None:
        if payload.isascii() and payload.isdigit():
            hear(int(payload))

    return heard


def _connect(url: str, channels: Sequence[str]) -> Any:
    """Returns a connection that listens on the channels."""
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
            for channel in channels:
                cursor.execute(f"LISTEN {channel}")
    except psycopg2.Error:
        connection.close()
        raise
    return connection


async def _until_it_breaks(connection: Any, channels: Mapping[str, Callable[[str], None]]) -> None:
    """Passes notices on until the connection breaks."""
    loop, broken = asyncio.get_running_loop(), asyncio.Event()
    # Read now: a connection whose backend has died does not return its descriptor any more. If the
    # descriptor stayed registered, the next connection with the same number would get no notices.
    descriptor = connection.fileno()

    def readable() -> None:
        try:
            connection.poll()
        except psycopg2.Error:
            loop.remove_reader(descriptor)
            broken.set()
            return
        while connection.notifies:
            notice = connection.notifies.pop(0)
            channels[notice.channel](notice.payload)

    loop.add_reader(descriptor, readable)
    try:
        await broken.wait()
    finally:
        loop.remove_reader(descriptor)
