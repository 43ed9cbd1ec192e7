"""What is run once more after `make test`: a test that failed, and one that ended its process."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dev.settings import ROOT

#: Which of its tries end the process, and which fail.
_FAILING = """
import os, pathlib, signal

def _tries(name):
    notes = pathlib.Path(name)
    notes.write_text(notes.read_text() + "x" if notes.exists() else "x")
    return len(notes.read_text())

def test_that_ends_its_process():
    if _tries("ended") in {ends}:
        os.kill(os.getpid(), signal.SIGKILL)

def test_that_fails():
    assert _tries("failed") not in {failures}

def test_that_passes():
    _tries("passed")
"""


def run(
    directory: Path, *, ends: Sequence[int] = (), failures: Sequence[int] = ()
) -> tuple[int, str]:
    """Returns the exit status and the lines of `_in_full` with one worker."""
    (directory / "pytest.ini").write_text("[pytest]\n")
    (directory / "test_it.py").write_text(_FAILING.format(ends=ends, failures=failures))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from dev import testing; sys.exit(testing._in_full(['-n1']))",
        ],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # The other plugins take their time.
            "PYTEST_ADDOPTS": "-p xdist.plugin --dist=loadfile",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def tries(directory: Path, name: str) -> int:
    found = directory / name
    return len(found.read_text()) if found.exists() else 0


def test_test_that_ended_its_process_is_repeated_alone_and_named(tmp_path: Path) -> None:
    """Another worker tries it first, and passes: then pytest forgets it among the failed ones."""
    status, said = run(tmp_path, ends=[1], failures=[1])
    assert status == 0, said
    assert "PASSED test_it.py::test_that_ends_its_process" in said
    assert "PASSED test_it.py::test_that_fails" in said
    assert "== CRASHED: test_it.py::test_that_ends_its_process: " in said.splitlines()[-1]
    assert tries(tmp_path, "ended") == 3
    assert tries(tmp_path, "failed") == 2
    assert tries(tmp_path, "passed") == 1


def test_test_that_fails_alone_too_fails_the_run(tmp_path: Path) -> None:
    status, said = run(tmp_path, failures=[1, 2])
    assert status == 1, said
    assert "CRASHED" not in said


def test_run_that_left_tests_out_fails(tmp_path: Path) -> None:
    """The one that ends its process would pass if it were repeated."""
    status, said = run(tmp_path, ends=[1, 2, 3, 4])
    assert status == 1, said
    assert "tests were left out" in said
    assert "== CRASHED: test_it.py::test_that_ends_its_process: " in said
    assert tries(tmp_path, "passed") == 0


def test_process_that_ends_again_when_repeated_fails_the_run(tmp_path: Path) -> None:
    status, said = run(tmp_path, ends=[1, 3])
    assert status != 0, said
    assert "== the process of the tests died of signal 9" in said
    assert tries(tmp_path, "ended") == 3
