"""What the callers called and what was answered, in order: invoke, then ok, fail or info.

An *info* may or may not have happened; checkers accept both until the same key gets a definite
answer. Every call counts, retries too.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["ok", "fail", "info"]

#: Codes that are definite. After any other code the call is repeated with the same key.
FINAL = frozenset({"FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS"})
UNSURE = frozenset({"UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED"})
#: The caller's own deadline, not an answer of the service.
OWN = frozenset({"DEADLINE_EXCEEDED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class Seen:
    """A payment as an answer showed it."""

    payment_id: str
    version: int
    state: str
    amounts: tuple[int, int, int]
    """held, captured, refunded"""


@dataclass(frozen=True, slots=True)
class SeenDispute:
    """A dispute as an answer showed it."""

    dispute_id: str
    outcome: str
    #: Withdrawn, reinstated, written off as lost, times of submission: none of them ever falls.
    counts: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """One call from its start to its end (seconds of the run)."""

    caller: int
    rpc: str
    key: str
    request: bytes
    started: float
    ended: float
    outcome: Outcome
    code: str
    reason: str = ""
    body: bytes = b""
    seen: Seen | None = None
    #: Whether the caller waited for its full patience, and not only for a shorter deadline.
    patient: bool = True
    text: str = ""
    disputes: tuple[SeenDispute, ...] = ()


def outcome_of(code: str) -> Outcome:
    if code == "OK":
        return "ok"
    return "fail" if code in FINAL else "info"


@dataclass(slots=True)
class History:
    entries: list[Entry] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    by_rpc: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.codes[entry.code] += 1
        self.by_rpc[entry.rpc] += 1

    @property
    def operations(self) -> int:
        return len(self.entries)

    def count(self, outcome: Outcome) -> int:
        return sum(entry.outcome == outcome for entry in self.entries)
