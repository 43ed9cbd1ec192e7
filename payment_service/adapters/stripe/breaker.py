"""A circuit breaker and a bulkhead around Stripe.

When Stripe does not answer, callers should not all wait for a timeout. After ten failures in a row
the breaker asks Stripe for something that concerns no payment. If that fails too, calls are refused
at once, and the question is repeated once a second. A few objects that Stripe cannot show therefore
never stop the others.

The bulkhead limits the number of concurrent calls, so that waiting for a free connection is never
mistaken for a call with an unknown outcome.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
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
    """Counts failures in a row: no answer, or an answer of 5xx. Any other answer resets it.

    ``probe`` asks Stripe for something that concerns no payment, and returns whether it answered.
    """

    def __init__(
        self,
        connections: int,
        probe: Callable[[], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = asyncio.Semaphore(connections)
        self._probe = probe
        self._clock = clock
        self._failures = 0
        self._opened = False
        self._probing = False
        self._next_probe = 0.0

    @property
    def is_open(self) -> bool:
        """Returns whether a call would be refused now."""
        return self._failures >= _FAILURES_TO_OPEN and (
            self._probing or self._clock() < self._next_probe
        )

    @property
    def has_opened(self) -> bool:
        """Returns whether Stripe has answered nothing since the circuit opened."""
        return self._opened

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Admits one call. Raises :class:`CircuitOpen` or :class:`BulkheadFull`."""
        if self.is_open:
            raise CircuitOpen
        if self._failures >= _FAILURES_TO_OPEN:
            await self._find_out()
        try:
            if self._places.locked():
                async with asyncio.timeout(_ADMISSION_SECONDS):
                    await self._places.acquire()
            else:
                await self._places.acquire()  # At once, so it needs no timer.
        except TimeoutError:
            raise BulkheadFull from None
        try:
            yield
        finally:
            self._places.release()

    async def _find_out(self) -> None:
        """Raises :class:`CircuitOpen` if Stripe does not answer the probe either."""
        self._probing = True  # Other calls are refused until the probe has ended.
        try:
            answered = await self._probe()
        finally:
            self._probing = False
        if not answered:
            self._next_probe = self._clock() + _PROBE_SECONDS
            if not self._opened:
                log.error("stripe_circuit_opened", failures=self._failures)
            self._opened = True
            raise CircuitOpen
        self.answered()

    def answered(self) -> None:
        """Records an answer of Stripe, also a refusal."""
        if self._opened:
            log.info("stripe_circuit_closed")
        self._opened = False
        self._failures = 0

    def failed(self) -> None:
        """Records that Stripe did not answer, or answered with a 5xx."""
        self._failures += 1
