"""One running system for all of these tests, and the table of figures at the end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.postgres import EmbeddedPostgres
from tests.reliability import proving
from tests.reliability.system import System, running_system
from tests.support.nats_server import program

_numbers = itertools.count(1)
_HERE = Path(__file__).parent


@pytest.fixture(scope="package")
def system() -> Iterator[System]:
    """Two replicas, both running whenever a test begins."""
    with running_system() as running:
        yield running


@pytest.fixture(scope="session")
def nats_program() -> Path:
    """The program of a NATS server."""
    found = program()
    if found is None:
        pytest.skip("Go is not installed, which builds the NATS server")
    return found


@pytest.fixture
def relay_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """An empty database, as a role that may make a schema in it."""
    name = f"events_out_{next(_numbers)}"
    postgres.create_database(name)
    yield postgres.owner_url(name)
    postgres.drop_database(name)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is in this directory as proofs, which `make test` leaves to `make test-proofs`."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.proof)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not proving.figures:
        return
    which = "full" if proving.FULL else "short"
    terminalreporter.section(f"reliability, {which} profile, SEED={proving.SEED}")
    for letter, text in sorted(proving.figures):
        terminalreporter.write_line(f"{letter}  {text}")
