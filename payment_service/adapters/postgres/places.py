"""The places of a pool: one for each thread, and how many callers wait for one."""

from __future__ import annotations

import asyncio


class Places:
    """Counts what a semaphore does not tell: how many places are taken, and who waits."""

    def __init__(self, number: int) -> None:
        self._free = asyncio.Semaphore(number)
        self.number = number
        self.in_use = 0
        self.waiting = 0

    async def take(self, seconds: float) -> None:
        """Takes a place. Raises TimeoutError if there is none for so long."""
        if self._free.locked():
            self.waiting += 1
            try:
                async with asyncio.timeout(seconds):
                    await self._free.acquire()
            finally:
                self.waiting -= 1
        else:
            await self._free.acquire()  # At once.
        self.in_use += 1

    def leave(self) -> None:
        self.in_use -= 1
        self._free.release()

    def counts(self) -> dict[str, int]:
        """Returns the numbers by their state, for metrics."""
        return {"all": self.number, "in_use": self.in_use, "waiting": self.waiting}
