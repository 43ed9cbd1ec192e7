"""Connections to PostgreSQL, in the driver's own form, and the places of a pool that hold them.

They are plain psycopg2: a layer above it took as long for each statement as PostgreSQL itself.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final, TypeAlias

import psycopg2
from psycopg2 import Error, OperationalError
from psycopg2.extensions import parse_dsn

from payment_service.adapters.postgres.limits import OPTIONS
from payment_service.adapters.postgres.prepared import PreparingConnection
from payment_service.adapters.postgres.waiting import WaitingCursor, in_thread

Connection: TypeAlias = PreparingConnection

#: A connection that is older is replaced, so that a balancer's new servers get their share.
_LIFE_SECONDS: Final = 1800.0
#: How long one server may take to accept a connection.
_CONNECT_SECONDS: Final = 3.0
_CONNECT: Final[Mapping[str, Any]] = {
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
    pooler refuses the one and loses the other. Blocks its thread. Raises the driver's errors; if
    the URL names several servers, what the first of them said.
    """
    asked = {**_CONNECT, "options": OPTIONS} if limits else _CONNECT
    failures: list[OperationalError] = []
    for server in _servers(parse_dsn(plain_url(url))):
        try:
            connection = _connect_to({**server, **asked})
        except OperationalError as error:
            failures.append(error)
        else:
            connection.prepares = limits
            return connection
    raise failures[0]


def _connect_to(server: Mapping[str, Any]) -> Connection:
    connection: Connection = psycopg2.connect(
        **server,
        connection_factory=PreparingConnection,
        cursor_factory=WaitingCursor,
        async_=1,
    )
    try:
        connection.wait(until=time.monotonic() + _CONNECT_SECONDS)
    except Error:
        connection.close()
        raise
    return connection


def _servers(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields what connects to each server that a URL may mean, in its order.

    The driver would try them by itself, but a connection that does not block its thread has no
    time limit for each of them. A server that does not answer would hide all others.
    """
    if "hostaddr" in given:
        yield dict(given)
        return
    hosts = str(given.get("host", "")).split(",")
    ports = str(given.get("port", "")).split(",")
    for number, host in enumerate(hosts):
        one = {**given, "host": host, "port": ports[min(number, len(ports) - 1)]}
        one = {name: value for name, value in one.items() if value}
        if not host or host[0] in "/@":
            yield one
            continue
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            yield one  # The driver says what is wrong with it.
            continue
        for address in dict.fromkeys(str(entry[4][0]) for entry in found):
            yield {**one, "hostaddr": address}


class Place:
    """One place of a pool. Its connection is opened when a phase first needs it."""

    def __init__(self, url: str, threads: Executor, *, limits: bool) -> None:
        self._url, self._threads, self._limits = url, threads, limits
        self._held: Connection | None = None
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Returns whether there is a connection already, as far as is known a living one."""
        return self._held is not None and not self._held.closed

    def connection(self) -> Connection:
        """Returns the connection. It may have died since it was last used."""
        held = self._held
        if held is not None and not held.closed and time.monotonic() < self._until:
            return held
        self.drop()
        self._held = in_thread(self._threads, partial(connect, self._url, limits=self._limits))
        self._until = time.monotonic() + _LIFE_SECONDS
        return self._held

    def rest(self) -> None:
        """Closes a connection that was left while it waited: nobody will read the answer."""
        if self._held is not None and not self._held.closed and self._held.isexecuting():
            self.drop()

    def drop(self) -> None:
        """Closes the connection; the next call of `connection` opens another one."""
        if self._held is not None:
            self._held.close()
            self._held = None
