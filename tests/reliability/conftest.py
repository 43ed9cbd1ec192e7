"""One running system for all of these tests, and the table of figures at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability import proving
from tests.reliability.system import System, running_system


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """Two replicas, both running whenever a test begins."""
    with running_system() as running:
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not proving.figures:
        return
    which = "full" if proving.FULL else "short"
    terminalreporter.section(f"reliability, {which} profile, SEED={proving.SEED}")
    for letter, text in sorted(proving.figures):
        terminalreporter.write_line(f"{letter}  {text}")
