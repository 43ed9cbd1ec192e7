"""A circuit breaker and a bulkhead around Stripe.

When Stripe does not answer, callers should not all wait for a timeout. After ten failures in a row
calls are refused at once, and one probe a second finds out whether Stripe is ready again. The
bulkhead limits the number of concurrent calls, so that waiting for a free connection is never
mistaken for a call with an unknown outcome.
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
    """Stripe is unavailable; nothing was sent."""


class BulkheadFull(Exception):
    """Too many calls are running; nothing was sent."""


class Breaker:
    """Counts failures in a row: no answer, or an answer of 5xx. Any other answer resets it."""

    def __init__(self, connections: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = asyncio.Semaphore(connections)
        self._clock = clock
        self._failures = 0
        self._next_probe = 0.0

    @property
    def is_open(self) -> bool:
        """Returns whether a call would be refused now."""
        return self._failures >= _FAILURES_TO_OPEN and self._clock() < self._next_probe

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Admits one call. Raises :class:`CircuitOpen` or :class:`BulkheadFull`."""
        if self.is_open:
            raise CircuitOpen
        if self._failures >= _FAILURES_TO_OPEN:  # This call is the probe; the others are refused.
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
        """Records an answer of Stripe, also a refusal."""
        if self._failures >= _FAILURES_TO_OPEN:
            log.info("stripe_circuit_closed")
        self._failures = 0

    def failed(self) -> None:
        """Records that Stripe did not answer, or answered with a 5xx."""
        self._failures += 1
        if self._failures == _FAILURES_TO_OPEN:
            log.error("stripe_circuit_opened", failures=self._failures)
        if self._failures >= _FAILURES_TO_OPEN:
            self._next_probe = self._clock() + _PROBE_SECONDS
