"""How many calls one caller may make: a bucket of tokens for each, refilled at a steady rate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: `caller=rate/burst`, such as `gig-service=200/400`.
_OVERRIDE: Final = re.compile(r"([!-<>-~]{1,128})=([0-9]{1,6}(?:\.[0-9]{1,3})?)/([0-9]{1,6})")
#: More callers than any platform has. The one that was idle longest is forgotten first.
_MOST_CALLERS: Final = 1_024


@dataclass(frozen=True, slots=True)
class Quota:
    """The calls a second in the long run, and the calls at once. A rate of 0 means no limit."""

    rate: float
    burst: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    #: When the tokens were counted last.
    time: float


def quotas_of(overrides: tuple[str, ...]) -> Mapping[str, Quota]:
    """Returns the quotas by caller. Raises :class:`ValueError` with a sentence how to fix it."""
    found = {}
    for text in overrides:
        parts = _OVERRIDE.fullmatch(text)
        if parts is None or int(parts[3]) < 1:
            raise ValueError(f"{text!r} is no quota: write caller=rate/burst, such as gigs=200/400")
        found[parts[1]] = Quota(float(parts[2]), int(parts[3]))
    return found


class Buckets:
    """The tokens of every caller of this process. Times are seconds of a clock that only rises."""

    def __init__(self, quota: Quota, overrides: Mapping[str, Quota]) -> None:
        self._quota = quota
        self._overrides = overrides
        self._buckets: dict[str, _Bucket] = {}

    def quota_of(self, caller: str) -> Quota:
        return self._overrides.get(caller, self._quota)

    def take(self, caller: str, now: float) -> float:
        """Takes a token and returns 0, or returns after how many seconds there is one."""
        quota = self.quota_of(caller)
        if not quota.rate:
            return 0.0
        bucket = self._buckets.pop(caller, None) or _Bucket(quota.burst, now)
        self._buckets[caller] = bucket  # It is the last one now: the first was idle longest.
        if len(self._buckets) > _MOST_CALLERS:
            del self._buckets[next(iter(self._buckets))]
        bucket.tokens = min(quota.burst, bucket.tokens + (now - bucket.time) * quota.rate)
        bucket.time = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / quota.rate
        bucket.tokens -= 1
        return 0.0

    def give_back(self, caller: str) -> None:
        """Returns the token of a call that has not started anything."""
        bucket = self._buckets.get(caller)
        if bucket is not None:
            bucket.tokens = min(self.quota_of(caller).burst, bucket.tokens + 1)
