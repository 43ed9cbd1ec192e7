"""What the heads of the audit trail are computed from, and the heads that were exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from payment_service.adapters.postgres.statements import Statements, TransactionStatements
from payment_service.domain.heads import EventEntry, Heads, StoredRecord

#: The postings of an entry, in an order that does not depend on when they were inserted.
_POSTINGS: Final = (
    "coalesce((SELECT json_agg(json_build_array(l.account, l.currency, l.minor_units, l.kind, "
    'l.balance_transaction_id) ORDER BY l.account COLLATE "C", l.currency, l.minor_units, '
    'l.kind COLLATE "C", l.balance_transaction_id COLLATE "C")::text FROM postings l '
    "WHERE {whose}), '')"
)
_TIME: Final = "to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')"
#: Each of the lists that have no feed: its entries as key, number and texts, in order. An entry
#: never changes once it is there, so pages read at different moments fit together.
_OF_ADJUSTMENTS: Final = (
    "SELECT 'adjustment:' || a.adjustment_id AS key, 1::bigint AS number, ARRAY[a.kind, "
    "coalesce(a.payment_id, ''), coalesce(a.expert_id, ''), a.lines::text, a.ticket, "
    f"a.reason_seal, a.proposed_by, {_TIME.format(time='a.create_time')}, "
    f"{_TIME.format(time='a.expire_time')}] AS parts FROM adjustments a "
    "UNION ALL SELECT 'adjustment:' || a.adjustment_id, 2, ARRAY[a.state, a.decided_by, "
    f"{_TIME.format(time='a.decide_time')}, a.sequence::text, "
    f"{_POSTINGS.format(whose='l.adjustment_id = a.adjustment_id')}] "
    "FROM adjustments a WHERE a.state <> 'PROPOSED'"
)
_OF_EXPERTS: Final = (
    "SELECT 'expert:' || e.expert_id AS key, e.sequence AS number, ARRAY[e.kind, "
    f"{_TIME.format(time='e.time')}, e.body, "
    f"{_POSTINGS.format(whose='l.expert_id = e.expert_id AND l.sequence = e.sequence')}] AS parts "
    "FROM expert_events e"
)
_OF_PLATFORM: Final = (
    "SELECT 'platform_line:' || p.line_id AS key, 1::bigint AS number, ARRAY[p.type, "
    f"p.description, {_TIME.format(time='p.create_time')}, {_TIME.format(time='p.time')}, "
    f"{_POSTINGS.format(whose='l.platform_line_id = p.line_id')}] AS parts FROM platform_lines p"
)
_LISTS: Final = (_OF_ADJUSTMENTS, _OF_EXPERTS, _OF_PLATFORM)
#: How many lists there are, in the order of their keys.
RECORD_LISTS: Final = len(_LISTS)
#: Rows that a restored backup cannot have if it has lost something of that time.
_SURVIVORS: Final = " UNION ALL ".join(
    f"(SELECT '{table}' AS what, {time} AS time FROM {table} "
    f"WHERE {time} > :after AND {time} <= :until LIMIT 1)"
    for table, time in (
        ("operations", "create_time"),
        ("idempotency_keys", "create_time"),
        ("webhook_events", "receive_time"),
        ("expert_events", "time"),
        ("postings", "time"),
        ("movements", "time"),
        ("events", "time"),
        ("adjustments", "create_time"),
        ("exported_heads", "time"),
    )
)


class HeadWrites(TransactionStatements):
    """Stores exported heads."""

    def add_heads(self, heads: Heads, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Stores heads that were exported, and the roots of blocks that are complete now."""
        self._do(
            "INSERT INTO exported_heads (time, events, events_root, records, records_root, "
            "key_id, signature) VALUES (:time, :events, :events_root, :records, :records_root, "
            ":key_id, :signature)",
            time=heads.time,
            events=heads.events,
            events_root=heads.events_root,
            records=heads.records,
            records_root=heads.records_root,
            key_id=heads.key_id,
            signature=heads.signature,
        )
        self._do(
            "INSERT INTO head_blocks (block, root) SELECT * FROM unnest("
            "CAST(:numbers AS bigint[]), CAST(:roots AS bytea[])) ON CONFLICT DO NOTHING",
            numbers=[number for number, _ in blocks],
            roots=[root for _, root in blocks],
        )


