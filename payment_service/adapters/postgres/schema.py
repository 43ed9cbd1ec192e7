"""The schema's revision: the one in the database, and the one that this code expects.

This module does not import Alembic, because that takes a quarter of a second at every start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text

MIGRATIONS: Final = Path(__file__).parents[2] / "migrations"
#: The name of a migration begins with its revision; the newest has the highest.
EXPECTED_REVISION: Final = max(
    file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")
)


def minimum_writer(connection: Connection) -> int:
    """Returns the oldest writer that may still write, or 0 if the database is not migrated."""
    if connection.execute(text("SELECT to_regclass('releases')")).scalar_one() is None:
        return 0
    return int(connection.execute(text("SELECT minimum_writer FROM releases")).scalar_one())


def stored_revision(connection: Connection) -> str:
    """Returns the revision of the database's schema, or "" if it has none."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return ""
    sql = "SELECT coalesce(max(version_num), '') FROM alembic_version"
    return str(connection.execute(text(sql)).scalar_one())
