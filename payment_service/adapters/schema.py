"""Which schema the database has, and which one this code expects; without Alembic, which takes a
quarter of a second of every start."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text

MIGRATIONS: Final = Path(__file__).parent.parent / "migrations"
#: Migrations are named by their revision, which grows.
EXPECTED_REVISION: Final = max(
    file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")
)


def stored_revision(connection: Connection) -> str:
    """The schema's revision; empty if there is none."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return ""
    sql = "SELECT coalesce(max(version_num), '') FROM alembic_version"
    return str(connection.execute(text(sql)).scalar_one())
