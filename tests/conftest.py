"""Fixtures of all tests: one PostgreSQL a session, a fresh database wherever one is asked for.

The server is the same that `make run` starts, only without fsync. A database is a copy of a
migrated template, made in some 30 ms, so no test has to clean up after another.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from dev.postgres import EmbeddedPostgres

# A server that is started while calls are under way is a fork among gRPC's threads: its handlers
# have crashed such a child before it came to exec. Read when grpc is imported, which is later.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

_TEMPLATE = "migrated_template"
_numbers = itertools.count(1)


def migrate(url: str) -> None:
    """Bring an empty database to the newest schema."""
    if importlib.util.find_spec("payment_service.__main__") is None:
        return
    done = subprocess.run(
        [sys.executable, "-m", "payment_service", "migrate"],
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"migrating failed:\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A running PostgreSQL. Tests that stop or kill the server must start one of their own."""
    with EmbeddedPostgres.temporary() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres: EmbeddedPostgres) -> str:
    migrate(postgres.create_database(_TEMPLATE))
    return _TEMPLATE


@pytest.fixture(scope="session")
def new_database(postgres: EmbeddedPostgres, migrated_template: str) -> Callable[[], str]:
    """Makes migrated databases, as many as a test needs, and returns their URLs."""

    def create() -> str:
        return postgres.create_database(f"test_{next(_numbers)}", template=migrated_template)

    return create


@pytest.fixture
def database_url(new_database: Callable[[], str]) -> str:
    """A migrated database of this test's own."""
    return new_database()


@pytest.fixture(scope="module")
def module_database_url(new_database: Callable[[], str]) -> str:
    """A migrated database that the tests of one module share."""
    return new_database()
