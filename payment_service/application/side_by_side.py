"""Works on many items side by side, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


async def at_most(places: int, work: Callable[[S], Awaitable[T]], items: Iterable[S]) -> list[T]:
    """Does the work on all items, at most ``places`` at once. Returns the results in order."""
    free = asyncio.Semaphore(places)

    async def one(item: S) -> T:
        async with free:
            return await work(item)

    return list(await asyncio.gather(*(one(item) for item in items)))
