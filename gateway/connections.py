"""How many strangers may be connected at once, and who makes room.

aiohttp has no limit for a request's headers as such. Two things stand in for it. The
keep-alive timer runs from the moment of connection: a connection that has not sent a whole header
within GATEWAY_KEEPALIVE_SECONDS is closed, however slowly it sends. And the guard below bounds the
number of connections: at the bound, the oldest connection without work in progress is closed for
the new one. So a client that holds sockets open loses its own, and a webhook, which needs
milliseconds, gets through. In production a proxy stands in front as well: limits by address are its
duty, because all callers behind it share one address.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from typing_extensions import override

from gateway.door import Connection, Door
from gateway.metrics import Metrics
from gateway.settings import Settings


class ConnectionGuard:
    """Admits connections up to a bound and protects those that the core is working for."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._protected: set[web.RequestHandler] = set()

    @contextmanager
    def protecting(self, request: web.Request) -> Iterator[None]:
        """While in this block the request's connection is not closed to make room.

        For the time in which the core works on a request that has arrived whole; before that
        it is the client who is waited for, and such a wait gives no right to stay. Nor does a
        question for health: many can wait for one answer, and would keep webhooks out.
        """
        connection = request.protocol
        self._protected.add(connection)
        try:
            yield
        finally:
            self._protected.discard(connection)

    def watch(self, server: web.Server) -> None:
        """Lets the metrics count this server's connections whenever they are asked for."""
        self._metrics.connections.set_function(lambda: len(server.connections))

    def admit(self, server: web.Server, door: Door, options: Mapping[str, Any]) -> asyncio.Protocol:
        """The protocol for a connection that was just accepted.

        A burst accepted in one turn of the loop is counted only in the next, so the bound can be
        passed by one backlog.
        """
        connections = [each for each in server.connections if each.connected]
        if len(connections) >= self._limit:
            # In the order in which they came, so the first one found is the oldest.
            oldest = next((each for each in connections if each not in self._protected), None)
            if oldest is None:
                self._metrics.connections_dropped.labels("refused").inc()
                return _Refused()
            self._metrics.connections_dropped.labels("made_room").inc()
            oldest.force_close()
        return Connection(server, door, options)


class _Refused(asyncio.Protocol):
    """Closes the connection at once."""

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class GuardedSite(web.BaseSite):
    """A TCP listener whose connections pass the guard, and their requests the door."""

    __slots__ = ("_door", "_guard", "_host", "_options", "_port")

    def __init__(
        self,
        runner: web.BaseRunner,
        settings: Settings,
        *,
        guard: ConnectionGuard,
        door: Door,
        options: Mapping[str, Any],
    ) -> None:
        """`options` are those of aiohttp's RequestHandler."""
        super().__init__(runner)
        self._host = settings.gateway_host
        self._port = settings.gateway_port
        self._guard = guard
        self._door = door
        self._options = options

    @property
    @override
    def name(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @override
    async def start(self) -> None:
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")
        self._guard.watch(server)
        server.request_handler = self._door.guard(server.request_handler)
        listener = await asyncio.get_running_loop().create_server(
            lambda: self._guard.admit(server, self._door, self._options),
            self._host,
            self._port,
            backlog=128,
        )
        self._server = listener
        self._port = listener.sockets[0].getsockname()[1]
