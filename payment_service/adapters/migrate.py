"""Bring the database to the schema that this code expects."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

from payment_service.adapters.schema import MIGRATIONS, stored_revision

#: Two replicas that start together must not migrate together. Any constant will do.
_MIGRATION_LOCK = 7_205_759_403_792_793


def migrate(engine: Engine) -> str:
    """Apply what is missing and return the revision. Safe to run from several places at once."""
    with engine.connect() as connection:
        # A session lock, for it must outlive the migrations' own transactions.
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        connection.commit()
        try:
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
            return stored_revision(connection)
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _MIGRATION_LOCK})
            connection.commit()
