"""The feed of all payments' events: nothing lost, nothing twice, each payment's in its order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg2
import pytest
from grpc import aio

from marketplace.payments.channel import connect
from marketplace.payments.events import watch
from marketplace.payments.v1 import events_pb2
from payment_service.adapters.postgres import feed as feed_sql
from payment_service.application import watch_events
from payment_service.domain.ports.records import FeedCursor
from payment_service.rpc import events as servicer
from payment_service.rpc.pagination import cursor_of
from payment_service.server import OPTIONS
from tests.integration.conftest import StartWorld
from tests.support import service
from tests.support.errors import Refused, refusal
from tests.support.running import replica
from tests.support.world import World, until

FeedEvent = events_pb2.WatchEventsResponse


def stream(world: World, cursor: str = "") -> Any:
    return world.events.WatchEvents(events_pb2.WatchEventsRequest(after_cursor=cursor))


async def take(call: Any, count: int, seconds: float = 10) -> list[FeedEvent]:
    """The next so many events of a stream."""
    async with asyncio.timeout(seconds):
        return [await call.read() for _ in range(count)]


async def end_of(call: Any, seconds: float = 10) -> Refused:
    """Read on to the error with which a stream ends."""

    async def drain() -> None:
        while await call.read() is not aio.EOF:
            pass

    async with asyncio.timeout(seconds):
        return await refusal(drain())


def trail(world: World) -> set[tuple[str, int]]:
    return set(world.sql("SELECT payment_id, sequence FROM events"))


def check(world: World, received: list[FeedEvent]) -> None:
    """All events, each once, each payment's in order."""
    found = [(one.event.payment_id, one.event.sequence) for one in received]
    assert len(found) == len(set(found))
    assert set(found) == trail(world)
    orders: dict[str, list[int]] = defaultdict(list)
    for payment_id, sequence in found:
        orders[payment_id].append(sequence)
    assert all(order == sorted(order) for order in orders.values())


async def all_received(world: World) -> list[FeedEvent]:
    """What the feed has when nothing waits for its place any more."""

    async def probe() -> bool:
        return world.sql("SELECT count(*) FROM feed_pending") == [(0,)]

    await until(probe, "nothing pending")
    [(count,)] = world.sql("SELECT count(*) FROM feed")
    call = stream(world)
    received = await take(call, count)
    call.cancel()
    return received


@contextlib.contextmanager
def transaction(world: World) -> Iterator[Any]:
    """A transaction of somebody else's, committed at the end."""
    with contextlib.closing(psycopg2.connect(world.database_url)) as connection:
        with connection.cursor() as cursor:
            yield cursor
        connection.commit()


def add_events(cursor: Any, payment_id: str, count: int = 1, kind: str = "payment.noted") -> None:
    """Events as any transaction records them; no part of a chain, for the feed asks for none."""
    cursor.execute(
        "INSERT INTO events (payment_id, sequence, kind, time, body, hash) "
        "SELECT payment_id, last + n, %s, clock_timestamp(), '{}', sha256((last + n)::text::bytea) "
        "FROM (SELECT payment_id, max(sequence) AS last FROM events WHERE payment_id = %s "
        "GROUP BY payment_id) AS before, generate_series(1, %s) AS n ORDER BY n",
        (kind, payment_id, count),
    )


# ---- what comes ----


async def test_every_event_comes_once_and_in_order(world: World) -> None:
    expert = await world.expert()
    call = stream(world)
    await asyncio.gather(*(world.captured(expert) for _ in range(6)))
    await world.settle_down()
    check(world, await take(call, len(trail(world))))
    shown = (await take(stream(world), 1))[0].event
    listed = await world.events.ListPaymentEvents(
        events_pb2.ListPaymentEventsRequest(payment_id=shown.payment_id)
    )
    assert listed.events[0] == shown


async def test_an_event_comes_without_being_polled_for(start_world: StartWorld) -> None:
    world = await start_world(policy={"job_interval": 3600.0})
    payment = await world.escrowed()
    await world.settle_down()
    call = stream(world)
    await take(call, len(trail(world)))
    reading = asyncio.create_task(take(call, 1))
    await world.capture(payment.payment_id)
    [received] = await reading
    assert received.event.kind == "payment.capture_started"


async def test_a_late_commit_is_delivered(world: World) -> None:
    one, other = await world.escrowed(), await world.escrowed()
    await world.settle_down()
    call = stream(world)
    await take(call, len(trail(world)))
    with transaction(world) as cursor:
        add_events(cursor, one.payment_id)
        with transaction(world) as second:
            add_events(second, other.payment_id)
        [early] = await take(call, 1)
        assert early.event.payment_id == other.payment_id
        await asyncio.sleep(1.2)  # A poll, too, must not go past what is still open.
    [late] = await take(call, 1)
    assert late.event.payment_id == one.payment_id
    call.cancel()
    check(world, await all_received(world))


