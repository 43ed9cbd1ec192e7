"""Watchers of the feed, while they are cut off and replicas are killed: none misses an event."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc.aio
import psycopg2
import pytest

from marketplace.payments.channel import connect
from marketplace.payments.events import watch
from tests.reliability import proving
from tests.reliability.system import System, running_system
from tests.support.world import World, until

_EVENTS = proving.by_profile(800, 10_000)
_KILLS = proving.by_profile(2, 20)
_DISCONNECTS = proving.by_profile(6, 50)
_PAYMENTS, _WRITERS, _WATCHERS = 8, 8, 5
_CATCH_UP = 2.0
#: One transaction in ten is held open for up to so long while later ones commit.
_LATE_SECONDS = 0.3

_ADD = """
INSERT INTO events (payment_id, sequence, kind, time, body, hash)
SELECT payment_id, max(sequence) + 1, 'payment.noted', clock_timestamp(), '{}',
    sha256(random()::text::bytea)
FROM events WHERE payment_id = %s GROUP BY payment_id
"""


@dataclass
class Writer:
    """Events as a transaction records them: each under its payment's lock, some committed late.

    They are no part of their payments' chains, which the feed does not ask for.
    """

    url: str
    payments: list[str]
    chance: random.Random
    ending: threading.Event
    written: int = 0

    def run(self) -> None:
        with contextlib.closing(psycopg2.connect(self.url)) as connection:
            while not self.ending.is_set():
                with connection.cursor() as cursor:
                    payment_id = self.chance.choice(self.payments)
                    cursor.execute(
                        "SELECT FROM payments WHERE payment_id = %s FOR UPDATE", (payment_id,)
                    )
                    for _ in range(self.chance.randint(1, 3)):
                        cursor.execute(_ADD, (payment_id,))
                        self.written += 1
                    if self.chance.random() < 0.1:
                        time.sleep(self.chance.uniform(0, _LATE_SECONDS))
                connection.commit()
                time.sleep(self.chance.uniform(0, 0.1))


@dataclass
class Watcher:
    """A subscriber that keeps its cursor, with a channel of its own to both replicas."""

    channel: grpc.aio.Channel
    cursor: str = ""
    told: list[tuple[str, int]] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def cut(self) -> None:
        """End the stream in the middle, wherever it is."""
        assert self._task is not None
        if self._task.done():
            self._task.result()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        async for one in watch(self.channel, self.cursor):
            self.told.append((one.event.payment_id, one.event.sequence))
            self.cursor = one.cursor


async def _harm(system: System, watchers: list[Watcher], chance: random.Random) -> None:
    """Kill replicas in turn and cut watchers off, spread over the run."""
    each = -(-_DISCONNECTS // _KILLS)
    cut = 0
    for number in range(_KILLS):
        replica = number % 2
        await asyncio.to_thread(system.stack.services[replica].kill)
        for _ in range(min(each, _DISCONNECTS - cut)):
            watcher = chance.choice(watchers)
            await watcher.cut()
            await asyncio.sleep(chance.uniform(0, 0.2))
            watcher.begin()
            cut += 1
        await system.begin(replica)
        await asyncio.sleep(chance.uniform(0, 0.5))
        proving.progress(f"feed: {number + 1} of {_KILLS} kills, {cut} disconnects")


@pytest.mark.timeout(proving.by_profile(180, 900))
def test_no_watcher_misses_an_event() -> None:
    async def run(system: System) -> None:
        chance = random.Random(proving.SEED)
        async with system.worlds() as worlds:
            world: World = worlds[0]
            expert = await world.expert()
            payments = [(await world.escrowed(expert)).payment_id for _ in range(_PAYMENTS)]
            ending = threading.Event()
            writers = [
                Writer(world.database_url, payments, random.Random(chance.random()), ending)
                for _ in range(_WRITERS)
            ]
            channels = [connect(*system.stack.settings.grpc_addresses) for _ in range(_WATCHERS)]
            watchers = [Watcher(channel) for channel in channels]
            for watcher in watchers:
                watcher.begin()
            pool = ThreadPoolExecutor(_WRITERS)
            loop = asyncio.get_running_loop()
            writing = [loop.run_in_executor(pool, writer.run) for writer in writers]
            await _harm(system, watchers, chance)

            async def enough() -> bool:
                return sum(writer.written for writer in writers) >= _EVENTS

            await until(enough, "so many events", 120)
            ending.set()
            await asyncio.gather(*writing)
            last = time.monotonic()
            trail = set(world.sql("SELECT payment_id, sequence FROM events"))

            async def all_told() -> bool:
                return all(len(watcher.told) >= len(trail) for watcher in watchers)

            await until(all_told, f"all {len(trail)}: {[len(w.told) for w in watchers]}", 30)
            caught_up = time.monotonic() - last
            for watcher in watchers:
                await watcher.cut()
                await watcher.channel.close()
        for watcher in watchers:
            counts = Counter(watcher.told)
            assert not trail - counts.keys(), "missing"
            assert counts.total() == len(counts) == len(trail), "doubled"
            reached: Counter[str] = Counter()
            for payment_id, sequence in watcher.told:
                assert sequence == reached[payment_id] + 1, "out of its payment's order"
                reached[payment_id] = sequence
            assert watcher.told == watchers[0].told, "not the same order for everybody"
        assert caught_up <= _CATCH_UP
        proving.figure(
            "L",
            f"feed: {len(trail)} events, {_DISCONNECTS} disconnects of {_WATCHERS} watchers, "
            f"{_KILLS} SIGKILLs over 2 replicas: 0 missing, 0 doubled, all in one order; "
            f"caught up {caught_up:.2f} s after the last commit",
        )

    with running_system() as system:
        asyncio.run(run(system))
