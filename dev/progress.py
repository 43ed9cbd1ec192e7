"""Shows that a long step is running: what it does, for how long, and the last line it wrote.

Uses the standard library only, because the installation runs before anything is installed.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_REFRESH_SECONDS = 0.2
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_DIM, _GREEN, _RED, _PLAIN = "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"


class StepFailedError(RuntimeError):
    """A command of a step failed; the text contains what it wrote."""


def has_colour() -> bool:
    """Whether standard output is a terminal whose user has not refused colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


@dataclass
class Progress:
    """Prints one line per step. On a terminal the line of the current step is updated in place."""

    steps: int
    number: int = 0
    started: float = field(default_factory=time.monotonic)

    def run(
        self,
        title: str,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Runs the command and shows its progress. Raises :class:`StepFailedError` if it fails."""
        self.number += 1
        started = time.monotonic()
        label = f"[{self.number}/{self.steps}] {title}"
        if not sys.stdout.isatty():
            self._write(f"{label} ...\n")
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        lines: list[str] = []
        reader = threading.Thread(target=_collect, args=[process, lines], daemon=True)
        reader.start()
        try:
            while process.poll() is None:
                self._show(label, lines, time.monotonic() - started)
                reader.join(_REFRESH_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            self._write("\n")
            raise
        reader.join(1)
        self._end(label, time.monotonic() - started, good=process.returncode == 0)
        if process.returncode != 0:
            raise StepFailedError("\n".join(lines[-20:]) or "it wrote nothing")

    def done(self, text: str) -> None:
        """Prints the last line, with the time of all steps together."""
        self._write(f"{text} ({time.monotonic() - self.started:.0f} s)\n")

    def _show(self, label: str, lines: Sequence[str], seconds: float) -> None:
        if not sys.stdout.isatty():
            return
        sign = _SPINNER[int(seconds / _REFRESH_SECONDS) % len(_SPINNER)]
        room = shutil.get_terminal_size().columns - 1
        text = f"{sign} {label}  {seconds:.0f} s"
        detail = lines[-1].strip() if lines else ""
        left = room - len(text) - 2
        tail = f"  {detail[:left]}" if detail and left > 10 else ""
        dim, plain = (_DIM, _PLAIN) if has_colour() else ("", "")
        self._write(f"\r\x1b[K{text[:room]}{dim}{tail}{plain}")

    def _end(self, label: str, seconds: float, *, good: bool) -> None:
        sign, colour = ("✓", _GREEN) if good else ("✗", _RED)
        if has_colour():
            sign = f"{colour}{sign}{_PLAIN}"
        start = "\r\x1b[K" if sys.stdout.isatty() else ""
        self._write(f"{start}{sign} {label}  {seconds:.1f} s\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _collect(process: "subprocess.Popen[str]", lines: list[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        lines.extend(line.rstrip() for line in process.stdout if line.strip())
