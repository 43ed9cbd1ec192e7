"""Notes which tests ended their process: a plugin of pytest, for the run of several workers.

pytest-xdist gives such a test to another worker. If it passes there, the run has failed, but pytest
forgets the test among those to be repeated. Here it stays among them, and is named as what it was.
"""

import os
from pathlib import Path

import pytest

from dev.testing import NOTES

_BETWEEN = "a worker between two tests"


class Deaths:
    """The deaths of this run's workers."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._died = 0
        self._tests: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, error: object | None) -> None:
        """Is told of the worker before its test."""
        if error:
            self._died += 1
            self._write()

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        self._tests.append(crashitem)
        self._write()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Comes after pytest has written which tests failed."""
        cache = session.config.cache
        if self._tests and cache is not None:
            failed = cache.get("cache/lastfailed", {})
            cache.set("cache/lastfailed", failed | dict.fromkeys(self._tests, True))

    def _write(self) -> None:
        between = [_BETWEEN] * (self._died - len(self._tests))
        self._notes.write_text("".join(f"{line}\n" for line in [*self._tests, *between]))


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Deaths(Path(os.environ[NOTES])))
