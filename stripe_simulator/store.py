"""Where every object lives: in memory, and in an SQLite file when one is named.

Rows are never edited in place. A change puts a new row in the old one's stead, so that a refused
request is undone by putting old rows back. What a request changed is committed to the file before
its answer leaves, so that killing the process loses nothing that a caller was told. The file is a
journal, one entry for each request with the rows as they became: a single insert at the end of a
table costs a tenth of finding and rewriting a dozen rows. It is written anew at every start.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# Fields by which rows are found. None of them changes once a row is there.
INDEXES: dict[str, tuple[str, ...]] = {
    "charge": ("_account", "payment_intent", "transfer_group"),
    "refund": ("_account", "charge", "payment_intent"),
    "transfer": ("_account", "destination", "transfer_group", "source_transaction"),
    "transfer_reversal": ("_account", "transfer"),
    "application_fee": ("_account", "charge", "originating_transaction"),
    "fee_refund": ("_account", "fee"),
    "balance_transaction": ("_account", "source", "type"),
    "dispute": ("_account", "charge", "payment_intent"),
    "radar.early_fraud_warning": ("_account", "charge", "payment_intent"),
    "payout": ("_account", "destination"),
    "event": ("_account", "type"),
    "thin_event": ("_account", "_object"),
    "delivery": ("event",),
}
DEFAULT_INDEX = ("_account",)


def _sequence(row: Row) -> int:
    return int(row["_sequence"])


class Store:
    def __init__(self, path: Path | None = None) -> None:
        self._tables: defaultdict[str, dict[str, Row]] = defaultdict(dict)
        self._indexes: defaultdict[tuple[str, str, Any], list[str]] = defaultdict(list)
        self._undo: dict[tuple[str, str], Row | None] = {}
        self._sequence = 0
        self._database: sqlite3.Connection | None = None
        if path is not None:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            # A commit in WAL mode reaches the operating system, which survives our being killed
            # (though not the machine's loss of power, against which a stand-in need not guard).
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS journal (entry INTEGER PRIMARY KEY, body TEXT NOT NULL)"
            )
            self._load(self._database)

    def _load(self, database: sqlite3.Connection) -> None:
        """Play the journal back, then shorten it to the rows that are left."""
        for (body,) in database.execute("SELECT body FROM journal ORDER BY entry"):
            for kind, id_, row in json.loads(body):
                if row is None:
                    self._tables[kind].pop(id_, None)
                else:
                    self._tables[kind][id_] = row
        database.execute("BEGIN")
        database.execute("DELETE FROM journal")
        for kind, table in self._tables.items():
            for id_, row in table.items():
                self._sequence = max(self._sequence, _sequence(row))
                self._write(database, [(kind, id_, row)])
                for key in self._index_keys(kind, row):
                    self._indexes[key].append(id_)
        database.execute("COMMIT")

    @staticmethod
    def _write(database: sqlite3.Connection, rows: list[tuple[str, str, Row | None]]) -> None:
        body = json.dumps(rows, separators=(",", ":"))
        database.execute("INSERT INTO journal (body) VALUES (?)", (body,))

    @staticmethod
    def _index_keys(kind: str, row: Row) -> Iterator[tuple[str, str, Any]]:
        for field in INDEXES.get(kind, DEFAULT_INDEX):
            value = row.get(field)
            if value is not None:
                yield kind, field, value

    def get(self, kind: str, id_: str) -> Row | None:
        return self._tables[kind].get(id_)

    def require(self, kind: str, id_: str) -> Row:
        """A row that our own rows say is there."""
        return self._tables[kind][id_]

    def insert(self, kind: str, row: Row) -> Row:
        id_ = row["id"]
        self._sequence += 1
        row = {**row, "_sequence": self._sequence}
        self._undo.setdefault((kind, id_), None)
        self._tables[kind][id_] = row
        for key in self._index_keys(kind, row):
            self._indexes[key].append(id_)
        return row

    def change(self, kind: str, id_: str, **fields: Any) -> Row:
        before = self._tables[kind][id_]
        self._undo.setdefault((kind, id_), before)
        row = {**before, **fields}
        self._tables[kind][id_] = row
        return row

    def put(self, kind: str, id_: str, **fields: Any) -> Row:
        """Insert or replace a row of the simulator's own, such as the clock."""
        if id_ in self._tables[kind]:
            return self.change(kind, id_, **fields)
        return self.insert(kind, {"id": id_, **fields})

    def remove(self, kind: str, id_: str) -> None:
        row = self._tables[kind][id_]
        self._undo.setdefault((kind, id_), row)
        self._drop(kind, row)

    def all(self, kind: str) -> list[Row]:
        """Every row of a kind, oldest first."""
        return list(self._tables[kind].values())

    def first(self, kind: str, number: int) -> list[Row]:
        """The oldest few rows of a kind."""
        return list(islice(self._tables[kind].values(), number))

    def count(self, kind: str) -> int:
        return len(self._tables[kind])

    def select(
        self,
        kind: str,
        where: dict[str, Any],
        *,
        before: int | None = None,
        after: int | None = None,
        oldest_first: bool = False,
    ) -> Iterator[Row]:
        """Rows whose fields have the given values, newest first, between two sequence numbers."""
        table = self._tables[kind]
        indexed = INDEXES.get(kind, DEFAULT_INDEX)
        usable = [name for name in where if name in indexed]
        ids: list[str]
        if usable:
            ids = min((self._indexes.get((kind, n, where[n]), []) for n in usable), key=len)
        else:
            ids = list(table)
        low, high = 0, len(ids)
        if after is not None:
            low = bisect_right(ids, after, key=lambda id_: _sequence(table[id_]))
        if before is not None:
            high = bisect_left(ids, before, key=lambda id_: _sequence(table[id_]))
        positions = range(low, high) if oldest_first else range(high - 1, low - 1, -1)
        for position in positions:
            row = table[ids[position]]
            if all(row.get(name) == value for name, value in where.items()):
                yield row

    def commit(self) -> None:
        """Make what changed since the last commit permanent."""
        if self._database is not None and self._undo:
            rows = [(kind, id_, self._tables[kind].get(id_)) for kind, id_ in self._undo]
            self._write(self._database, rows)
        self._undo.clear()

    @property
    def changed(self) -> bool:
        return bool(self._undo)

    def rollback(self) -> None:
        """Undo what changed since the last commit."""
        for (kind, id_), before in reversed(self._undo.items()):
            current = self._tables[kind].get(id_)
            if before is None:
                if current is not None:
                    self._drop(kind, current)
            elif current is not None:
                # Indexed fields never change, so the row only has to be put back in its place.
                self._tables[kind][id_] = before
            else:
                self._reinsert(kind, before)
        self._undo.clear()

    def _drop(self, kind: str, row: Row) -> None:
        del self._tables[kind][row["id"]]
        for key in self._index_keys(kind, row):
            self._indexes[key].remove(row["id"])

    def _reinsert(self, kind: str, row: Row) -> None:
        """Bring a removed row back to where it was: tables and indexes are oldest first."""
        rows = sorted([*self._tables[kind].values(), row], key=_sequence)
        self._tables[kind] = {one["id"]: one for one in rows}
        for key in self._index_keys(kind, row):
            self._indexes[key].append(row["id"])
            self._indexes[key].sort(key=lambda id_: _sequence(self._tables[kind][id_]))

    def clear(self) -> None:
        """Forget everything (`POST /_simulator/reset`)."""
        self._tables.clear()
        self._indexes.clear()
        self._undo.clear()
        self._sequence = 0
        if self._database is not None:
            self._database.execute("DELETE FROM journal")

    def close(self) -> None:
        if self._database is not None:
            self.commit()
            self._database.close()
            self._database = None
