"""Events that come while others are being stored are stored together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

import pytest

from payment_service.application.gathered_events import GatheredEvents
from payment_service.domain.errors import Unavailable, database_unavailable
from payment_service.domain.ports.records import StoredEvents, WebhookEvent

Refuses: TypeAlias = Callable[[Sequence[str]], Exception | None]


def event(name: str) -> WebhookEvent:
    return WebhookEvent(
        event_id=f"evt_{name}",
        endpoint="platform",
        type="charge.captured",
        object_id="ch_1",
        account_id="",
        payment_intent_id="pi_1",
        payment_ref="pay_1",
        payload_sha256=b"",
        create_time=datetime(2026, 11, 30, tzinfo=UTC),
        state="WAITING",
        verdict="",
    )


class Storage:
    """Stores events slowly, each once, and refuses some."""

    def __init__(
        self, refuses: Callable[[Sequence[str]], Exception | None] = lambda _: None
    ) -> None:
        self.batches: list[list[str]] = []
        self.stored: set[str] = set()
        self._refuses = refuses

    async def __call__(self, events: Sequence[WebhookEvent]) -> StoredEvents:
        ids = [one.event_id for one in events]
        self.batches.append(ids)
        await asyncio.sleep(0.01)
        if error := self._refuses(ids):
            raise error
        new = frozenset(ids) - self.stored
        self.stored |= new
        return StoredEvents(new)


async def test_what_comes_meanwhile_is_stored_together() -> None:
    gathered, storage = GatheredEvents(), Storage()
    names = ["a", "b", "c", "b"]
    told = [asyncio.create_task(gathered.store(event(name), storage)) for name in names]
    # The second `b` is the same event on another endpoint: only one of them is new.
    assert await asyncio.gather(*told) == [True, True, True, False]
    assert storage.batches == [["evt_a", "evt_b", "evt_c", "evt_b"]]
    assert await gathered.store(event("c"), storage) is False
    assert len(storage.batches) == 2


async def test_what_comes_during_a_batch_is_the_next_one() -> None:
    gathered, storage = GatheredEvents(), Storage()
    first = asyncio.create_task(gathered.store(event("a"), storage))
    await asyncio.sleep(0.005)
    assert storage.batches == [["evt_a"]]
    others = [asyncio.create_task(gathered.store(event(name), storage)) for name in "bc"]
    assert await asyncio.gather(first, *others) == [True] * 3
    assert storage.batches == [["evt_a"], ["evt_b", "evt_c"]]


async def test_an_event_that_cannot_be_stored_stops_no_other_one() -> None:
    def refuses(ids: Sequence[str]) -> Exception | None:
        return ValueError("odd") if "evt_b" in ids else None

    gathered, storage = GatheredEvents(), Storage(refuses)
    told = [asyncio.create_task(gathered.store(event(name), storage)) for name in "abc"]
    first, odd, last = await asyncio.gather(*told, return_exceptions=True)
    assert (first, last) == (True, True)
    assert isinstance(odd, ValueError)
    assert storage.stored == {"evt_a", "evt_c"}


async def test_an_outage_is_told_to_all_and_the_next_event_tries_again() -> None:
    outages = [database_unavailable()]
    gathered, storage = GatheredEvents(), Storage(lambda _: outages.pop() if outages else None)
    told = [asyncio.create_task(gathered.store(event(name), storage)) for name in "ab"]
    for one in told:
        with pytest.raises(Unavailable):
            await one
    assert storage.batches == [["evt_a", "evt_b"]]
    assert await gathered.store(event("a"), storage) is True


async def test_a_caller_who_has_gone_delays_nobody() -> None:
    gathered, storage = GatheredEvents(), Storage()
    gone = asyncio.create_task(gathered.store(event("a"), storage))
    other = asyncio.create_task(gathered.store(event("b"), storage))
    await asyncio.sleep(0.005)
    gone.cancel()
    assert await other is True
    assert storage.stored == {"evt_a", "evt_b"}
