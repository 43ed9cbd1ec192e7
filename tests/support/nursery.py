"""Starts replicas that have imported everything already, so that a start takes no time.

A replica spends nine tenths of its start on imports. Here one process imports once and forks; what
comes out is a process of its own like any other, with its own pid, session, environment and end. It
forks before anything of gRPC has begun, so that no thread is ever forked through.

Not for what measures a start: recovery and rolling restarts pay for it in full.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, NoReturn

from dev.settings import ROOT
from payment_service.__main__ import app  # What takes the time.

_BYTES = 65536


@dataclass
class Forked:
    """What `subprocess.Popen` is for a child of one's own; the nursery tells how it ended."""

    pid: int
    stdout: IO[bytes]
    _told: socket.socket
    returncode: int | None = None

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        ended = self._ended(timeout)
        if ended is None:
            raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0.0)
        return ended

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _ended(self, seconds: float | None) -> int | None:
        if self.returncode is None:
            self._told.settimeout(seconds)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                told = self._told.recv(_BYTES)
                # A nursery that is gone has taken its children along.
                self.returncode = int(told) if told else -signal.SIGKILL
                self._told.close()
        return self.returncode


class Nursery:
    """The process that has imported everything; `spawn` is given to a `Child`."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.nursery", str(theirs.fileno())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "false"},
        )
        theirs.close()

    def spawn(self, environment: Mapping[str, str]) -> Forked:
        """A replica with this environment and no other."""
        told, theirs = socket.socketpair()
        lines, write = os.pipe()
        socket.send_fds(self._ours, [b"1"], [theirs.fileno(), write])
        theirs.close()
        os.close(write)
        told.sendall(json.dumps(dict(environment)).encode() + b"\n")
        pid = int(told.recv(_BYTES))
        return Forked(pid, os.fdopen(lines, "rb"), told)

    def close(self) -> None:
        self._ours.close()
        self._process.wait(30)


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    opened = Nursery()
    try:
        yield opened
    finally:
        opened.close()


# ---- inside ----


def _tend(orders: socket.socket) -> None:
    """Forks for each order and reports how each child ended, until the orders end."""
    ended_read, ended_write = os.pipe()
    os.set_blocking(ended_write, False)
    signal.set_wakeup_fd(ended_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    children: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(orders, selectors.EVENT_READ)
        selector.register(ended_read, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not orders:
                    os.read(ended_read, _BYTES)
                    _tell(children)
                    continue
                order, descriptors, _, _ = socket.recv_fds(orders, 1, 2)
                if not order:
                    return
                answer = socket.socket(fileno=descriptors[0])
                pid = os.fork()
                if not pid:
                    inherited = [orders.fileno(), ended_read, ended_write, selector.fileno()]
                    _become(
                        answer,
                        descriptors[1],
                        [*inherited, *(told.fileno() for told in children.values())],
                    )
                os.close(descriptors[1])
                children[pid] = answer


def _tell(children: dict[int, socket.socket]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with contextlib.suppress(OSError), children.pop(pid) as told:
                told.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _become(answer: socket.socket, lines: int, others: list[int]) -> NoReturn:
    """A replica: in a session of its own, and with nothing of the nursery's open."""
    status = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number in others:
            os.close(number)
        os.dup2(lines, 1)
        os.dup2(lines, 2)
        os.close(lines)
        with answer.makefile("rb") as given:
            environment = json.loads(given.readline())
        os.environ.clear()
        os.environ.update(environment)
        answer.sendall(str(os.getpid()).encode())
        answer.close()
        app(["serve"], prog_name="payment_service")
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _tend(socket.socket(fileno=int(sys.argv[1])))
