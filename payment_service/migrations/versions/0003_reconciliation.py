"""Discrepancies with amounts, cures and an end; jobs that one replica does at a time."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- What Stripe moved on an account of its own (a payout, a fee) belongs to no payment.
ALTER TABLE discrepancies
    ALTER COLUMN payment_id DROP NOT NULL,
    ADD COLUMN expected bigint,
    ADD COLUMN found bigint,
    ADD COLUMN currency text NOT NULL DEFAULT '',
    ADD COLUMN cure text NOT NULL DEFAULT '',
    ADD COLUMN last_seen_time timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN resolve_time timestamptz,
    DROP CONSTRAINT discrepancies_payment_id_kind_detail_key,
    ADD CONSTRAINT a_discrepancy_is_kept_once UNIQUE NULLS NOT DISTINCT (payment_id, kind, detail);

-- What is done every so often, by whichever replica comes first.
CREATE TABLE jobs (
    name text PRIMARY KEY,
    next_time timestamptz NOT NULL
);

CREATE INDEX payments_by_change ON payments (update_time, payment_id);
CREATE INDEX postings_by_line ON postings (balance_transaction_id)
    WHERE balance_transaction_id <> '';
CREATE INDEX postings_by_time ON postings (time);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
