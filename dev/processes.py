"""Queries and signals for processes, also for those that are not our children."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

_PROC = Path("/proc")


def started_at(pid: int) -> str | None:
    """Returns the start time in the system's format; None if it has ended or is a zombie.

    Pid and start together name a process for good: pids alone are given out again. A killed process
    looks like a zombie as soon as its first thread has ended. It keeps its ports until the last one
    has.
    """
    if (_PROC / "self/stat").exists():
        state, *rest = _stat(pid) or ["X"]
        ended = state == "X" or (state == "Z" and int(rest[16]) <= 1)
        return None if ended else rest[18]
    answer = _ps(pid, "stat=,lstart=")
    return None if not answer or answer.startswith("Z") else answer.split(maxsplit=1)[1]


def children_of(pid: int) -> list[int]:
    """Returns the processes that a process of one thread has forked, the oldest first (Linux)."""
    listed = (_PROC / f"{pid}/task/{pid}/children").read_text()
    return sorted(int(child) for child in listed.split())


def family_of(pid: int) -> list[int]:
    """Returns a process and its children (Linux)."""
    return [pid, *children_of(pid)]


def is_stopped(pid: int) -> bool:
    """Whether it is stopped, by SIGSTOP for example."""
    if (_PROC / "self/stat").exists():
        return _stat(pid)[:1] == ["T"]
    return _ps(pid, "stat=").startswith("T")


def works_in(pid: int, directory: Path) -> bool:
    """Whether a process works inside this directory, or was started with its name."""
    if (_PROC / "self/cwd").exists():
        try:
            return (_PROC / str(pid) / "cwd").readlink() == directory.resolve()
        except OSError:
            return False
    return f" {directory} " in f"{_ps(pid, 'command=')} "


def end(pid: int, since: str, signals: list[tuple[signal.Signals, float]]) -> bool:
    """Sends one signal after the other, each with its seconds, until the process has ended."""
    for number, seconds in signals:
        if started_at(pid) != since:
            return True
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if started_at(pid) != since:
                return True
            time.sleep(0.02)
    return started_at(pid) != since


def _stat(pid: int) -> list[str]:
    """Returns Linux's fields of a process from its state on; none if it has ended."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    return stat[stat.rindex(")") + 2 :].split()


def _ps(pid: int, columns: str) -> str:
    return subprocess.run(
        ["/bin/ps", "-ww", "-o", columns, "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()


class Leftovers:
    """The processes of a stack, on disk, so that they are found if it is killed with its guard."""

    def __init__(self, record: Path) -> None:
        self._record = record

    def note(self, pid: int) -> None:
        with self._record.open("a") as record:
            record.write(f"{pid} {started_at(pid)}\n")

    def forget(self) -> None:
        self._record.unlink(missing_ok=True)

    def end(self) -> None:
        """Ends those that still run."""
        with contextlib.suppress(FileNotFoundError):
            for line in reversed(self._record.read_text().splitlines()):
                pid, _, since = line.partition(" ")
                if pid.isdecimal() and since != "None":
                    end(int(pid), since, [(signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)])
            self._record.unlink()
