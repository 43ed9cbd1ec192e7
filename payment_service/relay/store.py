"""What the relay remembers, in a schema of its own, and the lock that lets one relay be active.

Every statement of the active relay runs in the session that holds the lock. A relay that has lost
the lock has lost its session, so it can no longer move a cursor or begin a delivery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import psycopg2
import psycopg2.errors

_T = TypeVar("_T")

SCHEMA: Final = "payments_relay"
#: Any number that no other program of the database uses for an advisory lock.
_LOCK: Final = 7_305_812_240_069
#: A session whose network is gone ends on both sides, and another relay takes over.
_SESSION: Final[dict[str, Any]] = {
    "application_name": "payments-relay",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "options": f"-c search_path={SCHEMA} -c statement_timeout=10s -c timezone=UTC "
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 "
    # Otherwise the session of a relay that died could keep the lock while it waits for something.
    "-c client_connection_check_interval=1s",
}
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS cursors (
    target text PRIMARY KEY,
    cursor text NOT NULL,
    record_time timestamptz,
    -- Set when the feed is read again from its beginning: what was recorded before is known.
    known_before timestamptz
);
CREATE TABLE IF NOT EXISTS sent (
    target text NOT NULL,
    event_id text NOT NULL,
    record_time timestamptz NOT NULL,
    sent_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (target, event_id)
);
CREATE INDEX IF NOT EXISTS sent_by_time ON sent (sent_time);
CREATE TABLE IF NOT EXISTS deliveries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint text NOT NULL,
    event_id text NOT NULL,
    payment_id text NOT NULL,
    kind text NOT NULL,
    body text NOT NULL,
    record_time timestamptz NOT NULL,
    state text NOT NULL DEFAULT 'WAITING' CHECK (state IN ('WAITING', 'DELIVERED', 'PARKED')),
    attempts integer NOT NULL DEFAULT 0,
    due_time timestamptz NOT NULL DEFAULT now(),
    first_failure_time timestamptz,
    attempt_time timestamptz,
    outcome text NOT NULL DEFAULT '',
    UNIQUE (endpoint, event_id)
);
CREATE INDEX IF NOT EXISTS deliveries_waiting
    ON deliveries (endpoint, payment_id, id) WHERE state = 'WAITING';
CREATE INDEX IF NOT EXISTS deliveries_due
    ON deliveries (endpoint, due_time) WHERE state = 'WAITING';
CREATE INDEX IF NOT EXISTS deliveries_open
    ON deliveries (endpoint) INCLUDE (state, record_time) WHERE state <> 'DELIVERED';
CREATE TABLE IF NOT EXISTS endpoints (
    name text PRIMARY KEY,
    failures integer NOT NULL DEFAULT 0,
    due_time timestamptz NOT NULL DEFAULT now(),
    failing_since timestamptz,
    last_success_time timestamptz,
    disabled_time timestamptz,
    disabled_why text NOT NULL DEFAULT ''
);
"""


class StoreLost(Exception):
    """The session is gone, and the lock with it."""


class NoSchema(Exception):
    """The relay's schema is absent, and its role may not make it."""


class Store:
    """One session of the relay's database. Its statements run one after another, in a thread."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="relay-store")
        self._session: Any = None

    async def open(self) -> None:
        """Connects, and makes the tables that are absent. Raises :class:`StoreLost`."""
        await self._in_thread(self._connect)

    async def take_lock(self) -> bool:
        """Returns whether this relay is the active one now."""
        found = await self.run(lambda sql: sql.one("SELECT pg_try_advisory_lock(%s)", _LOCK))
        return bool(found[0])

    async def run(self, phase: Callable[[Sql], _T]) -> _T:
        """Runs a phase in one transaction. Raises :class:`StoreLost` if the session is gone."""

        def work() -> _T:
            with _transaction(self._session) as sql:
                return phase(sql)

        return await self._in_thread(work)

    async def close(self) -> None:
        """Ends the session, and with it the lock."""
        await self._in_thread(self._disconnect)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            raise StoreLost(type(error).__name__) from None

    def _connect(self) -> None:
        self._disconnect()
        self._session = psycopg2.connect(self._url, **_SESSION)
        try:
            with _transaction(self._session) as sql:
                if sql.one("SELECT to_regnamespace(%s) IS NULL", SCHEMA)[0]:
                    sql.do(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                # Several relays may start at once.
                sql.do("SELECT pg_advisory_xact_lock(%s)", _LOCK + 1)
                sql.do(_TABLES)
        except psycopg2.errors.InsufficientPrivilege:
            raise NoSchema(
                f"the role of RELAY_DATABASE_URL can neither use nor make the schema {SCHEMA}: "
                "make the schema for it (docs/runbook/relay.md)"
            ) from None

    def _disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class Sql:
    """The statements of one transaction."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def do(self, statement: str, *given: object) -> int:
        """Executes a statement and returns how many rows it changed."""
        self._cursor.execute(statement, given or None)
        return int(self._cursor.rowcount)

    def all(self, statement: str, *given: object) -> list[tuple[Any, ...]]:
        """Returns the rows."""
        self._cursor.execute(statement, given or None)
        return list(self._cursor.fetchall())

    def one(self, statement: str, *given: object) -> tuple[Any, ...]:
        """Returns the only row."""
        [row] = self.all(statement, *given)
        return row


@contextmanager
def _transaction(session: Any) -> Iterator[Sql]:
    if session is None:
        raise psycopg2.InterfaceError("closed")
    with session, session.cursor() as cursor:
        yield Sql(cursor)
