"""One process of the stack: starts it in its own group, passes its lines on, and stops it."""

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Protocol

from dev.guard import Guard
from dev.settings import ROOT

#: Takes the name of a child and one line that it wrote.
Sink = Callable[[str, str], None]


class Process(Protocol):
    """The part of `subprocess.Popen` that a child needs."""

    @property
    def pid(self) -> int: ...
    @property
    def stdout(self) -> IO[bytes] | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


#: Starts a process with this environment and no other.
Spawn = Callable[[Mapping[str, str]], Process]
#: The same for any command.
SpawnCommand = Callable[[Sequence[str], Mapping[str, str]], Process]

_TAIL_LINES = 30


class Child:
    """A handle that outlives the process: it can be killed, paused and started again."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        guard: Guard,
        sink: Sink,
        on_start: Callable[["Child"], None] = lambda child: None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.environment = dict(environment)
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        #: Starts the process with the given environment; runs the command by default.
        self.spawn: Spawn = self.run_command
        self._guard = guard
        self._sink = sink
        self._on_start = on_start
        self._process: Process | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        self._process = self.spawn(self.environment)
        self._guard.add(self._process.pid)
        self._on_start(self)
        self._reader = threading.Thread(
            target=self._read, args=[self._process], name=f"lines of {self.name}", daemon=True
        )
        self._reader.start()

    def run_command(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # only the supervisor gets Ctrl-C, because it knows the order
        )

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def ask_to_stop(self) -> None:
        """Asks it to finish its work and to end (SIGTERM)."""
        if self.running:
            self.resume()
            self._signal(signal.SIGTERM)

    def wait(self, seconds: float | None = None) -> bool:
        """Returns whether it ended within the time. Then its last lines have been passed on."""
        if self._process is None:
            return True
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._guard.remove(self._process.pid)
        if self._reader is not None:
            self._reader.join(1)  # longer only if a grandchild holds the pipe
        return True

    def kill(self) -> None:
        """Kills it and its whole group, as a crash would."""
        if self._process is not None:
            if self.running:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            self.wait()

    def pause(self) -> None:
        """Pauses it (SIGSTOP): to others it looks blocked, not ended."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kills it and starts it again with the same command, environment and ports."""
        self.kill()
        self.start()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)  # a no-op once it has been waited for

    def _read(self, process: Process) -> None:
        assert process.stdout is not None
        with process.stdout:
            for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip()
                self.tail.append(line)
                # Even if our own output fails, the child must not block on a full pipe.
                with contextlib.suppress(OSError, ValueError):
                    self._sink(self.name, line)