async def test_a_watcher_continues_at_another_replica_and_after_a_restart(world: World) -> None:
    payment = await world.escrowed()
    await world.settle_down()
    call = stream(world)
    seen = await take(call, 2)
    async with replica(world) as other:
        moved = stream(other, seen[-1].cursor)
        seen += await take(moved, len(trail(world)) - len(seen))
    assert world.service is not None
    await world.service.restart()
    with transaction(world) as cursor:
        add_events(cursor, payment.payment_id, 3)
    seen += await take(stream(world, seen[-1].cursor), 3)
    check(world, seen)


async def test_an_event_without_a_notification_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other replica gives the positions, and its NOTIFY says nothing to this one."""
    payment = await world.escrowed()
    await world.settle_down()
    call = stream(world)
    await take(call, len(trail(world)))
    monkeypatch.setattr(feed_sql, "CHANNEL", "elsewhere")
    with transaction(world) as cursor:
        add_events(cursor, payment.payment_id)
    assert (await take(call, 1, 3))[0].event.kind == "payment.noted"


async def test_the_listener_comes_back(start_world: StartWorld) -> None:
    world = await start_world()
    assert world.service is not None
    await world.escrowed()
    heard: list[int] = []
    task = asyncio.create_task(world.service.app.database.listen(heard.append, lambda: None))
    ended: set[tuple[int]] = set()

    def listeners() -> set[tuple[int]]:
        """The backends that have said LISTEN by now and are not ended yet."""
        found = world.sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'payment_service feed' "
            "AND datname = current_database() AND state = 'idle' AND starts_with(query, 'LISTEN ')"
        )
        return set(found) - ended

    async def both_listen() -> bool:
        return len(listeners()) == 2  # The service's own, and the test's.

    for number in (10_001, 10_002, 10_003):
        await until(both_listen, "both listen")
        world.sql(f"SELECT pg_notify('{feed_sql.CHANNEL}', '{number}')")

        async def came(number: int = number) -> bool:
            return number in heard

        await until(came, "the announcement")
        for one in listeners():
            ended.add(one)
            world.sql("SELECT pg_terminate_backend(%s)", *one)
    task.cancel()


# ---- what is refused ----


@pytest.mark.parametrize("cursor", ["x", "!!", "ü" * 20, "AAAA", "A" * 100_000, "A" * 22])
async def test_a_cursor_that_is_none_is_refused(world: World, cursor: str) -> None:
    refused = await end_of(stream(world, cursor))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert list(refused.fields) == ["after_cursor"]


async def test_a_cursor_of_another_feed_is_refused(world: World) -> None:
    """Beyond the head, and at a place where another event is now."""
    await world.escrowed()
    [first] = await take(stream(world), 1)
    head = len(await all_received(world))
    for mark in (FeedCursor(head + 1000, first.event.hash[:8]), FeedCursor(1, b"elsewise")):
        refused = await end_of(stream(world, cursor_of(mark)))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "CURSOR_NOT_IN_FEED")
        assert refused.facts["position"] == str(mark.position)
        assert int(refused.facts["head"]) >= head
    assert cursor_of(FeedCursor(1, first.event.hash[:8])) == first.cursor


async def test_bytes_that_are_no_request_are_refused(world: World) -> None:
    method: Any = world.channel.unary_stream("/marketplace.payments.v1.EventService/WatchEvents")
    refused = await end_of(method(b"\xff\xff"))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")


async def test_a_fault_in_the_middle_is_an_error_like_any(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.escrowed()
    await all_received(world)

    async def broken(app: Any, after: FeedCursor, of_user: str) -> AsyncIterator[Any]:
        async for batch in watch_events.watch_events(app, after, of_user):
            yield batch
            raise RuntimeError("a text from inside")

    monkeypatch.setattr(servicer, "watch_events", broken)
    call = stream(world)
    await take(call, 1)
    refused = await end_of(call)
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "UNEXPECTED")
    assert "unexpected" in refused.sentence
    assert "a text" not in refused.sentence


async def test_no_caller_watches_by_more_streams_than_its_share(start_world: StartWorld) -> None:
    world = await start_world(event_watchers=3)
    await world.escrowed()
    calls = [stream(world), stream(world)]
    for call in calls:
        await take(call, 1)
    refused = await end_of(stream(world))
    assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    calls[0].cancel()

    async def probe() -> bool:
        try:
            return bool(await take(stream(world), 1))
        except aio.AioRpcError:
            return False

    await until(probe, "the place that was left")


# ---- slow readers and the end ----


async def test_a_slow_reader_delays_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the buffers take lies ready; the service reads no more of it than is taken."""
    payment = await world.escrowed()
    with transaction(world) as cursor:
        add_events(cursor, payment.payment_id, 6000, kind="payment." + "x" * 2000)
    total = len(trail(world))
    reads = 0
    read = watch_events._batch

    def counted(reader: Any, position: int, of_user: str) -> Any:
        nonlocal reads
        reads += 1
        return read(reader, position, of_user)

    monkeypatch.setattr(watch_events, "_batch", counted)
    slow = stream(world)
    await take(slow, 1)
    before = -1
    while before != reads:  # Until the buffers between the two are full: some megabytes.
        before = reads
        await asyncio.sleep(1)
    assert reads < total // 150  # Of a hundred each.
    assert (await world.get(payment.payment_id)).payment_id == payment.payment_id
    check(world, await take(stream(world), total, 30))
    assert len(await take(slow, total - 1, 30)) == total - 1


