"""Lets a phase wait for PostgreSQL while the event loop continues, without a thread.

A phase is a plain function. It runs as a greenlet on the event loop: where a statement waits for
its answer, the greenlet is left, and the loop turns to other calls. The answer resumes it. So a
phase still cannot await, and it costs neither a thread nor a wait for the interpreter's lock.

Only `SqlDatabase` starts greenlets. Without one, a connection waits as any other driver does.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from typing import Any, Final, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet
from psycopg2 import Error, OperationalError, extensions

T = TypeVar("T")

_READ: Final = extensions.POLL_READ
_OK: Final = extensions.POLL_OK


class OnLoop(greenlet):
    """A plain function that runs on the event loop, and may be left where it waits."""

    loop: asyncio.AbstractEventLoop


def run_on_loop(work: Callable[[], T]) -> asyncio.Future[T]:
    """Starts a plain function on the running event loop, and returns its future.

    The function runs to its end, even if the future is cancelled. What it does between two waits
    holds the loop up, so it must be short.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except GreenletExit:
            raise  # The loop has ended, and nobody will resume this.
        except BaseException as error:  # noqa: BLE001 - it is raised where the future is awaited
            if isinstance(error, StopIteration):  # A future refuses it, and would never be done.
                error = RuntimeError("a phase has raised StopIteration")
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)

    one = OnLoop(run)
    one.loop = loop
    # Its spans and lines of the log belong to the call.
    one.gr_context = copy_context()
    one.switch()
    return future


def pause(seconds: float) -> None:
    """Waits. Other work of the event loop continues."""
    here = _here()
    if here is None:
        time.sleep(seconds)
    else:
        here.loop.call_later(seconds, here.switch)
        _leave(here)


def in_thread(threads: Executor, work: Callable[[], T]) -> T:
    """Does what cannot be interrupted, such as to look up a host, on a thread, and waits for it."""
    here = _here()
    if here is None:
        return work()
    future = here.loop.run_in_executor(threads, work)
    future.add_done_callback(lambda _: here.switch())
    _leave(here)
    return future.result()


def _here() -> OnLoop | None:
    current = getcurrent()
    return current if isinstance(current, OnLoop) else None


def _leave(here: OnLoop) -> None:
    """Returns to the event loop until something resumes the greenlet."""
    assert here.parent is not None
    here.parent.switch()


class WaitingCursor(extensions.cursor):
    """A cursor that returns from `execute` when PostgreSQL has answered."""

    connection: WaitingConnection

    def execute(self, query: Any, values: Any = None) -> None:
        super().execute(query, values)
        self.connection.wait()


class WaitingConnection(extensions.connection):
    """An asynchronous connection whose statements wait for their answers.

    On the event loop it is watched from its first statement until it is closed: to register it anew
    for each wait would cost more than the wait.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watched_by: asyncio.AbstractEventLoop | None = None
        #: Kept: a connection that has died does not tell its descriptor any more.
        self._descriptor = -1
        self._waiter: OnLoop | None = None

    def wait(self, until: float | None = None) -> None:
        """Waits for what was asked. Raises the driver's errors.

        ``until`` is a time of the monotonic clock (seconds), for connections that are being opened.
        """
        here = _here()
        if here is not None and self._watched_by is not here.loop:
            self._watch(here.loop)
        try:
            while (state := self.poll()) != _OK:
                if here is None:
                    self._wait_off_loop(state, until)
                else:
                    self._wait_on_loop(here, state)
        except Error:
            if self.closed:
                self._unwatch()
            raise

    def _wait_off_loop(self, state: int, until: float | None) -> None:
        waiting = select.poll()
        waiting.register(self.fileno(), select.POLLIN if state == _READ else select.POLLOUT)
        left = None if until is None else max(0.0, until - time.monotonic())
        if not waiting.poll(None if left is None else left * 1000):
            raise OperationalError("the server has not answered in time")

    def _wait_on_loop(self, here: OnLoop, state: int) -> None:
        self._waiter = here
        if state == _READ:
            _leave(here)
            return
        here.loop.add_writer(self._descriptor, self._readable)
        try:
            _leave(here)
        finally:
            here.loop.remove_writer(self._descriptor)

    def _readable(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            waiter.switch()
            return
        # Nobody has asked: it is a notice, or the end of the connection.
        try:
            self.poll()
        except Error:
            self.close()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._unwatch()
        self._descriptor = self.fileno()
        self._watched_by = loop
        loop.add_reader(self._descriptor, self._readable)

    def _unwatch(self) -> None:
        if self._watched_by is not None and not self._watched_by.is_closed():
            self._watched_by.remove_reader(self._descriptor)
        self._watched_by = None

    def close(self) -> None:
        self._unwatch()
        super().close()
