"""Alembic migrations, applied by ``python -m payment_service migrate``."""
