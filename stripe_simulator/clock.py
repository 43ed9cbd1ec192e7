"""The simulator's clock: real time plus an offset, or frozen.

It never runs backwards, as Stripe's own test clocks do not: lists are ordered by creation and
deadlines that have passed stay passed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator


class Clock:
    def __init__(self) -> None:
        self._offset = 0.0
        self._frozen: float | None = None
        self._latest = 0.0
        self._pinned: int | None = None

    def now(self) -> int:
        """Whole seconds, as in every timestamp of Stripe's."""
        if self._pinned is not None:
            return self._pinned
        return math.floor(self.precise())

    def precise(self) -> float:
        moment = self._frozen if self._frozen is not None else time.time() + self._offset
        self._latest = max(self._latest, moment)
        return self._latest

    @contextlib.contextmanager
    def pinned(self, moment: int) -> Iterator[None]:
        """Do something that was due at `moment` as though it were done then."""
        before, self._pinned = self._pinned, moment
        try:
            yield
        finally:
            self._pinned = before

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("the clock cannot be moved backwards")
        if self._frozen is not None:
            self._frozen += seconds
        else:
            self._offset += seconds

    def set(self, moment: float) -> None:
        self.advance(moment - self.precise())

    def freeze(self, frozen: bool) -> None:
        if frozen and self._frozen is None:
            self._frozen = self.precise()
        elif not frozen and self._frozen is not None:
            self._offset = self._frozen - time.time()
            self._frozen = None

    @property
    def frozen(self) -> bool:
        return self._frozen is not None

    def dump(self) -> dict[str, float | None]:
        return {"offset": self._offset, "frozen": self._frozen, "latest": self._latest}

    def load(self, dumped: dict[str, float | None]) -> None:
        self._offset = dumped["offset"] or 0.0
        self._frozen = dumped["frozen"]
        self._latest = dumped["latest"] or 0.0
