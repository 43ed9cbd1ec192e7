"""What is needed to name a payment of which somebody has removed the row."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- A discrepancy may be that the payment is gone.
ALTER TABLE discrepancies DROP CONSTRAINT discrepancies_payment_id_fkey;

-- Rows without a payment are looked for by time; these tables grow in its order.
CREATE INDEX events_by_time ON events USING brin (time);
CREATE INDEX movements_by_time ON movements USING brin (time);
CREATE INDEX claims_by_time ON claims USING brin (create_time);
CREATE INDEX operations_by_time ON operations USING brin (create_time);

CREATE TRIGGER movements_are_never_truncated BEFORE TRUNCATE ON movements
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payments_are_never_truncated BEFORE TRUNCATE ON payments
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
