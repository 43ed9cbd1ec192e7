"""Stands between one replica and PostgreSQL, and cuts the line at a COMMIT.

To the replica the outcome of that transaction is unknown: the line is gone before PostgreSQL has
read the COMMIT (nothing was written), or after it has obeyed and before its answer is through
(everything was).
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from types import TracebackType
from typing import Final, Literal, Self

from sqlalchemy.engine import make_url

#: Whether PostgreSQL still gets the COMMIT.
Cut = Literal["cut before", "cut after"]
#: The end of a query whose last statement is COMMIT; the last writes are before it in the message.
_COMMIT: Final = b"COMMIT\x00"
#: PostgreSQL's last word on a query, outside of a transaction: it has committed, or rolled back.
_IDLE: Final = b"Z\x00\x00\x00\x05I"
_BYTES = 65_536


class Relay:
    """Transparent until it gets the order to cut; then it cuts one line, once."""

    def __init__(self, database_url: str) -> None:
        target = make_url(database_url)
        self.target = (target.host or "127.0.0.1", target.port or 5432)
        self._server = _Server(self)
        port = self._server.server_address[1]
        self.url = target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        self._thread = threading.Thread(target=self._server.serve_forever, name="relay")
        self._lock = threading.Lock()
        self._order: Cut | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def arm(self, cut: Cut) -> None:
        """The next COMMIT of any line is that line's last."""
        with self._lock:
            self._order = cut

    @property
    def is_armed(self) -> bool:
        return self._order is not None

    def disarm(self) -> None:
        with self._lock:
            self._order = None

    def order(self) -> Cut | None:
        """What is to be done to a COMMIT that has come; asked once for each."""
        with self._lock:
            order, self._order = self._order, None
            return order


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        super().__init__(("127.0.0.1", 0), _Line)


class _Line(socketserver.BaseRequestHandler):
    """One connection of the replica: what it sends here, what it is answered on a thread beside."""

    request: socket.socket
    server: _Server

    def handle(self) -> None:
        self.withheld = threading.Event()
        self.withholds = False
        with contextlib.suppress(OSError), socket.create_connection(self.server.relay.target) as to:
            answers = threading.Thread(target=self._hand_back, args=[to], daemon=True)
            answers.start()
            with contextlib.suppress(OSError):
                self._hand_on(to)
            _hang_up(to)
            _hang_up(self.request)
            answers.join()

    def _hand_on(self, to: socket.socket) -> None:
        while sent := self.request.recv(_BYTES):
            order = self.server.relay.order() if sent.endswith(_COMMIT) else None
            if order == "cut before":
                return
            self.withholds = order == "cut after"
            to.sendall(sent)
            if self.withholds:
                self.withheld.wait()
                return

    def _hand_back(self, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end = b""
            while answer := to.recv(_BYTES):
                end = (end + answer)[-len(_IDLE) :]
                if not self.withholds:
                    self.request.sendall(answer)
                elif end == _IDLE:  # PostgreSQL has obeyed: nothing is asked besides.
                    break
        self.withheld.set()
        _hang_up(self.request)


def _hang_up(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
