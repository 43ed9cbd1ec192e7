"""The first schema."""

from alembic import op

from payment_service.migrations.schema import STATEMENTS

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates every table of the service."""
    for statements in STATEMENTS:
        op.execute(statements)


def downgrade() -> None:
    """Refuses: it would delete the books."""
    raise NotImplementedError("the books are never deleted; restore a backup instead")
