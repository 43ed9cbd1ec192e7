"""A lock on a directory that is released even by a crash.

The kernel drops a flock when the last process holding the file is gone. A guard holds it too
(see dev.guard), so that a start right after a kill waits until the leftovers have been ended.
"""

import fcntl
import os
import time
from pathlib import Path

from dev.guard import Guard
from dev.processes import started_at


class DirectoryInUseError(RuntimeError):
    def __init__(self, path: Path, pid: int) -> None:
        super().__init__(
            f"{path.parent} is in use by process {pid}: stop it, or choose another DATA_DIR"
        )


class DirectoryLock:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self, guard: Guard, timeout_seconds: float = 30.0) -> None:
        """Takes the lock; waits only for the remaining processes of an owner that has ended."""
        if self._file is not None:
            return
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            self._wait(file, timeout_seconds)
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} {started_at(os.getpid())}".encode(), 0)
            guard.hold(file)
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def release(self) -> None:
        """Releases the lock. A guard that still runs holds it until it is closed."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)
            self._file = None

    def _wait(self, file: int, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pid, _, since = os.pread(file, 200, 0).decode().partition(" ")
                owner_lives = pid.isdigit() and started_at(int(pid)) == since
                if owner_lives or time.monotonic() > deadline:
                    raise DirectoryInUseError(self._path, int(pid or 0)) from None
            time.sleep(0.02)
