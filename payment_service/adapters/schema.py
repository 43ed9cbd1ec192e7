"""Bring the database to the schema that this code expects."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

#: Two replicas that start together must not migrate together. Any constant will do.
_MIGRATION_LOCK = 7_205_759_403_792_793


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
    return config


def migrate(engine: Engine) -> str:
    """Apply what is missing and return the revision. Safe to run from several places at once."""
    with engine.connect() as connection:
        # A session lock, for it must outlive the migrations' own transactions.
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        connection.commit()
        try:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
            return revision(connection)
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _MIGRATION_LOCK})
            connection.commit()


def revision(connection: Connection) -> str:
    """The schema's revision; empty if there is none."""
    return MigrationContext.configure(connection).get_current_revision() or ""


def expected_revision() -> str:
    """The newest revision that this code carries."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""
