"""Migration of the database to the schema that this code expects."""

from __future__ import annotations

from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url, text

from payment_service.adapters.postgres.connections import plain_url
from payment_service.adapters.postgres.limits import LIMITS
from payment_service.adapters.postgres.roles import grant_to
from payment_service.adapters.postgres.schema import EXPECTED_REVISION, MIGRATIONS, stored_schema

#: The advisory lock that keeps two replicas from migrating at once. Any constant would do.
_MIGRATION_LOCK = 7_205_759_403_792_793


def make_engine(url: str) -> Engine:
    """Returns what Alembic runs on: connections without limits, since a migration takes its time.

    The URL may name a driver or none: SQLAlchemy itself may choose another one than ours.
    """
    return create_engine(
        make_url(plain_url(url)).set(drivername="postgresql+psycopg2"),
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={
            "connect_timeout": 3,
            "tcp_user_timeout": 10_000,
            "application_name": "payment_service",
            "target_session_attrs": "read-write",
        },
    )


def migrate(engine: Engine, *, service_role: str = "", store_limits: bool = False) -> str:
    """Applies the missing migrations and returns the revision. Several calls at once are safe.

    A database that a newer release has migrated is left as it is, its grants included: the newer
    release may serve beside this one.

    All of it is one transaction, so that it leaves no lock behind at a pooler, and nothing half
    done. ``service_role`` gets the grants of the service, if it is another role than the present
    one. ``store_limits`` makes the limits defaults, for a pooler that passes none on.
    """
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        # A migration that waits longer for another one, or for a table, fails and can be repeated.
        connection.execute(text("SET LOCAL lock_timeout = '60s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        revision = _revision(connection)
        if revision > EXPECTED_REVISION:
            return revision
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if service_role:
            grant_to(_driver_of(connection), service_role)
        if store_limits:
            _store_limits(connection, of_database=bool(service_role))
        return _revision(connection)


def _revision(connection: Connection) -> str:
    with _driver_of(connection).cursor() as cursor:
        return str(stored_schema(cursor)[0])


def _driver_of(connection: Connection) -> Any:
    """Returns psycopg2's connection beneath, in the same transaction."""
    return connection.connection.driver_connection


def _store_limits(connection: Connection, *, of_database: bool) -> None:
    """Makes the limits defaults of the present role in this database, or of the database.

    Only an administrator may set the defaults of another role, so the service's role gets them
    from the database.
    """
    name = connection.execute(text("SELECT quote_ident(current_database())")).scalar_one()
    whose = f"DATABASE {name}" if of_database else f"ROLE CURRENT_USER IN DATABASE {name}"
    for setting, value in LIMITS.items():
        connection.execute(text(f"ALTER {whose} SET {setting} = '{value}'"))
