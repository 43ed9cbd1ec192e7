"""What one process knows of the feed: how far it reaches, who watches, and who is to be woken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from payment_service.domain.errors import Unavailable


class Feed:
    """Tells when to read the database again. The truth is there, never here."""

    def __init__(self) -> None:
        #: Set when a transaction of this process recorded something: the sequencer's wake-up.
        self.recorded = asyncio.Event()
        #: Set when the process is to end: watchers leave at once.
        self.ending = asyncio.Event()
        self.watchers = 0
        self._head = 0
        self._moved = asyncio.Event()

    def reached(self, head: int) -> None:
        """The feed is known to reach this position. Said again, or late, it changes nothing."""
        if head > self._head:
            self._head = head
            self._moved.set()
            self._moved = asyncio.Event()

    async def beyond(self, position: int) -> None:
        """Wait until the feed is known to reach beyond a position."""
        while self._head <= position:
            await self._moved.wait()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Counts a watcher. Raises :class:`Unavailable` once the process is to end."""
        self.check()
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1

    def check(self) -> None:
        """Raises :class:`Unavailable` once the process is to end."""
        if self.ending.is_set():
            raise Unavailable(
                "SHUTTING_DOWN", "the service is shutting down; watch on from the last cursor"
            )