async def test_streams_end_at_once_when_the_service_does(world: World) -> None:
    """Waiting watchers end; one that is not read delays the end only for its grace period."""
    payment = await world.escrowed()
    with transaction(world) as cursor:
        add_events(cursor, payment.payment_id, 3000, kind="payment." + "x" * 2000)
    await all_received(world)
    [(head,)] = world.sql("SELECT max(position) FROM feed")
    last = world.sql(
        "SELECT hash FROM feed JOIN events USING (payment_id, sequence) WHERE position = %s", head
    )[0][0]
    idle = [stream(world, cursor_of(FeedCursor(head, bytes(last)[:8]))) for _ in range(3)]
    slow = stream(world)
    await take(slow, 1)
    await asyncio.sleep(0.5)
    assert world.service is not None
    began = time.monotonic()
    stopping = asyncio.create_task(world.service.stop())
    for call in idle:
        refused = await end_of(call, 2)
        assert (refused.code, refused.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    await stopping
    assert time.monotonic() - began < 7  # What lies unread in a buffer is given its grace of 5.


# ---- the client's helper ----


async def test_the_client_continues_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over restarts, and over connections that the server ends for their age."""
    short = (
        ("grpc.max_connection_age_ms", 300),
        ("grpc.max_connection_age_grace_ms", 100),
    )
    monkeypatch.setattr(service, "OPTIONS", (*OPTIONS, *short))
    assert world.service is not None
    payment = await world.escrowed()
    await world.settle_down()
    await world.service.restart()
    received: list[FeedEvent] = []

    async def watching(channel: aio.Channel) -> None:
        async for one in watch(channel):
            received.append(one)  # noqa: PERF401 - it never ends

    async with connect(world.address) as channel:
        task = asyncio.create_task(watching(channel))
        for _ in range(6):
            with transaction(world) as cursor:
                add_events(cursor, payment.payment_id, 20)
            await asyncio.sleep(0.4)
        await world.service.restart()
        with transaction(world) as cursor:
            add_events(cursor, payment.payment_id, 20)

        async def probe() -> bool:
            assert not task.done(), task.exception()
            return len(received) >= len(trail(world))

        await until(probe, "everything")
        task.cancel()
    check(world, received)


async def test_the_client_raises_what_does_not_pass(world: World) -> None:
    async with connect(world.address) as channel:
        refused = await refusal(anext(watch(channel, "nonsense")))
    assert refused.reason == "INVALID_FIELD"


# ---- the tables ----


async def test_three_sequencers_race_and_every_version_has_one_place(world: World) -> None:
    payments = [await world.escrowed() for _ in range(4)]
    async with replica(world), replica(world):

        def write(payment_id: str) -> None:
            with transaction(world) as cursor:
                for _ in range(40):
                    add_events(cursor, payment_id)
                    cursor.connection.commit()

        await asyncio.gather(*(asyncio.to_thread(write, one.payment_id) for one in payments))
        check(world, await all_received(world))
    assert world.sql("SELECT max(position) = count(*) FROM feed") == [(True,)]


async def test_a_gap_or_disorder_in_the_feed_is_found(
    world: World, as_superuser: Callable[..., int]
) -> None:
    payment = await world.captured()
    await all_received(world)
    assert world.service is not None

    async def found() -> set[str]:
        database = world.service.app.database  # type: ignore[union-attr]
        [(since,)] = world.sql("SELECT now() - interval '1 day'")
        violations = await database.read(lambda reader: reader.violations(since))
        return {
            kind.invariant_name for kind, ids in violations.items() if payment.payment_id in ids
        }

    assert await found() == set()
    as_superuser(world, "UPDATE feed SET sequence = 1000 - sequence")
    assert "each_event_is_in_feed" in await found()
    as_superuser(world, "UPDATE feed SET sequence = 1000 - sequence, position = 1000 - position")
    assert await found() == {"feed_keeps_event_order"}


async def test_what_is_committed_in_a_moment_gets_its_positions_together(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy={"feed_gathering": 1.0})
    expert = await world.expert()
    for _ in range(12):
        await world.initiate(expert)

    async def probe() -> bool | None:
        return world.sql("SELECT count(*) FROM feed") == [(24,)] or None

    await until(probe, "all positions")
    # The first commit gets its position at once, and what comes in the pause after it together.
    assert world.sql("SELECT count(DISTINCT xmin::text) <= 4 FROM feed") == [(True,)]
