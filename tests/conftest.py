"""Fixtures of all tests: one PostgreSQL a session, a fresh database wherever one is asked for.

The server is the same that `make run` starts, only without fsync. Migrations run once, into a
template; tests.support.databases copies it and uses the copies again, so no test has to clean up
after another.
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator

import psycopg2
import pytest

from dev.postgres import SERVICE, EmbeddedPostgres, owner_url
from tests.support.databases import Databases
from tests.support.nursery import Nursery
from tests.support.nursery import nursery as open_nursery

_TEMPLATE = "migrated_template"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keeps what is collected, which lives as long as the session, out of Python's own collection.

    It would look through these many objects again and again, while they come and ever after.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files first that have a slow test.

    A worker takes whole files. One that begins late lets the other workers wait at the end.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def migrate(nursery: Nursery, url: str) -> None:
    """Bring an empty database to the newest schema."""
    told = {**os.environ, "DATABASE_URL": owner_url(url), "DATABASE_SERVICE_ROLE": SERVICE}
    done = nursery.run("payment_service", "migrate", env=told)
    assert done.returncode == 0, f"migrating failed:\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL. Tests that stop or kill the server must start one of their own."""
    with EmbeddedPostgres.temporary() as server:
        yield server


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Starts replicas of the service without the seconds that imports take."""
    with open_nursery() as opened:
        yield opened


@pytest.fixture(scope="session")
def databases(postgres: EmbeddedPostgres, nursery: Nursery) -> Databases:
    """Copies of a template that is migrated once.

    In it the hourly reconciliation is not due: else each service would begin with one.
    """
    url = postgres.create_database(_TEMPLATE)
    migrate(nursery, url)
    with (
        contextlib.closing(psycopg2.connect(owner_url(url))) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("INSERT INTO jobs VALUES ('reconciliation', now() + interval '1 hour')")
    return Databases(postgres, _TEMPLATE)


@pytest.fixture
def new_database(databases: Databases) -> Iterator[Callable[[], str]]:
    """Makes migrated databases, as many as a test needs, and returns their URLs."""
    with contextlib.ExitStack() as stack:

        def create() -> str:
            url = databases.take()
            stack.callback(databases.give_back, url)
            return url

        yield create


@pytest.fixture
def database_url(new_database: Callable[[], str]) -> str:
    """A migrated database of this test's own."""
    return new_database()


@pytest.fixture(scope="module")
def module_database_url(databases: Databases) -> Iterator[str]:
    """A migrated database that the tests of one module share."""
    url = databases.take()
    yield url
    databases.give_back(url)
