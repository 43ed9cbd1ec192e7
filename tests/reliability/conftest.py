"""One running system for all of these tests, and the table of figures at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability import proving
from tests.reliability.system import System, running_system

_HERE = Path(__file__).parent


@pytest.fixture(scope="package")
def system() -> Iterator[System]:
    """Two replicas, both running whenever a test begins."""
    with running_system() as running:
        yield running


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