class HeadReads(Statements):
    """Reads the trail in the order of the feed, and what else the heads cover."""

    def head_events(self, after: int, until: int, limit: int) -> Sequence[EventEntry]:
        """Returns the entries of the feed after a position. A missing one is left out."""
        found = self._all(
            "SELECT position, feed.payment_id, feed.sequence, events.hash, events.time FROM feed "
            "LEFT JOIN events ON events.payment_id = feed.payment_id "
            "AND events.sequence = feed.sequence "
            "WHERE position > :after AND position <= :until ORDER BY position LIMIT :limit",
            after=after,
            until=until,
            limit=limit,
        )
        return [
            EventEntry(
                row["position"],
                row["payment_id"],
                row["sequence"],
                bytes(row["hash"] or b""),
                row["time"],
            )
            for row in found
        ]

    def head_records(
        self, list_number: int, after: tuple[str, int], limit: int
    ) -> Sequence[StoredRecord]:
        """Returns a page of one of the lists, in the order of keys and numbers."""
        found = self._all(
            f"SELECT * FROM ({_LISTS[list_number]}) AS entries "
            'WHERE (key COLLATE "C", number) > (:key, :number) '
            'ORDER BY key COLLATE "C", number LIMIT :limit',
            key=after[0],
            number=after[1],
            limit=limit,
        )
        return [StoredRecord(row["key"], row["number"], tuple(row["parts"])) for row in found]

    def head_blocks(self) -> Sequence[bytes]:
        """Returns the roots of the complete blocks that are kept, from the first one on."""
        found = self._all("SELECT block, root FROM head_blocks ORDER BY block")
        roots = [bytes(row["root"]) for row in found]
        return roots if [row["block"] for row in found] == list(range(len(found))) else []

    def newest_heads(self) -> Heads | None:
        """Returns the heads that were exported last, or None."""
        row = self._maybe(
            "SELECT exported_heads.*, installation_id FROM exported_heads, installation "
            "ORDER BY heads_id DESC LIMIT 1"
        )
        return row and Heads(
            row["installation_id"],
            row["time"],
            row["events"],
            bytes(row["events_root"]),
            row["records"],
            bytes(row["records_root"]),
            row["key_id"],
            bytes(row["signature"]),
        )

    def position_of(self, payment_id: str, until: int) -> int:
        """Returns the position of the payment's last event up to a position, or 0."""
        row = self._one(
            "SELECT coalesce(max(position), 0) AS position FROM feed "
            "WHERE payment_id = :id AND position <= :until",
            id=payment_id,
            until=until,
        )
        return int(row["position"])

    def event_hashes(self, keys: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], bytes]:
        """Returns the hashes of these events, as far as they exist."""
        found = self._all(
            "SELECT payment_id, sequence, hash FROM events JOIN unnest(CAST(:ids AS text[]), "
            "CAST(:sequences AS bigint[])) AS wanted (payment_id, sequence) "
            "USING (payment_id, sequence)",
            ids=[payment_id for payment_id, _ in keys],
            sequences=[sequence for _, sequence in keys],
        )
        return {(row["payment_id"], row["sequence"]): bytes(row["hash"]) for row in found}

    def waiting_for_feed(self) -> frozenset[tuple[str, int]]:
        """Returns the events that have no position yet."""
        found = self._all("SELECT payment_id, sequence FROM feed_pending")
        return frozenset((row["payment_id"], row["sequence"]) for row in found)

    def survivor(self, after: datetime, until: datetime) -> str:
        """Returns the name of a table with a row of that time, or ""."""
        found = self._all(_SURVIVORS, after=after, until=until)
        return min((str(row["what"]) for row in found), default="")
