"""The limits of every session: no statement, lock or idle transaction can hold others up for long.

A direct connection asks for them itself. A pooler in transaction mode passes them on for nobody, so
there they are defaults of the role (``migrate`` stores them), and readiness checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: The settings of a session, in PostgreSQL's own names.
LIMITS: Final[Mapping[str, str]] = {
    "statement_timeout": "5s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "10s",
    "timezone": "UTC",
}
#: The same as the ``options`` of a connection.
OPTIONS: Final = " ".join(f"-c {name}={value}" for name, value in LIMITS.items())
#: SQL for the names of the limits that are not in force, or an empty text.
MISSING_LIMITS: Final = "concat_ws(', ', {})".format(
    ", ".join(
        f"CASE WHEN current_setting('{name}') = '0' THEN '{name}' END"
        for name in sorted(LIMITS)
        if name.endswith("_timeout")
    )
)
