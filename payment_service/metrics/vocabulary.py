"""Keeps the values of a label few, where somebody else chooses them."""

from __future__ import annotations

import re
import threading
from typing import Final

_OTHER: Final = "other"
#: What a code of Stripe's looks like. An id, a name or a sentence does not.
_CODE: Final = re.compile(r"[a-z][a-z_]{0,63}")


class Vocabulary:
    """Remembers the first codes that come, and calls everything beyond them ``other``.

    Stripe adds codes without notice. A label whose values have no bound would fill Prometheus.
    """

    def __init__(self, most: int = 80) -> None:
        self._most = most
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def word(self, code: str) -> str:
        """Returns the code, or ``other``. Any thread may call it."""
        with self._lock:
            if code in self._known:
                return code
            if len(self._known) >= self._most or not _CODE.fullmatch(code):
                return _OTHER
            self._known.add(code)
            return code
