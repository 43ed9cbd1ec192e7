"""Holds the books against heads that were exported from them.

Three things can be: the books are what they were, and more has come; they are of an earlier
moment, as after the restore of a backup; or they were changed. A chain that was rewritten whole
contradicts nothing in the database. It is found because its hashes are not the exported ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from payment_service.application.export_heads import PAGE, read_records
from payment_service.application.reconciliation.audit import audit_payments
from payment_service.domain.heads import EventEntry, Heads, RecordEntry, Roots
from payment_service.domain.ports.database import Database
from payment_service.domain.ports.reader import Reader

#: A transaction lasts seconds at most, so a backup may have lost an event and have another one
#: that is as much younger.
_SLACK: Final = timedelta(seconds=15)
_EVER: Final = datetime(2000, 1, 1, tzinfo=UTC)
_NAMED: Final = 20


class Verdict(StrEnum):
    """What the books are, held against exported heads."""

    AGREES = "agrees"
    OLDER = "older"
    DIFFERS = "differs"


@dataclass(slots=True)
class Findings:
    """The verdict, and a sentence for each thing that was found."""

    verdict: Verdict = Verdict.AGREES
    sentences: list[str] = field(default_factory=list)
    #: The first event of each payment that is not as exported, or contradicts its own records.
    payments: dict[str, int] = field(default_factory=dict)
    #: The first entry of each list without a feed that is not as exported.
    records: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Compared:
    """What the comparison with the feed has found."""

    #: By position, as exported: what is not at its place any more.
    lost: list[EventEntry] = field(default_factory=list)
    #: Where the database has less or something else for the first time.
    first: int = 0
    #: Of these events the database has another hash, or has them no more.
    changed: list[EventEntry] = field(default_factory=list)
    #: These exist as exported, but not at their position, although they wait for none.
    moved: list[EventEntry] = field(default_factory=list)


async def verify_heads(
    database: Database,
    heads: Heads,
    events: Iterable[EventEntry],
    records: Sequence[RecordEntry],
) -> Findings:
    """Compares everything that the heads cover, and audits every payment against itself."""
    findings = Findings()
    if heads.installation_id != await database.installation_id():
        findings.verdict = Verdict.DIFFERS
        findings.sentences.append("the heads are of another installation, not of this database")
        return findings
    compared = await _compare_events(database, heads, events)
    missing, changed = await _compare_records(database, records)
    contradictions = await _contradictions(database, findings)
    _name(findings, compared, missing, changed)
    if not (compared.lost or missing or changed or contradictions):
        return findings
    findings.verdict = Verdict.DIFFERS
    why = ""
    if not (changed or contradictions or compared.moved) and _is_the_end(compared, heads):
        why = await _why_not_older(database, heads, compared)
        if not why:
            findings.verdict = Verdict.OLDER
    findings.sentences.insert(0, await _summary(database, findings.verdict, heads, compared, why))
    return findings


async def _compare_events(
    database: Database, heads: Heads, events: Iterable[EventEntry]
) -> _Compared:
    compared, stored, read_until = _Compared(), dict[int, EventEntry](), 0
    for entry in events:
        if entry.position > read_until:
            until = min(read_until + PAGE, heads.events)
            page = await database.read(_events, read_until, until)
            stored, read_until = {one.position: one for one in page}, until
        there = stored.get(entry.position)
        if there is None or there.line != entry.line:
            compared.lost.append(entry)
    compared.first = compared.lost[0].position if compared.lost else heads.events + 1
    waiting = await database.read(_waiting)
    for begin in range(0, len(compared.lost), PAGE):
        some = compared.lost[begin : begin + PAGE]
        hashes = await database.read(_hashes, [(one.payment_id, one.sequence) for one in some])
        for entry in some:
            key = (entry.payment_id, entry.sequence)
            if hashes.get(key) != entry.hash:
                compared.changed.append(entry)
            elif key not in waiting:
                compared.moved.append(entry)
    return compared


async def _compare_records(
    database: Database, records: Sequence[RecordEntry]
) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the first missing and the first changed entry of each list."""
    exported = {(one.key, one.number): one.digest for one in records}
    there: dict[tuple[str, int], str] = {}

    def keep(entry: EventEntry | RecordEntry) -> None:
        if isinstance(entry, RecordEntry) and (entry.key, entry.number) in exported:
            there[entry.key, entry.number] = entry.digest

    await read_records(database, Roots(), keep)
    missing: dict[str, int] = {}
    changed: dict[str, int] = {}
    for (key, number), digest in exported.items():
        if (key, number) not in there:
            missing[key] = min(number, missing.get(key, number))
        elif there[key, number] != digest:
            changed[key] = min(number, changed.get(key, number))
    for key in [key for key, number in missing.items() if key in changed]:
        # An entry was taken out, and all later ones are chained otherwise.
        changed[key] = min(changed[key], missing.pop(key))
    return missing, changed


