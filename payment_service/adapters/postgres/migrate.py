"""Migration of the database to the schema that this code expects."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, text

from payment_service.adapters.postgres.limits import LIMITS
from payment_service.adapters.postgres.schema import MIGRATIONS, stored_schema

#: The advisory lock that keeps two replicas from migrating at once. Any constant would do.
_MIGRATION_LOCK = 7_205_759_403_792_793


def migrate(engine: Engine, *, store_limits: bool = False) -> str:
    """Applies the missing migrations and returns the revision. Several calls at once are safe.

    All of it is one transaction, so that it leaves no lock behind at a pooler, and nothing half
    done. ``store_limits`` makes the limits defaults of the role, for a pooler that passes none on.
    """
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        # A migration that waits longer for another one, or for a table, fails and can be repeated.
        connection.execute(text("SET LOCAL lock_timeout = '60s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if store_limits:
            _store_limits(connection)
        return str(stored_schema(connection)[0])


def _store_limits(connection: Connection) -> None:
    """Makes the limits defaults of the present role in this database."""
    name = connection.execute(text("SELECT quote_ident(current_database())")).scalar_one()
    for setting, value in LIMITS.items():
        connection.execute(
            text(f"ALTER ROLE CURRENT_USER IN DATABASE {name} SET {setting} = '{value}'")
        )
