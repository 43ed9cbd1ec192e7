"""The limits of every session: no statement, lock or idle transaction can hold others up for long.

A direct connection asks for them itself. A pooler in transaction mode passes them on for nobody, so
there they are defaults of the role (``migrate`` stores them), and readiness checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from psycopg2 import extensions

#: The settings of a session, in PostgreSQL's own names.
LIMITS: Final[Mapping[str, str]] = {
    "statement_timeout": "5s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "10s",
    "timezone": "UTC",
}
#: The same as the ``options`` of a connection.
OPTIONS: Final = " ".join(f"-c {name}={value}" for name, value in LIMITS.items())
_MISSING: Final = (
    "SELECT coalesce(string_agg(name, ', ' ORDER BY name), '') FROM pg_settings "
    "WHERE setting = '0' AND name IN "
    "('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout')"
)


def missing_limits(cursor: extensions.cursor) -> str:
    """Returns the names of the limits that are not in force, or ""."""
    cursor.execute(_MISSING)
    ((missing,),) = cursor.fetchall()
    return str(missing)
