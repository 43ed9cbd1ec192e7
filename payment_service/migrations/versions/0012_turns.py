"""Turns: what a loop has looked at stands behind what it has not."""

from alembic import op

revision = "0012"
down_revision = "0010"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- When a loop looks at a payment again, and how long it then rests. Without a foreign key: a turn
-- is taken while somebody else may hold the payment's lock.
CREATE TABLE turns (
    work text NOT NULL,
    payment_id text NOT NULL,
    pause interval NOT NULL,
    next_time timestamptz NOT NULL,
    PRIMARY KEY (work, payment_id)
);
CREATE INDEX turns_over ON turns (next_time);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
