"""Files that are read again when they change, without a restart.

The last good content stays in use. A file that is replaced is often wrong for a moment: a key comes
before its certificate, a text is half written. Nobody may be refused because of that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

T = TypeVar("T")
#: What changes with the files. A file that is absent counts, too.
Stamp = tuple[tuple[int, int, int] | None, ...]

#: Gets the name of a source and what is wrong with it.
Report = Callable[[str, str], None]

_LOOK_SECONDS: Final = 1.0
#: How long a wrong content may stay before it is reported. Two files cannot change at once.
_PATIENCE_SECONDS: Final = 5.0


class WrongFile(Exception):
    """A file cannot be used; the sentence says why and shows nothing of its content."""


class WatchedFiles(Generic[T]):
    """The value that some files mean together, as new as they are. Every thread may ask."""

    def __init__(
        self,
        setting: str,
        paths: Sequence[Path],
        parse: Callable[[Sequence[bytes]], T],
        report: Report = lambda source, fault: None,
    ) -> None:
        """Reads the files. ``parse`` raises :class:`WrongFile` for what cannot be used."""
        self._setting, self._paths = setting, tuple(paths)
        self._parse, self._report = parse, report
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._value = self._parsed()
        self._looked = time.monotonic()
        self._wrong_since: float | None = None
        self._reported = ""

    def current(self) -> T:
        """Returns the value. It never raises and looks at the files at most once a second."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self.look()
        return self._value

    def look(self) -> T:
        """Returns the value after a look at the files, however recent the last one was."""
        with self._lock:
            self._looked = time.monotonic()
            stamp = self._stamp()
            if stamp != self._seen:
                self._renew(stamp)
            return self._value

    def _renew(self, stamp: Stamp) -> None:
        try:
            value = self._parsed()
        except WrongFile as fault:
            # Not marked as seen: the next look tries again, until the files agree.
            now = time.monotonic()
            self._wrong_since = self._wrong_since or now
            if now - self._wrong_since >= _PATIENCE_SECONDS and self._reported != str(fault):
                self._reported = str(fault)
                self._report(self._setting, str(fault))
            return
        self._value, self._seen = value, stamp
        self._wrong_since, self._reported = None, ""

    def _parsed(self) -> T:
        """Returns what the files mean now. Whatever is wrong with them is a :class:`WrongFile`."""
        try:
            return self._parse(self._read())
        except WrongFile:
            raise
        except Exception as error:  # noqa: BLE001 - libraries refuse strange content in many ways
            names = ", ".join(str(path) for path in self._paths)
            raise WrongFile(f"{names} cannot be used ({type(error).__name__})") from None

    def _read(self) -> list[bytes]:
        contents = []
        for path in self._paths:
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                raise WrongFile(f"{path} cannot be read ({type(error).__name__})") from None
        return contents

    def _stamp(self) -> Stamp:
        stamps: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                found = path.stat()
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                stamps.append(None)
        return tuple(stamps)
