"""The relay is killed at each of its steps: nothing is lost, and each payment's order holds.

It runs as in production, with a real NATS server and a real endpoint. A step is held open from
outside, by a lock of PostgreSQL, a server that is stopped, or an endpoint that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.support.nats_server import NatsServer
from tests.support.receiver import SECRET, Receiver, receiving
from tests.support.running import running_world
from tests.support.world import World, until

STREAM = "PAYMENTS"


@pytest.fixture
def nats_server(nats_program: Path, tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(nats_program, tmp_path / "jetstream")
    server.start()
    yield server
    server.send(signal.SIGCONT)
    server.kill()


@pytest.fixture
async def world(new_database: Callable[[], str]) -> AsyncIterator[World]:
    async with running_world(new_database()) as started:
        yield started


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as opened:
        yield opened


@dataclass
class Process:
    """A relay's process, which can be killed and started again."""

    environment: dict[str, str]
    children: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self) -> None:
        self.children.append(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "payment_service", "relay"),
                env={**os.environ, **self.environment},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        )

    async def kill(self) -> None:
        """Ends it at once, as a machine does that loses its power."""
        for child in self.children:
            if child.returncode is None:
                child.kill()
                await child.wait()

    async def stop(self) -> int:
        """Ends it in good order and returns its exit status."""
        self.children[-1].terminate()
        async with asyncio.timeout(10):
            return await self.children[-1].wait()


@pytest.fixture
async def process(
    world: World,
    relay_database: str,
    receiver: Receiver,
    nats_server: NatsServer,
    tmp_path: Path,
) -> AsyncIterator[Process]:
    endpoints, secret = tmp_path / "endpoints.json", tmp_path / "secret"
    secret.write_text(SECRET)
    endpoint = {
        "name": "mail",
        "url": receiver.url,
        "secret_files": [str(secret)],
        "networks": ["127.0.0.0/8"],
    }
    endpoints.write_text(json.dumps({"endpoints": [endpoint]}))
    started = Process(
        {
            "CORE_ADDRESS": world.address,
            "RELAY_DATABASE_URL": relay_database,
            "RELAY_NATS_URL": nats_server.url,
            "RELAY_ENDPOINTS_FILE": str(endpoints),
            "RELAY_METRICS_PORT": "0",
        }
    )
    yield started
    await started.kill()


@contextlib.contextmanager
def locked(url: str, table: str, mode: str) -> Iterator[None]:
    """Holds a lock of a table of the relay's. SHARE lets it read and keeps it from writing."""
    with contextlib.closing(psycopg2.connect(url)) as session, session.cursor() as cursor:
        cursor.execute(f"LOCK TABLE payments_relay.{table} IN {mode} MODE")
        yield


def is_waiting(url: str) -> bool:
    """Whether the relay waits for a lock."""
    with contextlib.closing(psycopg2.connect(url)) as session, session.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'payments-relay' "
            "AND wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(cursor.fetchall() != [(0,)])


def trail(world: World) -> set[tuple[str, int]]:
    return set(world.sql("SELECT payment_id, sequence FROM events"))


def places(events: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(one["data"]["payment_id"], one["data"]["sequence"]) for one in events]


async def published(server: NatsServer) -> list[dict[str, Any]]:
    """The events in the stream, each with the subject and the id that JetStream knows it by."""
    events = []
    for message in await server.messages(STREAM):
        event = json.loads(message.data)
        assert message.subject == f"payments.{event['type']}"
        assert message.headers["Nats-Msg-Id"] == event["id"]
        assert message.headers["content-type"] == "application/cloudevents+json"
        events.append(event)
    return events


async def all_out(world: World, server: NatsServer, receiver: Receiver) -> None:
    """Waits until both have everything, and checks what may not be otherwise."""

    async def probe() -> bool:
        expected = trail(world)
        return (
            set(places(receiver.accepted)) == expected
            and set(places(await published(server))) == expected
        )

    await until(probe, "every event at both targets", 40)
    stream = await published(server)
    assert len(stream) == len(trail(world)), "JetStream drops what it has"
    check_order(stream)
    check_order(receiver.came)
    for events in (stream, receiver.came):
        by_place: dict[tuple[str, int], set[str]] = {}
        for place, event in zip(places(events), events, strict=True):
            by_place.setdefault(place, set()).add(json.dumps(event, sort_keys=True))
        assert {len(found) for found in by_place.values()} == {1}, "a repeated event is the same"


