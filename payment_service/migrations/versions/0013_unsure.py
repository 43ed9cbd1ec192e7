"""Until when a parked operation may still take effect at Stripe."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- Null where Stripe has answered each of its requests, or was sent none: nothing is on its way.
ALTER TABLE operations ADD COLUMN unsure_until timestamptz;
-- Of what was parked before, nobody knows when it was sent last.
UPDATE operations SET unsure_until = now() + interval '61 seconds'
    WHERE state = 'PARKED' AND tries > 0;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
