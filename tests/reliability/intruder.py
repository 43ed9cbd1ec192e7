"""A superuser's session in which no trigger fires, and the means to undo what it did."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg2

_TABLES: Final = (
    "payments events texts feed_pending feed postings movements operations idempotency_keys "
    "discrepancies expert_events adjustments platform_lines disputes"
).split()


@dataclass
class Intruder:
    """Statements at once, and what there is of a payment to work on."""

    connection: Any
    chance: random.Random

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(query, values)
            return list(cursor.fetchall()) if cursor.description else []

    def keep(self) -> None:
        """Remember everything as it is now, and drop what the schema itself would refuse by."""
        for (check,) in self.sql(
            "SELECT quote_ident(conname) FROM pg_constraint "
            "WHERE conrelid = 'payments'::regclass AND contype = 'c'"
        ):
            self.sql(f"ALTER TABLE payments DROP CONSTRAINT {check}")
        self.sql("CREATE SCHEMA kept")
        for table in _TABLES:
            self.sql(f"CREATE TABLE kept.{table} AS TABLE {table}")

    def changed(self) -> bool:
        return any(
            self.sql(
                f"(TABLE {table} EXCEPT ALL TABLE kept.{table}) UNION ALL "
                f"(TABLE kept.{table} EXCEPT ALL TABLE {table}) LIMIT 1"
            )
            for table in _TABLES
            if table != "discrepancies"
        )

    def undo(self) -> None:
        cleared = "".join(f"DELETE FROM {table};" for table in _TABLES)  # noqa: S608 - ours
        restored = "".join(
            f"INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE kept.{table};" for table in _TABLES
        )
        self.sql(f"BEGIN; {cleared} {restored} COMMIT")

    # ---- what there is of a payment ----

    def events(self, payment_id: str) -> list[tuple[Any, ...]]:
        """Sequence, kind, time, body and hash of each."""
        return self.sql(
            "SELECT sequence, kind, time, body, hash FROM events WHERE payment_id = %s "
            "ORDER BY sequence",
            payment_id,
        )

    def event(self, payment_id: str) -> int:
        """The sequence of one of its events."""
        return int(self.chance.choice(self.events(payment_id))[0])

    def lines(self, payment_id: str) -> list[tuple[Any, ...]]:
        """Posting, sequence and currency of each line."""
        return self.sql(
            "SELECT posting_id, sequence, currency FROM postings WHERE payment_id = %s "
            "ORDER BY posting_id",
            payment_id,
        )

    def movement(self, payment_id: str) -> str:
        """One of its movements; empty if it has none."""
        found = self.sql(
            "SELECT movement_id FROM movements WHERE payment_id = %s ORDER BY 1", payment_id
        )
        return str(self.chance.choice(found)[0]) if found else ""

    def another(self, payment_id: str) -> str:
        others = self.sql(
            "SELECT payment_id FROM payments WHERE payment_id <> %s ORDER BY 1", payment_id
        )
        return str(self.chance.choice(others)[0])

    def edit_event(self, payment_id: str, change: str, *values: object) -> Sequence[str]:
        self.sql(
            f"UPDATE events SET {change} WHERE payment_id = %s AND sequence = %s",  # noqa: S608
            *values,
            payment_id,
            self.event(payment_id),
        )
        return [payment_id]

    def edit_line(self, payment_id: str, change: str, *values: object) -> Sequence[str]:
        lines = self.lines(payment_id)
        if not lines:
            return []
        line = self.chance.choice(lines)[0]
        self.sql(f"UPDATE postings SET {change} WHERE posting_id = %s", *values, line)  # noqa: S608
        return [payment_id]

    def edit_payment(self, payment_id: str, change: str, *values: object) -> Sequence[str]:
        self.sql(f"UPDATE payments SET {change} WHERE payment_id = %s", *values, payment_id)  # noqa: S608
        return [payment_id]


@contextlib.contextmanager
def intruding(admin_url: str, chance: random.Random) -> Iterator[Intruder]:
    options = "-c session_replication_role=replica -c timezone=UTC"
    with contextlib.closing(psycopg2.connect(admin_url, options=options)) as connection:
        connection.autocommit = True
        yield Intruder(connection, chance)
