"""Runs the tests: `python -m dev.testing test|proofs|coverage|prove|rehearse [arguments]`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# Files run side by side, because many tests wait for sockets and processes. Four workers keep two
# cores busy. The proofs also measure how soon something happens, so they get a core each.
_BY_FILE = ("--dist=loadfile", "--no-loadscope-reorder")
_FOUR = ("--numprocesses=4", *_BY_FILE)
_TWO = ("--numprocesses=2", *_BY_FILE)
# A test that waits for real processes can be late on a crowded machine. It is repeated alone, once,
# and named: a test that needs that is a fault to be found. So is one that ended its process.
_ONCE_MORE = ("--last-failed", "--last-failed-no-failures=none", "--maxfail=5", "-rfEp")
_TESTS_FAILED = 1
#: After more deaths of workers, pytest leaves out the tests that remain.
_MOST_DEATHS = 3
_PROOFS = ("-m", "proof", "tests/chaos/test_run.py", "tests/examples", "tests/reliability")

#: Names the file in which tests.support.crashes notes which test each dead worker ran.
NOTES = "NOTES_OF_CRASHES"

_RELIABILITY = "tests/reliability"
_MODEL = f"{_RELIABILITY}/test_model.py"
#: What `make rehearse-…` does, with progress and real processes.
_REHEARSALS = {
    "upgrade": (f"{_RELIABILITY}/test_upgrade.py", "-k", "upgrade_under_load"),
    "recovery": (f"{_RELIABILITY}/test_restore.py", "-k", "point_in_time"),
}


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    what, *more = arguments
    if what == "prove":
        return _prove(more)
    if what == "rehearse":
        told = {**os.environ, "PROVE": "told"}
        return _pytest("-q", "--capture=no", *_REHEARSALS[more[0]], environment=told)
    if what == "proofs":
        return _in_full(_TWO, *_PROOFS, *more)
    if what == "coverage":
        return _pytest(*_FOUR, "--cov", "--cov-report=term", "tests", *more)
    if more:
        return _pytest(*more)
    return _in_full(_FOUR, "-m", "not proof")


def _in_full(side_by_side: Sequence[str], *arguments: str) -> int:
    """Runs all, then those that failed once more, in a process without their neighbours."""
    with tempfile.TemporaryDirectory(prefix="payments-tests-") as directory:
        notes = Path(directory) / "crashes"
        watched = ("-p", "tests.support.crashes", f"--max-worker-restart={_MOST_DEATHS}")
        told = {**os.environ, NOTES: str(notes)}
        status = _pytest(*side_by_side, *watched, *arguments, environment=told)
        crashed = notes.read_text().splitlines() if notes.exists() else []
    if len(crashed) > _MOST_DEATHS:
        _say("too many workers died: tests were left out, and none is repeated")
        status = status or _TESTS_FAILED
    elif status == _TESTS_FAILED:
        _say("running the failed tests once more, alone")
        status = _pytest(*_ONCE_MORE, *arguments)
        if status < 0:
            _say(f"the process of the tests died of signal {-status}")
    for test in dict.fromkeys(crashed):
        _say(f"CRASHED: {test}: the process died, which is a fault to be found")
    return status


def _say(line: str) -> None:
    sys.stdout.write(f"== {line}\n")
    sys.stdout.flush()


def _prove(more: Sequence[str]) -> int:
    """Runs the proofs in full. The two halves of the model run side by side, before the rest."""
    full = {**os.environ, "PROVE": "full"}
    arguments = ("--capture=no", *more)
    first = subprocess.Popen(_command(*arguments, _MODEL, "-k", "model_says and 0"), env=full)
    statuses = [_pytest(*arguments, _MODEL, "-k", "model_says and 1", environment=full)]
    statuses.append(first.wait())
    statuses.append(_pytest(*arguments, _RELIABILITY, f"--ignore={_MODEL}", environment=full))
    return int(any(statuses))


def _pytest(*arguments: str, environment: Mapping[str, str] | None = None) -> int:
    return subprocess.run(_command(*arguments), env=environment, check=False).returncode


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *arguments]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