def check_order(events: list[dict[str, Any]]) -> None:
    """Each payment's events are in order, if a repeated one is taken where it came first."""
    first = list(dict.fromkeys(places(events)))
    for payment in {payment_id for payment_id, _ in first}:
        sequence = [number for payment_id, number in first if payment_id == payment]
        assert sequence == sorted(sequence)


async def ready(world: World, process: Process, server: NatsServer, receiver: Receiver) -> None:
    """A relay that has caught up with one payment."""
    await process.start()
    await world.captured()
    await all_out(world, server, receiver)


async def test_events_reach_jetstream_and_a_webhook(
    world: World, process: Process, nats_server: NatsServer, receiver: Receiver
) -> None:
    await ready(world, process, nats_server, receiver)
    assert await process.stop() == 0


@pytest.mark.parametrize(
    ("table", "mode"),
    [
        pytest.param("sent", "ACCESS EXCLUSIVE", id="before it publishes"),
        pytest.param("sent", "SHARE", id="published, the cursor not moved"),
        pytest.param("cursors", "SHARE", id="published, recorded as sent, the cursor not moved"),
        pytest.param("deliveries", "ACCESS EXCLUSIVE", id="before it records the deliveries"),
    ],
)
async def test_a_relay_dies_while_it_publishes(
    world: World,
    process: Process,
    nats_server: NatsServer,
    receiver: Receiver,
    relay_database: str,
    table: str,
    mode: str,
) -> None:
    await ready(world, process, nats_server, receiver)
    with locked(relay_database, table, mode):
        await world.captured()

        async def waits() -> bool:
            return await asyncio.to_thread(is_waiting, relay_database)

        await until(waits, "the relay waits for the lock")
        await process.kill()
    await process.start()
    await all_out(world, nats_server, receiver)


async def test_a_relay_dies_before_jetstream_has_acknowledged(
    world: World, process: Process, nats_server: NatsServer, receiver: Receiver
) -> None:
    await ready(world, process, nats_server, receiver)
    nats_server.send(signal.SIGSTOP)
    await world.captured()

    async def delivered() -> bool:
        return set(places(receiver.accepted)) == trail(world)

    await until(delivered, "the webhooks, which do not wait for NATS")
    await process.kill()
    nats_server.send(signal.SIGCONT)
    await process.start()
    await all_out(world, nats_server, receiver)


@pytest.mark.parametrize("answered", [False, True], ids=["unanswered", "answered, not recorded"])
async def test_a_relay_dies_while_a_webhook_is_on_its_way(
    world: World,
    process: Process,
    nats_server: NatsServer,
    receiver: Receiver,
    relay_database: str,
    answered: bool,
) -> None:
    await ready(world, process, nats_server, receiver)
    before = len(receiver.came)
    receiver.answering.clear()
    await world.captured()

    async def came() -> bool:
        return len(receiver.came) > before

    await until(came, "a webhook that gets no answer")
    if answered:
        with locked(relay_database, "deliveries", "SHARE"):
            receiver.answering.set()

            async def waits() -> bool:
                return await asyncio.to_thread(is_waiting, relay_database)

            await until(waits, "the relay waits for the lock")
            await process.kill()
    else:
        await process.kill()
        receiver.answering.set()
    repeated = places(receiver.came)[before]
    await process.start()
    await all_out(world, nats_server, receiver)
    assert places(receiver.came).count(repeated) == 2


async def test_nats_is_down_for_a_while(
    world: World, process: Process, nats_server: NatsServer, receiver: Receiver
) -> None:
    await ready(world, process, nats_server, receiver)
    nats_server.kill()
    await world.captured()
    await world.captured()
    nats_server.start()
    await all_out(world, nats_server, receiver)


@pytest.mark.slow
async def test_a_relay_that_dies_again_and_again_loses_nothing(
    world: World, process: Process, nats_server: NatsServer, receiver: Receiver
) -> None:
    chance = random.Random(69)
    receiver.answer = lambda _: 503 if chance.random() < 0.1 else 204
    await ready(world, process, nats_server, receiver)
    expert = await world.expert()
    for _ in range(5):
        working = [asyncio.create_task(world.captured(expert)) for _ in range(4)]
        await asyncio.sleep(chance.uniform(0.1, 1.0))
        await process.kill()
        await process.start()
        await asyncio.gather(*working)
    await all_out(world, nats_server, receiver)
