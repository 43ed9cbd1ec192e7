"""The schema's revision: the one in the database, and the one that this code expects.

This module does not import Alembic, because that takes a quarter of a second at every start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from psycopg2 import extensions

MIGRATIONS: Final = Path(__file__).parents[2] / "migrations"
#: The name of a migration begins with its revision; the newest has the highest.
EXPECTED_REVISION: Final = max(
    file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")
)


_TABLES: Final = (
    "SELECT to_regclass('alembic_version') IS NOT NULL, to_regclass('releases') IS NOT NULL"
)


def stored_schema(cursor: extensions.cursor, *also: str, migrated: bool = False) -> tuple[Any, ...]:
    """Returns the revision of the database's schema, the oldest writer that may still write, and
    what these expressions say ``also``.

    The first two are "" and 0 if the database is not migrated. If it is known to be ``migrated``,
    this is one statement.
    """
    has_revision, has_writer = True, True
    if not migrated:
        cursor.execute(_TABLES)
        ((has_revision, has_writer),) = cursor.fetchall()
    revision = "(SELECT max(version_num) FROM alembic_version)" if has_revision else "NULL"
    writer = "(SELECT minimum_writer FROM releases)" if has_writer else "0"
    cursor.execute("SELECT " + ", ".join((f"coalesce({revision}, '')", writer, *also)))
    (stored,) = cursor.fetchall()
    return tuple(stored)
