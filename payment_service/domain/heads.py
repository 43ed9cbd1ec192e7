"""The heads of the audit trail: a small statement that vouches for every event of every payment.

The events of all payments have one order, the feed, which is never changed. A Merkle tree over the
feed has one root for each length. So the root of today can be computed from the database of any
later day, and differs if one event was changed, taken out or exchanged since, also if a whole chain
was rewritten without a contradiction. The events of experts, the platform's own lines and the
adjustments have no feed: each has a chain of its own, and a second tree is over these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from payment_service.domain.merkle import Tree

FORMAT: Final = "payments-heads/1"


@dataclass(frozen=True, slots=True)
class EventEntry:
    """An event in the feed. Without a hash the feed names an event that is not there."""

    position: int
    payment_id: str
    sequence: int
    hash: bytes
    time: datetime | None

    @property
    def line(self) -> str:
        """Returns the entry as the tree and the file have it. Its place says the position."""
        return f"{self.payment_id} {self.sequence} {self.hash.hex()} {_moment(self.time)}"


@dataclass(frozen=True, slots=True)
class RecordEntry:
    """An entry of a list that has no feed: of an expert, a platform line or an adjustment.

    ``key`` names the list, ``number`` counts its entries from 1, and ``digest`` chains them.
    """

    key: str
    number: int
    digest: str

    @property
    def line(self) -> str:
        return f"{self.key} {self.number} {self.digest}"


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """What is stored of such an entry, as texts, to be hashed with the entry before."""

    key: str
    number: int
    parts: tuple[str, ...]


def record_digest(former: str, record: StoredRecord) -> str:
    """Returns the hash of an entry and of all entries of its list before it."""
    digest = hashlib.sha256(bytes.fromhex(former))
    for part in (record.key, str(record.number), *record.parts):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


@dataclass(slots=True)
class RecordChain:
    """Chains the entries of one list after another, as they are read in their order."""

    _key: str = ""
    _digest: str = ""

    def next(self, record: StoredRecord) -> RecordEntry:
        if record.key != self._key:
            self._key, self._digest = record.key, ""
        self._digest = record_digest(self._digest, record)
        return RecordEntry(record.key, record.number, self._digest)


@dataclass(frozen=True, slots=True)
class Heads:
    """The roots of both trees, with how many entries they have. The public key is its hex."""

    installation_id: str
    time: datetime
    events: int
    events_root: bytes
    records: int
    records_root: bytes
    #: Which key signed it, and the signature; empty if nothing did.
    key_id: str = ""
    signature: bytes = b""

    @property
    def statement(self) -> dict[str, Any]:
        """Returns what is signed."""
        return {
            "format": FORMAT,
            "installation_id": self.installation_id,
            "time": _moment(self.time),
            "events": self.events,
            "events_root": self.events_root.hex(),
            "records": self.records,
            "records_root": self.records_root.hex(),
        }

    @property
    def signed_bytes(self) -> bytes:
        """Returns the bytes that the signature is of."""
        return json.dumps(self.statement, sort_keys=True, separators=(",", ":")).encode()

    def to_json(self) -> dict[str, Any]:
        """Returns the statement with its signature, as files and bundles have it."""
        return {**self.statement, "key_id": self.key_id, "signature": self.signature.hex()}


class Malformed(ValueError):
    """A file or a bundle is not what this service writes. The text says where."""


def heads_from_json(value: Mapping[str, Any]) -> Heads:
    """Reads a statement. Raises :class:`Malformed`."""
    try:
        if value["format"] != FORMAT:
            raise Malformed(f"the format is not {FORMAT}")
        return Heads(
            str(value["installation_id"]),
            datetime.fromisoformat(value["time"]),
            int(value["events"]),
            bytes.fromhex(value["events_root"]),
            int(value["records"]),
            bytes.fromhex(value["records_root"]),
            str(value["key_id"]),
            bytes.fromhex(value["signature"]),
        )
    except (KeyError, TypeError, ValueError) as fault:
        if isinstance(fault, Malformed):
            raise
        raise Malformed("the statement is incomplete or has a value of another type") from None


def event_from_line(position: int, line: str) -> EventEntry:
    """Reads an event's line. Raises :class:`Malformed`."""
    try:
        payment_id, sequence, hash_, time = line.split(" ")
        return EventEntry(
            position, payment_id, int(sequence), bytes.fromhex(hash_), datetime.fromisoformat(time)
        )
    except ValueError:
        raise Malformed(f"line {position} is no event") from None


def record_from_line(number: int, line: str) -> RecordEntry:
    """Reads a record's line; an expert's id may contain anything but a space."""
    try:
        key, count, digest = line.split(" ")
        return RecordEntry(key, int(count), digest)
    except ValueError:
        raise Malformed(f"record {number} is no record") from None


@dataclass(slots=True)
class Roots:
    """Both trees while their entries are read."""

    events: Tree = field(default_factory=Tree)
    records: Tree = field(default_factory=Tree)

    def add_event(self, entry: EventEntry) -> None:
        self.events.append(entry.line.encode())

    def add_record(self, entry: RecordEntry) -> None:
        self.records.append(entry.line.encode())

    def heads(self, installation_id: str, time: datetime) -> Heads:
        return Heads(
            installation_id,
            time,
            self.events.size,
            self.events.root(),
            self.records.size,
            self.records.root(),
        )

    def fit(self, heads: Heads) -> bool:
        """Returns whether these are the trees that the statement is of."""
        return (self.events.size, self.records.size) == (heads.events, heads.records) and (
            self.events.root(),
            self.records.root(),
        ) == (heads.events_root, heads.records_root)


def _moment(time: datetime | None) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds") if time else "-"
