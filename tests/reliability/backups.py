"""A backup of all rows of a database, and the restore of it, while nothing runs.

The rows are kept in a schema of the same database, so that no session has to end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg2
from psycopg2 import sql

#: Triggers keep rows from being deleted; a superuser's session may run without triggers.
_WITHOUT_TRIGGERS = "-c session_replication_role=replica"
_COLUMNS = (
    "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' "
    "AND table_name = %s AND is_generated = 'NEVER' ORDER BY ordinal_position"
)


class Backups:
    """One backup at a time. ``admin_url`` is the superuser's."""

    def __init__(self, admin_url: str) -> None:
        self._admin_url = admin_url

    def take(self) -> None:
        with self._session() as cursor:
            cursor.execute("DROP SCHEMA IF EXISTS backup CASCADE")
            cursor.execute("CREATE SCHEMA backup")
            for table in _tables(cursor):
                cursor.execute(
                    sql.SQL("CREATE TABLE backup.{0} AS TABLE public.{0}").format(
                        sql.Identifier(table)
                    )
                )

    def restore(self) -> None:
        """Puts the rows of the backup in the place of all rows."""
        with self._session() as cursor:
            for table in _tables(cursor):
                cursor.execute(_COLUMNS, (table,))
                names = [sql.Identifier(name) for (name,) in cursor.fetchall()]
                cursor.execute(
                    sql.SQL(
                        "DELETE FROM public.{0}; INSERT INTO public.{0} ({1}) "
                        "OVERRIDING SYSTEM VALUE SELECT {1} FROM backup.{0}"
                    ).format(sql.Identifier(table), sql.SQL(", ").join(names))
                )
            cursor.execute("DROP SCHEMA backup CASCADE")

    @contextlib.contextmanager
    def _session(self) -> Iterator[Any]:
        with (
            contextlib.closing(
                psycopg2.connect(self._admin_url, options=_WITHOUT_TRIGGERS)
            ) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            yield cursor


def _tables(cursor: Any) -> list[str]:
    cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    return [str(name) for (name,) in cursor.fetchall()]