async def _contradictions(database: Database, findings: Findings) -> bool:
    """Names the payments that contradict their own history, and the invariants that do not hold."""
    faults = await audit_payments(database, _EVER)
    for payment_id, of_payment in faults.items():
        for fault in of_payment:
            findings.sentences.append(f"payment {payment_id}: {fault}")
        findings.payments[payment_id] = min(fault.sequence for fault in of_payment)
    violations = await database.read(lambda reader: reader.violations(_EVER))
    found = {kind: ids for kind, ids in violations.items() if ids}
    for kind, ids in found.items():
        named = ", ".join(one or "an expert or the platform" for one in ids[:_NAMED])
        findings.sentences.append(f"{kind.invariant_name} does not hold: {named}")
        for payment_id in ids:
            if payment_id:
                findings.payments.setdefault(payment_id, 0)
    return bool(faults or found)


def _name(
    findings: Findings,
    compared: _Compared,
    missing: Mapping[str, int],
    changed: Mapping[str, int],
) -> None:
    """Names the first event of each payment, and the first entry of each list."""
    first: dict[str, EventEntry] = {}
    for entry in compared.changed or compared.moved:
        known = first.get(entry.payment_id)
        if known is None or entry.sequence < known.sequence:
            first[entry.payment_id] = entry
    for payment_id, entry in first.items():
        findings.payments[payment_id] = entry.sequence
        findings.sentences.append(
            f"payment {payment_id}: event {entry.sequence} (position {entry.position}) "
            "is not what was exported"
        )
    for what, found in (("is missing", missing), ("is not what was exported", changed)):
        for key, number in sorted(found.items()):
            findings.records[key] = number
            findings.sentences.append(f"{key.replace(':', ' ', 1)}: entry {number} {what}")


def _is_the_end(compared: _Compared, heads: Heads) -> bool:
    """Returns whether everything is as exported up to a position, and nothing is after it."""
    return len(compared.lost) == heads.events - compared.first + 1


async def _why_not_older(database: Database, heads: Heads, compared: _Compared) -> str:
    """Returns what an earlier state of these books would not have, or ""."""
    after = compared.first - 1
    if not compared.lost and await database.read(_feed_head) > heads.events:
        return "events have come since, so no backup was restored"
    while True:
        page = await database.read(_events, after, after + PAGE)
        for entry in page:
            if entry.time is None or entry.time <= heads.time:
                return f"an event of a time before the export is at position {entry.position}"
        if not page:
            break
        after += PAGE
    times = [entry.time for entry in compared.lost if entry.time is not None]
    if not times:
        return ""
    survivor = await database.read(_survivor, min(times) + _SLACK, heads.time)
    return f"{survivor} has rows of the time that is missing from the events" if survivor else ""


async def _summary(
    database: Database, verdict: Verdict, heads: Heads, compared: _Compared, why: str
) -> str:
    kept = min(compared.first - 1, heads.events)
    if verdict is Verdict.OLDER:
        last = await database.read(_events, kept - 1, kept) if kept else []
        when = f"the last one of {last[0].time:%Y-%m-%d %H:%M:%S} UTC" if last else "none at all"
        return (
            f"the database is of an earlier state: it has the first {kept} of {heads.events} "
            f"events, {when}. Nothing of later survives. If nobody restored a backup of that time, "
            "the end was cut off"
        )
    because = f"; this is no earlier state, because {why}" if why else ""
    return f"the database is not what was exported{because}"


def _events(reader: Reader, after: int, until: int) -> list[EventEntry]:
    return list(reader.head_events(after, until, PAGE))


def _hashes(reader: Reader, keys: list[tuple[str, int]]) -> Mapping[tuple[str, int], bytes]:
    return reader.event_hashes(keys)


def _waiting(reader: Reader) -> frozenset[tuple[str, int]]:
    return reader.waiting_for_feed()


def _feed_head(reader: Reader) -> int:
    return reader.feed_head()


def _survivor(reader: Reader, after: datetime, until: datetime) -> str:
    return reader.survivor(after, until)
