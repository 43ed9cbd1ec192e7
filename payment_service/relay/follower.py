"""Follows the feed for one target, from the target's own cursor on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final, Protocol

import grpc
import structlog
from grpc import aio

from marketplace.payments.errors import refusal_of
from marketplace.payments.events import watch
from marketplace.payments.v1 import events_pb2
from payment_service.relay.cloud_events import Outgoing, outgoing
from payment_service.relay.metrics import RelayMetrics
from payment_service.relay.places import Place
from payment_service.relay.store import Store
from payment_service.relay.tasks import together

log = structlog.get_logger(__name__)

#: How many events are read ahead. More are not asked for.
_AHEAD: Final = 500
_REFUSED_SECONDS: Final = 5.0


class Target(Protocol):
    """Where events go."""

    @property
    def name(self) -> str: ...

    async def take(self, event: Outgoing, cursor: str) -> None:
        """Takes the event for certain, and then moves the cursor."""


class Follower:
    """Reads the feed and gives each event to the target, one after another."""

    def __init__(
        self, channel: aio.Channel, store: Store, target: Target, metrics: RelayMetrics, source: str
    ) -> None:
        self._channel = channel
        self._store = store
        self._target = target
        self._metrics = metrics
        self._source = source
        self._read: asyncio.Queue[events_pb2.WatchEventsResponse] = asyncio.Queue(_AHEAD)
        self._at_hand: Outgoing | None = None

    async def run(self) -> None:
        """Follows until it is cancelled. Raises StoreLost."""
        place = Place(self._target.name)
        failing = self._metrics.feed_failing.labels(self._target.name)
        failing.set(0)
        while True:
            cursor = await self._store.run(place.cursor)
            try:
                await self._follow(cursor)
            except grpc.aio.AioRpcError as error:
                if refusal_of(error).reason == "CURSOR_NOT_IN_FEED":
                    # The feed was restored: from its beginning on, without what the target has.
                    log.warning("relay_rewound", target=self._target.name)
                    await self._store.run(place.rewind)
                    continue
                failing.set(1)
                log.warning("relay_feed_refused", target=self._target.name, code=error.code().name)
                await asyncio.sleep(_REFUSED_SECONDS)

    def measure(self) -> None:
        """Sets the gauges of how far the target is behind."""
        event = self._at_hand
        age = max(0.0, time.time() - event.record_time.timestamp()) if event else 0.0
        self._metrics.lag_seconds.labels(self._target.name).set(age)
        self._metrics.lag_events.labels(self._target.name).set(
            self._read.qsize() + (event is not None)
        )

    async def _follow(self, cursor: str) -> None:
        self._read = asyncio.Queue(_AHEAD)
        try:
            await together(self._read_from(cursor), self._give())
        finally:
            self._at_hand = None

    async def _read_from(self, cursor: str) -> None:
        async with contextlib.aclosing(watch(self._channel, cursor)) as updates:  # type: ignore[type-var]
            async for update in updates:
                self._metrics.feed_failing.labels(self._target.name).set(0)
                await self._read.put(update)

    async def _give(self) -> None:
        while True:
            update = await self._read.get()
            self._at_hand = outgoing(update.event, self._source)
            await self._target.take(self._at_hand, update.cursor)
            self._at_hand = None
