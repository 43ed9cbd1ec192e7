"""A replica whose database has another schema than it expects wants no calls, and says why."""

import json
import os
import queue
import re
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import grpc
import psycopg2
import pytest

from dev.ports import first_free_port
from dev.postgres import EmbeddedPostgres, owner_url
from payment_service.adapters.postgres.schema import EXPECTED_REVISION
from tests.acceptance.conftest import new_name, until
from tests.acceptance.health import NOT_SERVING, SERVING, check
from tests.conftest import migrate
from tests.support.nursery import Nursery

#: Whether it does its work, and whether it wants calls: callers' channels ask the latter.
NAMES = ("", "marketplace.payments.v1")


@contextmanager
def serving(
    nursery: Nursery, database_url: str, metrics_port: int = 0
) -> Iterator[tuple[str, "queue.Queue[dict[str, Any]]"]]:
    """A replica's address, and the lines of its log."""
    port = first_free_port(1)
    environment = {
        **os.environ,
        **{"DATABASE_URL": database_url, "GRPC_PORT": str(port), "METRICS_PORT": str(metrics_port)},
    }
    lines: queue.Queue[dict[str, Any]] = queue.Queue()
    process = nursery.serve(environment)

    def read() -> None:
        with process.stdout as output:
            for line in output:
                if line.startswith(b"{"):
                    lines.put(json.loads(line))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield f"127.0.0.1:{port}", lines
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        reader.join(10)


def health(address: str) -> list[int]:
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(20)
        return [check(channel, name).status for name in NAMES]


def next_line(lines: "queue.Queue[dict[str, Any]]", event: str) -> dict[str, Any]:
    while True:
        line = lines.get(timeout=20)
        if line["event"] == event:
            return line


def as_owner(database_url: str, statement: str, *values: str) -> None:
    url = owner_url(database_url)
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement, values)
        connection.commit()


@pytest.fixture
def empty(postgres: EmbeddedPostgres) -> str:
    return postgres.create_database(new_name("empty").replace("-", "_"))


def gauges_are_read(metrics_port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    [updated] = re.findall(r"^payments_gauges_updated_timestamp_seconds (\S+)$", text, re.MULTILINE)
    return float(updated) > 0 and "payments_backlog_items{" in text


def page(metrics_port: int, path: str) -> int:
    """Returns the HTTP status of a probe."""
    try:
        url = f"http://127.0.0.1:{metrics_port}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_before_and_after_it_is_migrated(nursery: Nursery, empty: str) -> None:
    metrics_port = first_free_port(1)
    with serving(nursery, empty, metrics_port) as (address, lines):
        why = next_line(lines, "database_not_migrated")
        assert (why["revision"], why["expected"]) == ("", EXPECTED_REVISION)
        assert "python -m payment_service migrate" in why["remedy"]
        assert health(address) == [NOT_SERVING, NOT_SERVING]
        assert (page(metrics_port, "/live"), page(metrics_port, "/ready")) == (200, 503)
        migrate(nursery, empty)
        until(lambda: health(address) == [SERVING, SERVING], "it serves")
        assert (page(metrics_port, "/live"), page(metrics_port, "/ready")) == (200, 200)
        until(lambda: gauges_are_read(metrics_port), "the gauges are read again")


def test_a_release_that_may_not_write_any_more_sends_its_callers_away(
    nursery: Nursery, database_url: str
) -> None:
    with serving(nursery, database_url) as (address, lines):
        until(lambda: health(address) == [SERVING, SERVING], "it serves")
        with (
            closing(psycopg2.connect(owner_url(database_url))) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("UPDATE releases SET minimum_writer = 1000")
            connection.commit()
        assert next_line(lines, "release_too_old")["minimum"] == 1000
        until(lambda: health(address) == [NOT_SERVING, NOT_SERVING], "callers move off")


@pytest.mark.parametrize(("revision", "status"), [("0000", NOT_SERVING), ("9999", SERVING)])
def test_an_older_schema_is_refused_and_a_newer_one_is_not(
    nursery: Nursery, database_url: str, revision: str, status: int
) -> None:
    with (
        closing(psycopg2.connect(owner_url(database_url))) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("UPDATE alembic_version SET version_num = %s", (revision,))
        connection.commit()
    with serving(nursery, database_url) as (address, lines):
        if status == NOT_SERVING:
            assert next_line(lines, "database_not_migrated")["revision"] == revision
        until(lambda: health(address) == [status, status], "its health")


def test_the_former_release_changes_nothing_of_a_newer_database(
    nursery: Nursery, database_url: str
) -> None:
    """Whoever goes back starts the former release's migration, too: systemd does by itself."""
    with closing(psycopg2.connect(owner_url(database_url))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("UPDATE alembic_version SET version_num = '9999'")
            cursor.execute("CREATE TABLE of_the_newer_release ()")
            cursor.execute("GRANT SELECT ON of_the_newer_release TO payments")
            migrate(nursery, database_url)
            cursor.execute("SELECT version_num FROM alembic_version")
            assert cursor.fetchall() == [("9999",)]
            cursor.execute(
                "SELECT has_table_privilege('payments', 'of_the_newer_release', 'SELECT')"
            )
            assert cursor.fetchall() == [(True,)]
