"""Stores webhook events: those that come while others are being stored are stored together.

Storing five events costs the database hardly more than storing one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from payment_service.domain.errors import Refusal
from payment_service.domain.ports.records import StoredEvents, WebhookEvent

#: Stores events, in one transaction.
Store: TypeAlias = Callable[[Sequence[WebhookEvent]], Awaitable[StoredEvents]]

_MOST: Final = 100


class GatheredEvents:
    """The events that wait to be stored in this process."""

    def __init__(self) -> None:
        self._waiting: list[tuple[WebhookEvent, asyncio.Future[bool]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def store(self, event: WebhookEvent, store: Store) -> bool:
        """Returns whether the event is new, once it is stored. Raises what ``store`` raises."""
        stored: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, stored))
        if self._storing is None:
            self._storing = asyncio.create_task(self._store_all(store))
        return await stored

    async def _store_all(self, store: Store) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                await _store_batch(batch, store)
        finally:
            self._storing = None


async def _store_batch(
    batch: Sequence[tuple[WebhookEvent, asyncio.Future[bool]]], store: Store
) -> None:
    """Stores the events together; each by itself if that fails for another reason than an outage.

    So an event that cannot be stored stops no other one.
    """
    try:
        found = await store([event for event, _ in batch])
    except Exception as error:  # noqa: BLE001 - those who wait for it get it
        if len(batch) > 1 and not isinstance(error, Refusal):
            for one in batch:
                await _store_batch([one], store)
            return
        for _, stored in batch:
            if not stored.done():
                stored.set_exception(error)
        return
    new_ids = set(found.new_ids)
    for event, stored in batch:
        if not stored.done():
            stored.set_result(event.event_id in new_ids)
        new_ids.discard(event.event_id)
