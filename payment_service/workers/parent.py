"""The parent of several workers: it forks them, restarts those that die, and ends all together.

It is one thread that waits, so that it can fork at any time: no thread is ever forked through, and
nothing of gRPC has begun. Whatever needs an event loop is in the processes that it forks.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import structlog

from payment_service.config import Settings, WrongSettings
from payment_service.logs import configure_logs
from payment_service.maintenance import CannotRun
from payment_service.server import CannotListen, serve
from payment_service.workers.pages import serve_pages
from payment_service.workers.worker import BEAT_SECONDS, CANNOT_START, Tie, Worker, say_why

log = structlog.get_logger(__name__)

#: A process that has not beaten for this long is killed: its event loop is stuck.
STUCK_SECONDS: Final = 60.0
#: A parent that has not beaten for this long, though it does each second, was not run.
_PAUSED_SECONDS: Final = 10 * BEAT_SECONDS
#: Who dies sooner than this after its start has died at once.
AT_ONCE_SECONDS: Final = 10.0
#: This number of deaths at once, in a row, ends everything: another start would not help.
MOST_DEATHS: Final = 5
#: The pauses before a restart, by the number of deaths at once that came before.
_PAUSES: Final = (0.1, 0.5, 1.0, 2.0, 4.0)
#: What the workers may need beyond SHUTDOWN_GRACE, to close what they have open.
_OVERTIME_SECONDS: Final = 10.0
_FAILED: Final = 1
_CRASHED: Final = 70
#: glibc's number of the setting.
_M_ARENA_MAX: Final = -8
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_HEARD: Final = (*_ENDING, signal.SIGCHLD)

#: What a process does; returns its exit code. It gets the number of its start and its tie.
Work = Callable[[int, Tie], int]


@dataclass
class Post:
    """What a process must always run for, and the process that does now."""

    name: str
    work: Work
    pid: int = 0
    tie: Tie | None = None
    starts: int = 0
    deaths_at_once: int = 0
    begun: float = 0.0
    heard: float = 0.0
    #: When the next process is due, if there is none.
    due: float = 0.0


class Parent:
    """Keeps one process for each post until a signal, a worker that cannot start, or the end."""

    def __init__(self, workers: list[Post], pages: Post | None, grace_seconds: float) -> None:
        self._workers, self._pages = workers, pages
        self._grace_seconds = grace_seconds
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.pipe()
        #: The exit code, once the end has begun.
        self._code: int | None = None
        self._deadline = 0.0
        self._beaten = 0.0

    @property
    def _posts(self) -> list[Post]:
        return [*self._workers, *([self._pages] if self._pages else [])]

    def run(self) -> int:
        """Returns the exit code when every process has ended."""
        for number in self._wakeup:
            os.set_blocking(number, False)
        self._selector.register(self._wakeup[0], selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        for name in _HEARD:
            signal.signal(name, lambda number, frame: None)
        # What was imported is not looked at by the collector any more, so that the workers do not
        # copy the pages that it would write its marks into.
        gc.collect()
        gc.freeze()
        _use_few_arenas()
        while True:
            self._start_those_due()
            self._wait()
            self._reap()
            self._look_after()
            if self._code is not None and self._has_ended():
                return self._code

    def _start_those_due(self) -> None:
        now = time.monotonic()
        for post in self._posts:
            if self._code is None and not post.pid and now >= post.due:
                self._fork(post)

    def _wait(self) -> None:
        """Waits for a signal, a beat, or the next time at which there is something to do."""
        now = time.monotonic()
        due = [post.due - now for post in self._posts if not post.pid and self._code is None]
        for key, _ in self._selector.select(max(0.0, min([BEAT_SECONDS, *due]))):
            if isinstance(key.data, Post):
                self._hear(key.data)
                continue
            if set(os.read(self._wakeup[0], 4096)) & set(_ENDING):
                self._end(0)

    def _hear(self, post: Post) -> None:
        if post.tie is not None and post.tie.heard():
            post.heard = time.monotonic()
        else:  # It is ending; the kernel says soon how.
            self._let_go(post)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for post in self._posts:
                if post.pid == pid:
                    self._ended(post, os.waitstatus_to_exitcode(status))

    def _ended(self, post: Post, code: int) -> None:
        post.pid = 0
        self._let_go(post)
        if self._code is not None:
            if code not in (0, -signal.SIGTERM):
                self._code = self._code or _FAILED
            return
        if code == CANNOT_START:  # It has said why.
            self._end(CANNOT_START)
            return
        now = time.monotonic()
        at_once = now - post.begun < AT_ONCE_SECONDS
        post.deaths_at_once = post.deaths_at_once + 1 if at_once else 0
        log.error("worker_died", process=post.name, ending=_ending(code))
        if post.deaths_at_once >= MOST_DEATHS:
            print(  # noqa: T201
                f"payment_service ends: {post.name} has died {MOST_DEATHS} times in a row within "
                f"{AT_ONCE_SECONDS:.0f} seconds of its start, the last time by {_ending(code)}; "
                "its log says what it did before",
                file=sys.stderr,
                flush=True,
            )
            self._end(_FAILED)
        post.due = now + _PAUSES[min(post.deaths_at_once, len(_PAUSES) - 1)]

    def _look_after(self) -> None:
        """Beats, and kills those who are stuck, or who take too long to end."""
        now = time.monotonic()
        if now - self._beaten > _PAUSED_SECONDS:
            # This process did not run itself, as in a container that was paused. So it has not
            # listened, and cannot say who is stuck.
            for post in self._posts:
                post.heard = now
        if now - self._beaten >= BEAT_SECONDS:
            self._beaten = now
            for post in self._posts:
                if post.tie is not None:
                    post.tie.beat()
        for post in self._posts:
            stuck = now - post.heard > STUCK_SECONDS
            overdue = self._code is not None and now > self._deadline
            if post.pid and (stuck or overdue):
                log.warning("worker_stuck", process=post.name)
                post.heard = now
                os.kill(post.pid, signal.SIGKILL)

    def _end(self, code: int) -> None:
        """Begins the end: the workers drain at the same time. The pages show it until they have."""
        if self._code is not None:
            return
        self._code = code
        self._deadline = time.monotonic() + self._grace_seconds + _OVERTIME_SECONDS
        for post in self._workers:
            if post.pid:
                os.kill(post.pid, signal.SIGTERM)

    def _has_ended(self) -> bool:
        if any(post.pid for post in self._workers):
            return False
        if self._pages is not None:
            self._let_go(self._pages)
            return not self._pages.pid
        return True

    def _let_go(self, post: Post) -> None:
        """Closes the tie, which tells the process to end."""
        if post.tie is not None:
            self._selector.unregister(post.tie)
            post.tie.close()
            post.tie = None

    def _fork(self, post: Post) -> None:
        ours, theirs = map(Tie, socket.socketpair())
        _flush()
        # A signal that came before the child has its own handlers would be lost.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        try:
            pid = os.fork()
        except OSError as error:  # No memory, or too many processes: perhaps for a moment.
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            ours.close()
            theirs.close()
            post.due = time.monotonic() + _PAUSES[-1]
            log.warning("worker_failed", process=post.name, error=error)
            return
        post.starts += 1
        if not pid:
            ours.close()
            self._become(post, theirs, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        post.pid, post.tie = pid, ours
        post.begun = post.heard = time.monotonic()
        self._selector.register(ours, selectors.EVENT_READ, post)

    def _become(self, post: Post, tie: Tie, mask: set[signal.Signals | int]) -> NoReturn:
        """Is the child: it has nothing of the parent's open, and never returns."""
        code = _CRASHED
        try:
            signal.set_wakeup_fd(-1)
            for name in _HEARD:
                signal.signal(name, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._selector.close()
            for number in self._wakeup:
                os.close(number)
            for other in self._posts:
                if other.tie is not None:
                    other.tie.close()
            code = post.work(post.starts, tie)
        except Exception as error:  # noqa: BLE001 - a text of an exception leaves no process
            log.warning("worker_failed", process=post.name, error=error)
        finally:
            _flush()
            os._exit(code)


def serve_by_workers(settings: Settings) -> int:
    """Serves with WORKERS processes until SIGTERM. Returns the exit code."""
    directory = Path(tempfile.mkdtemp(prefix="payment-workers-"))
    sockets = {number: directory / f"{number}.sock" for number in range(settings.workers)}
    workers = [
        Post(f"worker {number}", partial(_serve_worker, settings, number, path))
        for number, path in sockets.items()
    ]
    pages = Post("pages", partial(_serve_pages, settings, sockets))
    log.info("supervising", workers=settings.workers, metrics=settings.metrics_port)
    try:
        return Parent(
            workers, pages if settings.metrics_port else None, settings.shutdown_grace
        ).run()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _serve_worker(settings: Settings, number: int, path: Path, starts: int, tie: Tie) -> int:
    configure_logs(settings.effective_log_level, settings.effective_log_format, worker=number)
    try:
        asyncio.run(serve(settings.of_worker(number), Worker(number, starts, path, tie)))
    except (WrongSettings, CannotListen, CannotRun) as fault:
        code = say_why(fault)
        # The port was this worker's before, so who has it now may leave it again: another start
        # may help, and the other workers serve meanwhile.
        return _FAILED if isinstance(fault, CannotListen) and starts > 1 else code
    return 0


def _serve_pages(settings: Settings, sockets: dict[int, Path], _: int, tie: Tie) -> int:
    for number in _ENDING:  # They show the end of the workers, and end after them.
        signal.signal(number, signal.SIG_IGN)
    try:
        asyncio.run(serve_pages(settings, sockets, tie))
    except CannotListen as fault:
        return say_why(fault)
    return 0


def _flush() -> None:
    """Writes what is buffered, so that a fork does not write it twice. Nobody may read it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def _use_few_arenas() -> None:
    """Has glibc give memory to all threads of a worker from two arenas, and not from one each.

    A worker has a dozen threads of gRPC's that seldom run at the same time.
    """
    with suppress(AttributeError):  # Another libc.
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
