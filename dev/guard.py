"""A promise that children do not outlive us, even when we are killed without a word.

Linux could signal a child on its parent's death, but forgets that on a change of user (as for
PostgreSQL under root) and means the parent's *thread*; macOS has nothing of the kind. So one
small process watches a socket whose other end is ours: when we die, for whatever reason, the
kernel closes it, and the guard ends what we had told it of.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

_PROGRAM = Path(__file__).with_name("guard_process.py")


class Guard:
    """Ends the processes added to it if this process dies; the last one added goes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is not for the guard
            )

    def add(self, pid: int, number: signal.Signals = signal.SIGTERM) -> None:
        """Watch a process that leads its own group; `number` is how to ask it to go."""
        self._send(f"+{pid} {number.value}\n")

    def remove(self, pid: int) -> None:
        """Forget a process that has ended and been waited for."""
        self._send(f"-{pid}\n")

    def hold(self, descriptor: int) -> None:
        """Keep a lock's file open until everything watched is gone, should we die first."""
        self._send("\n", [descriptor])

    def close(self) -> None:
        """Let the guard go; whatever is still watched is ended first."""
        self._socket.close()
        self._process.wait()

    def _send(self, line: str, descriptors: list[int] | None = None) -> None:
        # A guard that was killed guards no more, but is no reason to fail.
        with self._lock, contextlib.suppress(OSError):
            socket.send_fds(self._socket, [line.encode()], descriptors or [])
