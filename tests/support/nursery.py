"""Starts programs of this tree whose imports are made already, so that a start takes no time.

A program spends nine tenths of its start on imports. Here one process imports once and forks. What
comes out runs the same module as `python -m` does, and is a process of its own like any other: with
its own pid, session, arguments, environment, output and end. It forks before anything of gRPC has
begun, so that no thread is ever forked through.

Not for what measures a start: recovery and rolling restarts pay for it in full. Each program is
also started by its bare command somewhere: `make run` starts all of them so.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NoReturn

from dev.settings import COMMANDS, ROOT

_BYTES = 65536
_SERVICE = "payment_service"
#: What a program imports only when it is asked for this, which takes long too.
_LATER = {"migrate": "payment_service.adapters.postgres.migrate"}
#: The exit code of Python after an exception that nobody handled.
_FAILED = 1


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
    """The process that has imported everything. May be used by several threads."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.nursery", str(theirs.fileno())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "false"},
        )
        theirs.close()

    def serve(self, environment: Mapping[str, str]) -> Forked:
        """A replica of the service with this environment and no other."""
        return self.spawn(COMMANDS["service"], environment)

    def spawn(self, command: Sequence[str], environment: Mapping[str, str]) -> Forked:
        """A process of `python -m …` with this environment and no other, for a `Stack`."""
        lines, write = os.pipe()
        try:
            pid, told = self._order(command, environment, write, write)
        finally:
            os.close(write)
        return Forked(pid, os.fdopen(lines, "rb"), told)

    def run(
        self, *arguments: str, env: Mapping[str, str], timeout: float = 90.0
    ) -> subprocess.CompletedProcess[str]:
        """Waits for `python -m` with these arguments to end, and returns what it wrote."""
        return self._run([sys.executable, "-m", *arguments], env, timeout)

    def run_code(self, code: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Does the same for `python -c`, whose code may import the service at no cost."""
        return self._run([sys.executable, "-c", code], os.environ, timeout)

    def _run(
        self, command: Sequence[str], env: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid, told = self._order(command, env, out.fileno(), err.fileno())
            child = Forked(pid, out, told)
            try:
                child.wait(timeout)
            except BaseException:
                child.send_signal(signal.SIGKILL)
                raise
            said = [_written(file) for file in (out, err)]
        return subprocess.CompletedProcess(command, child.wait(), *said)

    def _order(
        self, command: Sequence[str], environment: Mapping[str, str], out: int, err: int
    ) -> tuple[int, socket.socket]:
        """Returns the pid of the process, and what tells how it ended."""
        python, kind, *arguments = command
        assert (python, kind in ("-m", "-c")) == (sys.executable, True), command
        told, theirs = socket.socketpair()
        order = {"kind": kind, "arguments": arguments, "environment": dict(environment)}
        with self._turn, theirs:
            socket.send_fds(self._ours, [b"1"], [theirs.fileno(), out, err])
            told.sendall(json.dumps(order).encode() + b"\n")
            return int(_line(told)), told

    def close(self) -> None:
        self._ours.close()
        self._process.wait(30)


def _line(told: socket.socket) -> bytes:
    """Returns a line and nothing after it: a short program may have ended by now, too."""
    line = b""
    while not line.endswith(b"\n") and (more := told.recv(1)):
        line += more
    return line


def _written(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


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
                order, descriptors, _, _ = socket.recv_fds(orders, 1, 3)
                if not order:
                    return
                answer = socket.socket(fileno=descriptors[0])
                with answer.makefile("rb") as given:
                    told = json.loads(given.readline())
                _import_for(*told["arguments"] if told["kind"] == "-m" else [_SERVICE])
                pid = os.fork()
                if not pid:
                    inherited = [orders.fileno(), ended_read, ended_write, selector.fileno()]
                    others = [*inherited, *(other.fileno() for other in children.values())]
                    _become(told, answer, descriptors[1:], others)
                for descriptor in descriptors[1:]:
                    os.close(descriptor)
                children[pid] = answer


def _import_for(module: str, *arguments: str) -> None:
    """Makes the imports of a program, unless it was asked for before."""
    importlib.import_module(f"{module}.__main__")
    if later := _LATER.get(arguments[0] if arguments else ""):
        importlib.import_module(later)


def _tell(children: dict[int, socket.socket]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with contextlib.suppress(OSError), children.pop(pid) as told:
                told.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def _become(
    order: Mapping[str, Any], answer: socket.socket, outputs: Sequence[int], others: Sequence[int]
) -> NoReturn:
    """The program: in a session of its own, and with nothing of the nursery's open."""
    status = _FAILED
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number in others:
            os.close(number)
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
        for output in set(outputs):
            os.close(output)
        os.environ.clear()
        os.environ.update(order["environment"])
        answer.sendall(b"%d\n" % os.getpid())
        answer.close()
        first, *arguments = order["arguments"]
        sys.argv = [first, *arguments]
        if order["kind"] == "-c":
            exec(first, {"__name__": "__main__"})  # noqa: S102 - the test's own code
        else:
            # It runs anew, under the name by which it knows that it is the program.
            del sys.modules[f"{first}.__main__"]
            runpy.run_module(first, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as left:
        if isinstance(left.code, str):
            sys.stderr.write(f"{left.code}\n")
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 - as Python itself does
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _tend(socket.socket(fileno=int(sys.argv[1])))
