"""Turns: what a loop has looked at stands behind what it has not. And whose the rest is."""

from alembic import op

revision = "0012"
down_revision = "0011"
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

-- Of payments that are there already it is not filled in: their events vouch for the row as it is.
ALTER TABLE payments
    ADD COLUMN rest_goes_back boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT a_rest_was_charged CHECK (NOT rest_goes_back OR charged > 0);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
