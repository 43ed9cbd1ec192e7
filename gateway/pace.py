"""How often one landing page may ask.

Each look at a page is a read at Stripe, whose bound on requests all payments share. So the holder
of one token, whose address is theirs to load as often as they like, gets a share of it.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_MINUTE: Final = 60.0
#: More pages than a gateway serves in a minute. Beyond it the one that was quiet longest goes.
_MOST_TOKENS: Final = 10_000


class Pace:
    """Counts the calls of each known token within a minute; of the token it keeps the hash."""

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._now = now
        self._calls: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def admits(self, token: str) -> bool:
        """Whether this token has calls left in its minute."""
        since, calls = self._calls.get(_key(token), (0.0, 0))
        return calls < self._per_minute or self._now() >= since + _MINUTE

    def count(self, token: str) -> None:
        """Adds a call of a token that the core knows; others cost no read at Stripe."""
        now, key = self._now(), _key(token)
        since, calls = self._calls.pop(key, (now, 0))
        if now >= since + _MINUTE:
            since, calls = now, 0
        self._calls[key] = (since, calls + 1)
        if len(self._calls) > _MOST_TOKENS:
            self._calls.popitem(last=False)


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
