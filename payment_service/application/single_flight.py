"""Expensive work: one at a time, and equal requests share one run."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from payment_service.domain.errors import Unavailable

T = TypeVar("T")


class SingleFlight:
    """Runs work of the same lane one after the other, and equal work once.

    A caller that asks for what is in progress gets that run's result, or its error. Otherwise eight
    impatient callers of a long run would do the same work eight times, and starve all others.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[str, Hashable], asyncio.Future[Any]] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def join(self, lane: str, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Returns the result of the run in progress with this key, or of a new one."""
        running: asyncio.Future[T] | None = self._running.get((lane, key))
        if running is not None:
            return await asyncio.shield(running)
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._running[lane, key] = outcome
        try:
            async with self._turns[lane]:
                result = await work()
        except asyncio.CancelledError:
            # Only the end of the process cancels a run.
            _fail(outcome, Unavailable("SHUTTING_DOWN", "the service is shutting down; ask again"))
            raise
        except BaseException as error:
            _fail(outcome, error)
            raise
        finally:
            del self._running[lane, key]
        outcome.set_result(result)
        return result


def _fail(outcome: asyncio.Future[Any], error: BaseException) -> None:
    outcome.set_exception(error)
    outcome.exception()  # Retrieved, so that asyncio does not log it where nobody has joined.
