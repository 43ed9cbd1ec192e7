"""One worker: its place among the others, and its tie to the parent."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: How often a process says that its event loop runs, and the parent that it does.
BEAT_SECONDS: Final = 1.0
#: The exit code of a process that cannot start and has said why: no restart would help.
CANNOT_START: Final = 2
_BYTES: Final = 4096
_BEAT: Final = b"."


class Tie:
    """One end of the socket between the parent and a process of its. Each end beats.

    The kernel closes the other end when its process dies, however that happens.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def beat(self) -> None:
        """Says that this process runs. A full buffer or a closed end is not its concern."""
        with suppress(OSError):
            self._end.send(_BEAT)

    def heard(self) -> bool:
        """Takes the beats that have come. Returns False if the other end is closed."""
        try:
            return bool(self._end.recv(_BYTES))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        self._end.close()

    async def keep(self, on_end: Callable[[], None], on_beat: Callable[[], None]) -> None:
        """Beats until it is cancelled. Calls ``on_end`` once the parent has ended."""
        loop = asyncio.get_running_loop()

        def hear() -> None:
            if self.heard():
                on_beat()
                return
            loop.remove_reader(self)
            on_end()

        loop.add_reader(self, hear)
        try:
            while True:
                self.beat()
                await asyncio.sleep(BEAT_SECONDS)
        finally:
            loop.remove_reader(self)


@dataclass(frozen=True, slots=True)
class Worker:
    """What makes a process a worker, and not a replica of its own."""

    number: int
    #: How many processes have had this number, this one included.
    starts: int
    #: The Unix socket on which it serves its metrics page to the parent's.
    socket_path: Path
    tie: Tie

    async def keep_tie(self, stop: asyncio.Event) -> None:
        """Tells the parent that the event loop runs, and ends the worker if the parent dies."""
        await self.tie.keep(stop.set, lambda: None)


def say_why(fault: Exception) -> int:
    """Prints why a process cannot start. Returns its exit code."""
    print(f"payment_service cannot start:\n{fault}", file=sys.stderr, flush=True)  # noqa: T201
    return CANNOT_START
