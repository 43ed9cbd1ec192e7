"""Migrated databases, as many as the tests need: copied from a template once, then used again.

A copy is some 300 files, which costs more than many a test. So a database that a test has given
back is emptied and given to the next test, unless the test changed its schema.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg2
from psycopg2 import sql

from dev.postgres import EmbeddedPostgres

#: Triggers keep rows from being deleted; a superuser's session may run without triggers.
_WITHOUT_TRIGGERS = "-c session_replication_role=replica -c lock_timeout=2s"
#: Deleted rows stay in the files, since nothing vacuums them.
_USES = 30
#: Tables, columns, indexes, triggers, constraints and functions, each with what can be altered.
_SCHEMA = """
SELECT md5(string_agg(line, E'\n' ORDER BY line)) FROM (
    SELECT concat_ws(' ', relname, relkind, reloptions, relacl) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', attrelid::regclass, attname, atttypid, attnotnull, attisdropped)
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        WHERE relnamespace = 'public'::regnamespace AND attnum > 0
    UNION ALL SELECT concat_ws(' ', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
    UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, convalidated) FROM pg_constraint
    UNION ALL SELECT concat_ws(' ', proname, md5(prosrc)) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT array_to_string(setconfig, ' ') FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    UNION ALL SELECT nspname FROM pg_namespace
        WHERE nspname NOT LIKE 'pg\\_t%'
) AS parts (line)
"""

#: The migrations began to read Stripe's events when the template was made.
_SEEN_UNTIL_NOW = "UPDATE event_cursors SET seen_until = now()"


class Databases:
    """The databases of one server. Not for several threads at once."""

    def __init__(self, server: EmbeddedPostgres, template: str) -> None:
        self._server = server
        self._template = template
        self._numbers = itertools.count(1)
        self._free: list[str] = []
        self._uses: Counter[str] = Counter()
        self._seeds: dict[str, list[tuple[Any, ...]]] = {}
        with self._session(template) as cursor:
            self._schema = _schema(cursor)
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
            self._tables = [str(name) for (name,) in cursor.fetchall()]
            deletions = [
                sql.SQL("DELETE FROM {};").format(sql.Identifier(name)) for name in self._tables
            ]
            cursor.execute("SELECT sequencename, start_value FROM pg_sequences ORDER BY 1")
            restarts = [
                sql.SQL("SELECT setval({}, {}, false);").format(
                    sql.Literal(name), sql.Literal(start)
                )
                for name, start in cursor.fetchall()
            ]
            self._empty = sql.Composed([*deletions, *restarts])
            for table in self._tables:
                cursor.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
                if rows := cursor.fetchall():
                    self._seeds[table] = rows

    def take(self) -> str:
        """Returns the URL of a database that holds what the migrations wrote, and nothing else."""
        while self._free:
            name = self._free.pop()
            self._uses[name] += 1
            if self._uses[name] < _USES and self._emptied(name):
                return self._server.url(name)
            with contextlib.suppress(psycopg2.Error):
                self._server.drop_database(name)
        name = f"test_{next(self._numbers)}"
        url = self._server.create_database(name, template=self._template)
        with self._session(name) as cursor:
            cursor.execute(_SEEN_UNTIL_NOW)
        return url

    def give_back(self, url: str) -> None:
        """Ends the sessions that are still open; this database is not used any more."""
        self._free.append(url.rpartition("/")[2])

    def _emptied(self, name: str) -> bool:
        """Whether the database is as new; not so if its schema was changed or a lock is held."""
        try:
            with self._session(name) as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                if _schema(cursor) != self._schema:
                    return False
                # Quicker than TRUNCATE, which makes new files for every table and index.
                cursor.execute(self._empty)
                for table, rows in self._seeds.items():
                    values = sql.SQL(", ").join(sql.Placeholder() for _ in rows[0])
                    insert = sql.SQL("INSERT INTO {} OVERRIDING SYSTEM VALUE VALUES ({})")
                    cursor.executemany(insert.format(sql.Identifier(table), values), rows)
                cursor.execute(_SEEN_UNTIL_NOW)
        except psycopg2.Error:
            return False
        return True

    @contextlib.contextmanager
    def _session(self, name: str) -> Iterator[Any]:
        url = self._server.admin_url(name)
        with (
            contextlib.closing(psycopg2.connect(url, options=_WITHOUT_TRIGGERS)) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            yield cursor


def _schema(cursor: Any) -> str:
    cursor.execute(_SCHEMA)
    [(found,)] = cursor.fetchall()
    return str(found)
