"""A backup of a world's database, and the restore of it: the database is older than Stripe then."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2 import sql

from dev.postgres import EmbeddedPostgres
from tests.support.world import World

_TRIES = 5


@dataclass(frozen=True)
class Backup:
    """A copy of a world's database as it was at one moment."""

    postgres: EmbeddedPostgres
    name: str

    async def restore(self, world: World, *, loops: bool = False) -> None:
        """Puts the copy in the place of the world's database, while no service runs.

        Without ``loops`` nothing reads Stripe before the test's own calls.
        """
        assert world.service is not None
        await world.service.stop()
        world.close()
        database = world.database_url.rpartition("/")[2]
        _end_sessions(self.postgres, database)
        self.postgres.drop_database(database)
        # The copy is needed no more, and another one would cost as much as the rest of a test.
        rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
        names = map(sql.Identifier, (self.name, database))
        with _administration(self.postgres) as cursor:
            cursor.execute(rename.format(*names))
        await world.service.start(loops=loops)
        await world.channel.channel_ready()


async def back_up(postgres: EmbeddedPostgres, world: World, *, loops: bool = False) -> Backup:
    """Copies the world's database."""
    assert world.service is not None
    await world.service.stop()
    world.close()
    database, name = world.database_url.rpartition("/")[2], f"backup_{secrets.token_hex(4)}"
    _copy(postgres, database, name)
    await world.service.start(loops=loops)
    await world.channel.channel_ready()
    return Backup(postgres, name)


def _copy(postgres: EmbeddedPostgres, source: str, target: str) -> None:
    """Copies a database, which needs a moment without sessions; one that is ended can be slow."""
    for _ in range(_TRIES):
        _end_sessions(postgres, source)
        with contextlib.suppress(psycopg2.errors.ObjectInUse):
            postgres.create_database(target, template=source)
            return
    raise AssertionError(f"{source} is never without sessions")


def _end_sessions(postgres: EmbeddedPostgres, database: str) -> None:
    with _administration(postgres) as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity "
            "WHERE datname = %s AND pid <> pg_backend_pid()",
            (database,),
        )


@contextlib.contextmanager
def _administration(postgres: EmbeddedPostgres) -> Iterator[Any]:
    with contextlib.closing(psycopg2.connect(postgres.admin_url("postgres"))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor
