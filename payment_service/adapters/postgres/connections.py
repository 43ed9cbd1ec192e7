"""Connections to PostgreSQL, one for each thread that asks, in the driver's own form.

They are plain psycopg2: a layer above it took as long for each statement as PostgreSQL itself.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import psycopg2

from payment_service.adapters.postgres.limits import OPTIONS
from payment_service.adapters.postgres.prepared import PreparingConnection

Connection: TypeAlias = PreparingConnection

#: A connection that is older is replaced, so that a balancer's new servers get their share.
_LIFE_SECONDS: Final = 1800.0
_CONNECT: Final[Mapping[str, Any]] = {
    "connect_timeout": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "payment_service",
    "target_session_attrs": "read-write",
}
_SCHEME: Final = re.compile(r"^postgres(?:ql)?(?:\+\w+)?://")


def plain_url(url: str) -> str:
    """Returns the URL without a driver, as PostgreSQL's own library expects it."""
    return _SCHEME.sub("postgresql://", url)


def connect(url: str, *, limits: bool = True) -> Connection:
    """Opens a connection in which a statement is committed, unless a transaction was begun.

    ``limits=False`` does not ask for the limits of statements and locks, and prepares nothing: a
    pooler refuses the one and loses the other.
    """
    asked = {**_CONNECT, "options": OPTIONS} if limits else _CONNECT
    connection: Connection = psycopg2.connect(
        plain_url(url), connection_factory=PreparingConnection, **asked
    )
    connection.prepares = limits
    connection.autocommit = True
    return connection


class Connections:
    """Holds a connection for each thread. It is opened when the thread first needs it."""

    def __init__(self, url: str, *, limits: bool) -> None:
        self._url, self._limits = url, limits
        self._mine = threading.local()
        #: Every connection that a thread holds. `close` must close them.
        self._all: set[Connection] = set()

    @property
    def is_open(self) -> bool:
        """Returns whether this thread has a connection already, dead or alive."""
        return getattr(self._mine, "held", None) is not None

    def mine(self) -> Connection:
        """Returns this thread's connection. It may have died since it was last used."""
        held: tuple[Connection, float] | None = getattr(self._mine, "held", None)
        if held is not None and not held[0].closed and time.monotonic() < held[1]:
            return held[0]
        self.drop()
        connection = connect(self._url, limits=self._limits)
        self._all.add(connection)
        self._mine.held = (connection, time.monotonic() + _LIFE_SECONDS)
        return connection

    def drop(self) -> None:
        """Closes this thread's connection; the next call of `mine` opens another one."""
        held: tuple[Connection, float] | None = getattr(self._mine, "held", None)
        if held is not None:
            self._mine.held = None
            self._all.discard(held[0])
            held[0].close()

    def close(self) -> None:
        """Closes every connection. The threads must have ended."""
        for connection in self._all:
            connection.close()
        self._all.clear()
