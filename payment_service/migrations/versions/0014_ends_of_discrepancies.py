"""How a discrepancy ends: what is needed to look at it again, and who decided what."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- The balance transaction that it is about, if it is about one.
ALTER TABLE discrepancies ADD COLUMN line_id text NOT NULL DEFAULT '';
UPDATE discrepancies SET line_id = coalesce(substring(detail, ' has (\S+), Stripe does not$'), '')
    WHERE kind = 'missing_at_stripe';
UPDATE discrepancies SET line_id = coalesce(substring(detail, '^(\S+) '), '')
    WHERE kind IN ('missing_in_ledger', 'line_differs', 'unknown_balance_transaction');

-- Who said that it is decided, and what they found; empty of one that was seen to be gone.
ALTER TABLE discrepancies
    ADD COLUMN resolved_by text NOT NULL DEFAULT '',
    ADD COLUMN note text NOT NULL DEFAULT '';

CREATE INDEX open_discrepancies ON discrepancies (discrepancy_id) WHERE resolve_time IS NULL;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
