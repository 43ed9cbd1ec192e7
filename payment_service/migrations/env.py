"""Alembic's entry point: runs the migrations on the connection that `migrate` passes in."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection)
with context.begin_transaction():
    context.run_migrations()
