"""Makes sure that our child processes end with us, even when we are killed.

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
    """Ends the added processes if this process dies, the last one first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # the guard must not get the Ctrl-C of the terminal
            )

    def add(self, pid: int, number: signal.Signals = signal.SIGTERM) -> None:
        """Watches a process that leads its own group; `number` asks it to end."""
        self._send(f"+{pid} {number.value}\n")

    def remove(self, pid: int) -> None:
        """Stops watching a process that has ended and was waited for."""
        self._send(f"-{pid}\n")

    def hold(self, descriptor: int) -> None:
        """Keeps a lock file open until all watched processes have ended, if we die first."""
        self._send("\n", [descriptor])

    def close(self) -> None:
        """Ends all processes that are still watched, and then the guard."""
        self._socket.close()
        self._process.wait()

    def _send(self, line: str, descriptors: list[int] | None = None) -> None:
        # A guard that was killed is no reason to fail.
        with self._lock, contextlib.suppress(OSError):
            socket.send_fds(self._socket, [line.encode()], descriptors or [])
