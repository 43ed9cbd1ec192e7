"""Where each target is in the feed, and which events it has got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from payment_service.relay.cloud_events import Outgoing
from payment_service.relay.store import Sql

#: For how long it is remembered which events were sent: longer than backups are kept.
REMEMBERED: Final = "35 days"


@dataclass(frozen=True)
class Place:
    """A target's cursor, and its name."""

    target: str

    def cursor(self, sql: Sql) -> str:
        """Returns the cursor; empty means the beginning."""
        rows = sql.all("SELECT cursor FROM cursors WHERE target = %s", self.target)
        return str(rows[0][0]) if rows else ""

    def knows(self, sql: Sql, event: Outgoing) -> bool:
        """Returns whether the target has this event already."""
        [known] = sql.one(
            "SELECT EXISTS (SELECT FROM sent WHERE target = %s AND event_id = %s) OR EXISTS "
            "(SELECT FROM cursors WHERE target = %s AND known_before > %s)",
            *(self.target, event.id, self.target, event.record_time),
        )
        return bool(known)

    def move(self, sql: Sql, event: Outgoing, cursor: str) -> None:
        """Records that the target has the event, and moves the cursor behind it."""
        sql.do(
            "INSERT INTO sent (target, event_id, record_time) VALUES (%s, %s, %s) "
            "ON CONFLICT DO NOTHING",
            *(self.target, event.id, event.record_time),
        )
        sql.do(
            "INSERT INTO cursors (target, cursor, record_time) VALUES (%s, %s, %s) "
            "ON CONFLICT (target) DO UPDATE SET cursor = EXCLUDED.cursor, "
            "record_time = greatest(cursors.record_time, EXCLUDED.record_time)",
            *(self.target, cursor, event.record_time),
        )

    def rewind(self, sql: Sql) -> None:
        """Returns to the beginning, after the feed was restored.

        What is too old to be remembered was sent long ago, unless this target was that far behind.
        """
        sql.do(
            "UPDATE cursors SET cursor = '', known_before = "
            "least(now() - %s::interval, record_time - interval '1 hour') WHERE target = %s",
            *(REMEMBERED, self.target),
        )


def forget(sql: Sql, endpoints: Sequence[str]) -> None:
    """Deletes what no longer serves to recognise an event, and what removed endpoints never got."""
    sql.do(
        "DELETE FROM sent WHERE greatest(sent_time, record_time) < now() - %s::interval", REMEMBERED
    )
    sql.do(
        "DELETE FROM deliveries WHERE (state = 'DELIVERED' OR endpoint <> ALL (%s)) "
        "AND greatest(attempt_time, record_time) < now() - %s::interval",
        *(list(endpoints), REMEMBERED),
    )
