"""The places of a pool: each holds one connection, and callers queue for a place."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from payment_service.adapters.postgres.connections import Place


class Places:
    """Gives places to phases, and counts how many are taken and how many callers wait."""

    def __init__(self, number: int, url: str, *, limits: bool) -> None:
        self.number = number
        self.waiting = 0
        #: They open connections. A server that does not answer must hold up nothing else.
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="connect")
        self._all = [Place(url, self._threads, limits=limits) for _ in range(number)]
        #: The last one that was left is taken next, so the others stay idle.
        self._free = list(reversed(self._all))
        self._turns = asyncio.Semaphore(number)

    async def take(self, seconds: float) -> Place:
        """Takes a place. Raises TimeoutError if there is none for so long."""
        if self._turns.locked():
            self.waiting += 1
            try:
                async with asyncio.timeout(seconds):
                    await self._turns.acquire()
            finally:
                self.waiting -= 1
        else:
            await self._turns.acquire()  # At once.
        return self._free.pop()

    def leave(self, place: Place) -> None:
        self._free.append(place)
        self._turns.release()

    def counts(self) -> dict[str, int]:
        """Returns the numbers by their state, for metrics."""
        in_use = self.number - len(self._free)
        return {"all": self.number, "in_use": in_use, "waiting": self.waiting}

    async def close(self) -> None:
        """Waits until every place was left, then closes the connections. No place is free again."""
        while self._all:
            await self._turns.acquire()
            self._free.pop().drop()
            self._all.pop()
        self._threads.shutdown(wait=False)
