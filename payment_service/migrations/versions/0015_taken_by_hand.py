"""What hands at Stripe's dashboard took from experts before it was owed."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- Negative where they gave more than they took. What hands did before stays in `losses`, of which
-- somebody decides: a row is under its last event's hash, so that only zero can be added to it.
ALTER TABLE payments ADD COLUMN taken_by_hand bigint NOT NULL DEFAULT 0;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
