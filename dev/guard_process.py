"""The process behind dev.guard: ends the processes that its owner left running.

Run by path, isolated (`python -I -S`), with the number of an inherited socket as its argument.
It reads lines, `+PID SIGNAL` to watch a process and `-PID` to forget it. When the socket closes,
its owner is gone: whatever is still watched is ended, the last one added first. Open files that
arrive with a line (locks, above all) are held until then.
"""

import contextlib
import os
import signal
import socket
import sys
import time

GRACE_SECONDS = 10.0


def main() -> None:
    watched: dict[int, int] = {}
    held: list[int] = []
    pending = b""
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        while True:
            received, files, _, _ = socket.recv_fds(channel, 4096, 8)
            held += files
            if not received:
                break
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                note(watched, line.decode())
    for pid, number in reversed(watched.items()):
        end(pid, number)


def note(watched: dict[int, int], line: str) -> None:
    if line.startswith("+"):
        pid, number = line[1:].split()
        watched[int(pid)] = int(number)
    elif line.startswith("-"):
        watched.pop(int(line[1:]), None)


def end(pid: int, number: int) -> None:
    """Asks the process to end, and kills its whole group if it does not."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGCONT)  # a paused process would not handle the next signal
        os.kill(pid, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and not is_zombie(pid):
            os.kill(pid, 0)
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def is_zombie(pid: int) -> bool:
    """Whether it has ended but was not waited for: its new parent may need seconds for that."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - pathlib is slow to import
            return stat.read().rpartition(b")")[2].split()[0] in b"ZX"
    except OSError:
        return False  # ended, or not Linux


if __name__ == "__main__":
    main()
