"""The schema of the database, applied by ``python -m payment_service migrate`` (Alembic)."""
