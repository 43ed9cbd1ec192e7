"""A phase waits for PostgreSQL on the event loop: what goes on meanwhile, and what may end it."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import psycopg2
import pytest

from payment_service.adapters.postgres import connections
from payment_service.adapters.postgres.engine import SqlDatabase
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.adapters.postgres.waiting import (
    WaitingConnection,
    in_thread,
    pause,
    run_on_loop,
)
from payment_service.domain.errors import Unavailable
from tests.support.phases import wait_in_phase
from tests.support.world import until

CALL: ContextVar[str] = ContextVar("CALL", default="")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[SqlDatabase]:
    opened = SqlDatabase(database_url, write_connections=2, read_connections=1)
    yield opened
    await opened.close()


def _sleeps(tx: SqlTransaction, seconds: float = 0.3) -> float:
    tx._one("SELECT pg_sleep(:seconds)", seconds=seconds)
    return seconds


def _jobs(tx: SqlTransaction) -> list[str]:
    return [row["name"] for row in tx._all("SELECT name FROM jobs WHERE name LIKE 'test%'")]


def _add_job(tx: SqlTransaction, name: str) -> None:
    tx._do("INSERT INTO jobs (name, next_time) VALUES (:name, now())", name=name)


async def test_the_event_loop_and_other_phases_go_on_while_a_phase_waits(
    database: SqlDatabase,
) -> None:
    for _ in range(2):
        await asyncio.gather(*(database.transact(_sleeps, 0.01) for _ in range(2)))
    turns = 0
    began = time.monotonic()
    both = asyncio.gather(*(database.transact(_sleeps) for _ in range(2)))
    while not both.done():
        turns += 1
        await asyncio.sleep(0.005)
    assert await both == [0.3, 0.3]
    assert time.monotonic() - began < 0.6
    assert turns > 10


async def test_each_phase_keeps_the_context_of_its_call(database: SqlDatabase) -> None:
    def named(tx: SqlTransaction) -> list[str]:
        seen = [CALL.get()]
        for _ in range(3):
            _sleeps(tx, 0.01)
            seen.append(CALL.get())
        CALL.set("changed by the phase")
        return seen

    async def call(name: str) -> list[str]:
        CALL.set(name)
        seen = await database.transact(named)
        return [*seen, CALL.get()]

    tasks = [asyncio.create_task(call(name)) for name in "abcd"]
    assert await asyncio.gather(*tasks) == [[name] * 5 for name in "abcd"]
    assert CALL.get() == ""


async def test_a_phase_whose_caller_was_cancelled_commits_and_then_leaves_its_place(
    database: SqlDatabase,
) -> None:
    may_end = asyncio.Event()

    def slow(tx: SqlTransaction) -> None:
        _add_job(tx, "test cancelled")
        wait_in_phase(may_end.is_set, "the test lets the phase end")

    call = asyncio.create_task(database.transact(slow))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert database.places()["write", "in_use"] == 1
    assert await database.transact(_jobs) == []
    may_end.set()

    async def left() -> bool:
        return database.places()["write", "in_use"] == 0

    await until(left, "the phase leaves its place")
    assert await database.transact(_jobs) == ["test cancelled"]


async def test_a_statement_that_does_not_fit_into_the_socket_is_sent_in_parts(
    database: SqlDatabase,
) -> None:
    def large(tx: SqlTransaction) -> int:
        found: int = tx._one("SELECT length(:text) AS length", text="x" * 20_000_000)["length"]
        return found

    for _ in range(3):
        assert await database.transact(large) == 20_000_000
        assert await database.transact(_jobs) == []


async def test_an_error_is_raised_where_the_call_waits_and_the_next_phase_is_unharmed(
    database: SqlDatabase,
) -> None:
    def wrong(tx: SqlTransaction) -> None:
        _add_job(tx, "test wrong")
        tx._one("SELECT 1 / 0")

    for _ in range(3):
        with pytest.raises(psycopg2.errors.DivisionByZero):
            await database.transact(wrong)
        assert await database.transact(_jobs) == []


def test_a_loop_that_ends_rolls_back_the_phase_that_waits(database_url: str) -> None:
    """As a process that ends: nothing is committed, nothing hangs, and no session is left."""

    async def leave() -> None:
        database = SqlDatabase(database_url, write_connections=1, read_connections=1)

        def waits(tx: SqlTransaction) -> None:
            _add_job(tx, "test left")
            _sleeps(tx, 30)

        call = asyncio.create_task(database.transact(waits))
        await asyncio.sleep(0.3)
        call.cancel()

    asyncio.run(leave())
    gc.collect()

    async def look() -> tuple[Any, ...]:
        database = SqlDatabase(database_url, write_connections=1, read_connections=1)
        try:
            return tuple(await database.transact(_jobs))
        finally:
            await database.close()

    assert asyncio.run(look()) == ()


async def test_pauses_and_threads_let_the_loop_go_on_and_pass_errors_on() -> None:
    def work() -> str:
        pause(0.05)
        in_thread(threads, lambda: time.sleep(0.05))
        with pytest.raises(ZeroDivisionError):
            in_thread(threads, lambda: 1 // 0)
        return "done"

    threads = ThreadPoolExecutor(1)

    turns = 0
    future = run_on_loop(work)
    while not future.done():
        turns += 1
        await asyncio.sleep(0.002)
    assert await future == "done"
    assert turns > 5
    assert work() == "done"  # Off the loop, they block.


async def test_a_connection_that_was_left_while_it_waited_is_not_used_again(
    database: SqlDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await database.read(lambda reader: reader.moment())).tzinfo

    def fails(self: WaitingConnection, until: float | None = None) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(WaitingConnection, "wait", fails)
        with pytest.raises(OSError):  # noqa: PT011 - as it was raised
            await database.read(lambda reader: reader.moment())
    assert (await database.read(lambda reader: reader.moment())).tzinfo


async def test_a_phase_that_raises_stop_iteration_does_not_hang_its_caller(
    database: SqlDatabase,
) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(database.transact(lambda tx: next(iter(()))), 5)


async def test_a_database_may_be_closed_twice(database_url: str) -> None:
    database = SqlDatabase(database_url, write_connections=2, read_connections=1)
    assert await database.transact(_jobs) == []
    for _ in range(2):
        await asyncio.wait_for(database.close(), 5)


async def test_a_silent_server_holds_up_no_look_up_of_a_name(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_CONNECT_SECONDS", 1.0)
    url = f"postgresql://payments@127.0.0.1:{silent_port}/payments"
    database = SqlDatabase(url, write_connections=12, read_connections=4)
    calls = [asyncio.create_task(database.transact(_jobs)) for _ in range(12)]
    calls += [asyncio.create_task(database.read(lambda _: [])) for _ in range(4)]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await asyncio.to_thread(lambda: None)
    assert time.monotonic() - began < 0.5
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in done} == {Unavailable}
    await database.close()


@pytest.fixture
def silent_port() -> Any:
    """A port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_a_server_that_does_not_answer_does_not_hide_the_next_one(
    database_url: str, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_CONNECT_SECONDS", 0.3)
    head, _, tail = database_url.rpartition("@")
    host_and_port, _, name = tail.partition("/")
    both = f"{head}@127.0.0.1:{silent_port},{host_and_port}/{name}"
    database = SqlDatabase(both, write_connections=1, read_connections=1)
    try:
        assert await database.transact(_jobs) == []
        assert (await database.read(lambda reader: reader.moment())).tzinfo
    finally:
        await database.close()
    alone = SqlDatabase(
        f"{head}@127.0.0.1:{silent_port}/{name}", write_connections=1, read_connections=1
    )
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await alone.transact(_jobs)
    assert time.monotonic() - began < 5
    await alone.close()
