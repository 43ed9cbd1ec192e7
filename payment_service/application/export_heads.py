"""Exports the heads of the audit trail: computes both roots, signs them, and gives them out.

A job does it on one replica, from time to time: into the log, which leaves the house, and into the
database for the proofs of single payments. A command writes them into a file with every entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from payment_service.application.app import App
from payment_service.domain.heads import (
    EventEntry,
    Heads,
    RecordChain,
    RecordEntry,
    Roots,
    StoredRecord,
)
from payment_service.domain.merkle import BLOCK, Tree
from payment_service.domain.ports.database import Database, Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.signing import Signer

#: How many entries one statement reads.
PAGE: Final = 2048
#: The lists without a feed: adjustments, experts, platform lines.
_LISTS: Final = 3
_BEFORE_ALL: Final = ("", 0)


class TrailBroken(Exception):
    """The feed was cut or changed. ``position`` is the first at which that can be."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the feed was cut or changed at position {position} or later")
        self.position = position


async def export_if_due(app: App) -> int:
    """Exports the heads into the log and the database, if it is time. One replica does it."""
    if not await app.database.transact(lease_export, app.policy):
        return 0
    try:
        heads = await export_heads(app.database, app.signer, _keep_nothing)
    except TrailBroken as fault:
        app.alarms.trail_broken(fault.position)
        return 0
    app.alarms.heads_exported(heads)
    return 0


def lease_export(tx: Transaction, policy: Policy) -> bool:
    return tx.lease_job("export_heads", policy.heads_seconds)


async def export_heads(
    database: Database,
    signer: Signer | None,
    write: Callable[[EventEntry | RecordEntry], None],
    *,
    whole: bool = False,
) -> Heads:
    """Computes, signs and stores the heads of now. ``write`` gets the entries that were read.

    With ``whole`` all entries are read, and not only those since the last complete block. Raises
    :class:`TrailBroken`.
    """
    kept = () if whole else await database.read(_blocks)
    roots = Roots(events=Tree(kept))
    known = len(roots.events.blocks)
    until = await database.read(_feed_head)
    now = await database.transact(_now)
    await read_events(database, roots, until, write)
    await read_records(database, roots, write)
    if whole:
        _compare_blocks(roots, await database.read(_blocks))
    heads = roots.heads(await database.installation_id(), now)
    if signer is not None:
        signature = signer.sign(heads.signed_bytes)
        heads = replace(heads, key_id=signer.key_id, signature=signature)
    blocks = list(enumerate(roots.events.blocks))[known:]
    await database.transact(store_heads, heads, blocks)
    return heads


def _compare_blocks(roots: Roots, kept: tuple[bytes, ...]) -> None:
    """Raises :class:`TrailBroken` if a block is not what it was when it was complete first."""
    for number, root in enumerate(kept):
        if roots.events.blocks[number : number + 1] != [root]:
            raise TrailBroken(number * BLOCK + 1)


async def read_events(
    database: Database,
    roots: Roots,
    until: int,
    write: Callable[[EventEntry | RecordEntry], None],
) -> None:
    """Adds the events of the feed up to a position. Raises :class:`TrailBroken`."""
    if roots.events.size > until:
        raise TrailBroken(until + 1)
    while (position := roots.events.size) < until:
        page = await database.read(_events, position, until)
        for place, entry in enumerate(page, position + 1):
            if entry.position != place or not entry.hash:
                raise TrailBroken(place)
            roots.add_event(entry)
            write(entry)
        if not page:
            raise TrailBroken(position + 1)


async def read_records(
    database: Database, roots: Roots, write: Callable[[EventEntry | RecordEntry], None]
) -> None:
    """Adds the entries of the lists without a feed."""
    for number in range(_LISTS):
        chain, after = RecordChain(), _BEFORE_ALL
        while True:
            page = await database.read(_records, number, after)
            for record in page:
                entry = chain.next(record)
                roots.add_record(entry)
                write(entry)
            if len(page) < PAGE:
                break
            after = (page[-1].key, page[-1].number)


def store_heads(tx: Transaction, heads: Heads, blocks: list[tuple[int, bytes]]) -> None:
    tx.add_heads(heads, blocks)


def _now(tx: Transaction) -> datetime:
    return tx.now


def _feed_head(reader: Reader) -> int:
    return reader.feed_head()


def _blocks(reader: Reader) -> tuple[bytes, ...]:
    return tuple(reader.head_blocks())


def _events(reader: Reader, after: int, until: int) -> list[EventEntry]:
    return list(reader.head_events(after, until, PAGE))


def _records(reader: Reader, number: int, after: tuple[str, int]) -> list[StoredRecord]:
    return list(reader.head_records(number, after, PAGE))


def _keep_nothing(_: EventEntry | RecordEntry) -> None:
    """Only the roots are wanted."""
