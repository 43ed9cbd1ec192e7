"""What lost disputes took of money that the client had been given back before."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- If the refund that gave it back bounces after all, this much of it is not owed to the client.
ALTER TABLE payments
    ADD COLUMN lost_beyond bigint NOT NULL DEFAULT 0 CHECK (lost_beyond >= 0);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
