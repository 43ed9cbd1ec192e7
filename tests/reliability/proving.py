"""How much is done: a short sample for every change, or the full figures with ``PROVE=full``.

A rehearsal (``PROVE=told``) is a short sample that says how far it is.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from typing import Final, TypeVar

T = TypeVar("T")

FULL: Final = os.environ.get("PROVE", "") == "full"
_TOLD: Final = FULL or os.environ.get("PROVE", "") == "told"

#: One for the whole run. CI repeats the same one; a full run takes a new one and prints it.
SEED: Final = int(os.environ.get("SEED") or (secrets.randbelow(10**6) if FULL else 1))

#: A line per figure, shown at the end of the run.
figures: list[tuple[str, str]] = []
_began = time.monotonic()


def by_profile(short: T, full: T) -> T:
    return full if FULL else short


def figure(letter: str, text: str) -> None:
    """Note one line of the table of figures; the letters are those of the reliability figures."""
    figures.append((letter, text))


def progress(text: str) -> None:
    """Prints the progress of a full run, or of a rehearsal."""
    if _TOLD:
        sys.stderr.write(f"[{time.monotonic() - _began:6.0f} s] {text}\n")
        sys.stderr.flush()
