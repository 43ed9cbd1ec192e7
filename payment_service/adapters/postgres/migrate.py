"""Migration of the database to the schema that this code expects."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

from payment_service.adapters.postgres.schema import MIGRATIONS, stored_revision

#: The advisory lock that keeps two replicas from migrating at once. Any constant would do.
_MIGRATION_LOCK = 7_205_759_403_792_793


def migrate(engine: Engine) -> str:
    """Applies the missing migrations and returns the revision. Several calls at once are safe."""
    with engine.connect() as connection:
        # A session lock, because each migration commits its own transaction.
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
