"""Statements that a connection sends again and again, and those that cannot be prepared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from payment_service.adapters.postgres.connections import Connection, connect
from payment_service.adapters.postgres.prepared import driver_text
from payment_service.adapters.postgres.statements import Statements


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with contextlib.closing(connect(database_url)) as connection:
        yield connection


def ask(connection: Connection, sql: str, times: int = 4, **values: Any) -> list[Any]:
    """Runs a query several times, as phases do, and returns the answers."""
    found = []
    for _ in range(times):
        found.append(Statements(connection)._one(sql, **values)["found"])
        connection.prepare()
    return found


def prepared(connection: Connection) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements")
        ((count,),) = cursor.fetchall()
        return int(count)


def test_a_name_of_a_value_is_no_cast() -> None:
    assert driver_text("SELECT :a::text, now()::date") == ("SELECT :a::text, now()::date", ())
    assert driver_text("SELECT CAST(:a AS text), 5 % :b2") == (
        "SELECT CAST(%(a)s AS text), 5 %% %(b2)s",
        ("a", "b2"),
    )


@pytest.mark.parametrize(
    "value",
    [
        *(1, 2**40, -1, True, False, 0.5, "it's 50%", b"\x00'", None),
        *(timedelta(days=3, seconds=1), datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
        *(["a", "b'"], [], [1, 2**40]),
    ],
)
def test_a_value_arrives_the_same_prepared_or_not(connection: Connection, value: object) -> None:
    sql = "SELECT to_jsonb(:value) AS found" if value != [] else "SELECT :value = '{}' AS found"
    if isinstance(value, str) or value is None:
        sql = "SELECT CAST(:value AS text) AS found"
    first, *others = ask(connection, sql, value=value)
    assert others == [first] * 3
    assert prepared(connection) == 1


def test_a_statement_without_values_is_prepared_too(connection: Connection) -> None:
    assert ask(connection, "SELECT 5 % 3 AS found, 'a%' AS text") == [2] * 4
    assert prepared(connection) == 1


def test_what_cannot_be_prepared_runs_as_it_is(connection: Connection) -> None:
    # PostgreSQL cannot tell the type of the value before it has it.
    assert ask(connection, "SELECT pg_typeof(:value)::text AS found", value="x") == ["unknown"] * 4
    assert prepared(connection) == 0


def test_nothing_is_prepared_behind_a_pooler(database_url: str) -> None:
    with contextlib.closing(connect(database_url, limits=False)) as connection:
        assert ask(connection, "SELECT CAST(:value AS text) AS found", value="x") == ["x"] * 4
        assert prepared(connection) == 0
