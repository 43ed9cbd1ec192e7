"""What is asked about processes is the same with /proc (Linux) and with ps (everywhere else)."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev import processes
from dev.processes import end, started_at, works_in


@pytest.fixture(params=["proc", "ps"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if request.param == "ps":
        if not Path("/bin/ps").exists():
            pytest.skip("no ps here")
        monkeypatch.setattr(processes, "_PROC", tmp_path / "none")
    elif not Path("/proc/self/stat").exists():
        pytest.skip("no /proc here")


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Works in a directory and names it, as PostgreSQL does."""
    program = "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-S", "-c", program, tmp_path], cwd=tmp_path)
    yield process
    process.kill()
    process.wait()


@pytest.mark.usefixtures("system")
def test_start_names_a_process_for_good(sleeper: subprocess.Popen[bytes]) -> None:
    since = started_at(sleeper.pid)
    assert since is not None
    assert started_at(sleeper.pid) == since
    sleeper.kill()
    sleeper.wait()
    assert started_at(sleeper.pid) is None


@pytest.mark.usefixtures("system")
def test_zombie_has_ended(sleeper: subprocess.Popen[bytes]) -> None:
    since = started_at(sleeper.pid)
    assert since is not None
    assert end(sleeper.pid, since, [(signal.SIGKILL, 5.0)])
    assert sleeper.returncode is None  # nobody has waited for it yet
    assert started_at(sleeper.pid) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_process_whose_first_thread_has_ended_still_runs() -> None:
    """It looks like a zombie, and holds what it had opened."""
    program = """
import ctypes, os, threading
def last():
    os.write(1, b"1")
    os.read(0, 1)
    os._exit(0)
threading.Thread(target=last).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    command = [sys.executable, "-S", "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.read(1) == b"1"
        while "(zombie)" not in Path(f"/proc/{process.pid}/status").read_text():
            time.sleep(0.01)
        assert started_at(process.pid) is not None
        process.stdin.close()
        assert process.stdout.read() == b""  # the last thread has ended
        while started_at(process.pid) is not None:
            time.sleep(0.01)


@pytest.mark.usefixtures("system")
def test_process_is_known_by_its_directory(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert works_in(sleeper.pid, tmp_path)
    assert not works_in(sleeper.pid, tmp_path.parent)


@pytest.mark.usefixtures("system")
def test_other_process_under_the_same_pid_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    assert end(sleeper.pid, "another time", [(signal.SIGKILL, 5.0)])
    assert sleeper.poll() is None
