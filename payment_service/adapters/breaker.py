"""A circuit breaker and a bulkhead around Stripe.

When Stripe does not answer, the next caller need not wait for a timeout to learn it: after some
failures in a row calls are refused at once, and one probe a second finds out when Stripe is back.
The bulkhead bounds the calls under way, so that waiting for a free connection never looks like a
call whose outcome is unknown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_FAILURES_TO_OPEN: Final = 10
_PROBE_SECONDS: Final = 1.0
_ADMISSION_SECONDS: Final = 2.0


class CircuitOpen(Exception):
    """Stripe has not answered lately; nothing was sent."""


class BulkheadFull(Exception):
    """Too many calls are under way; nothing was sent."""


class Breaker:
    """Counts failures in a row: no answer, or an answer of 5xx. Any other answer closes it."""

    def __init__(self, connections: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = asyncio.Semaphore(connections)
        self._clock = clock
        self._failures = 0
        self._next_probe = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a call would be refused now."""
        return self._failures >= _FAILURES_TO_OPEN and self._clock() < self._next_probe

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Admit one call. Raises :class:`CircuitOpen` or :class:`BulkheadFull`."""
        if self.is_open:
            raise CircuitOpen
        if self._failures >= _FAILURES_TO_OPEN:  # This call is the probe; others wait for it.
            self._next_probe = self._clock() + _PROBE_SECONDS
        try:
            async with asyncio.timeout(_ADMISSION_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise BulkheadFull from None
        try:
            yield
        finally:
            self._places.release()

    def answered(self) -> None:
        """Stripe answered, whatever it said."""
        if self._failures >= _FAILURES_TO_OPEN:
            log.info("stripe_answers_again")
        self._failures = 0

    def failed(self) -> None:
        """Stripe did not answer, or with a 5xx."""
        self._failures += 1
        if self._failures == _FAILURES_TO_OPEN:
            log.error("stripe_does_not_answer", failures=self._failures)
        if self._failures >= _FAILURES_TO_OPEN:
            self._next_probe = self._clock() + _PROBE_SECONDS
