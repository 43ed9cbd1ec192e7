"""The columns that the service derives when it writes a row, for tests that write rows by SQL."""

from __future__ import annotations

from typing import Final

import psycopg2.extensions
import psycopg2.extras

from payment_service.adapters.postgres import rows
from payment_service.domain.ports.policy import Policy
from payment_service.domain.schedule import SCHEDULE_COLUMNS, schedule_of

_SCHEDULE: Final = ", ".join(f"{name} = %({name})s" for name in SCHEDULE_COLUMNS)


def derive_columns(connection: psycopg2.extensions.connection, policy: Policy) -> None:
    """Computes the derived columns of all payments, experts and disputes again."""
    with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
        cursor.execute("SELECT * FROM payments")
        for row in cursor.fetchall():
            values = rows.schedule_values(schedule_of(rows.payment_of(row), policy))
            cursor.execute(
                f"UPDATE payments SET {_SCHEDULE} WHERE payment_id = %(payment_id)s",  # noqa: S608
                {**values, "payment_id": row["payment_id"]},
            )
        cursor.execute("SELECT * FROM experts")
        for row in cursor.fetchall():
            cursor.execute(
                "UPDATE experts SET status = %s WHERE expert_id = %s",
                (rows.expert_of(row).status.value, row["expert_id"]),
            )
        cursor.execute("SELECT * FROM disputes")
        for row in cursor.fetchall():
            cursor.execute(
                "UPDATE disputes SET unsettled = %s WHERE dispute_id = %s",
                (rows.dispute_of(row).unsettled, row["dispute_id"]),
            )
