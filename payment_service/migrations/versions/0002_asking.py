"""What is asked for because nobody told us: lists of events, quiet payments."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- Whose list of events is read next, and how far it was read: the platform's, or an account's.
CREATE TABLE watches (
    scope text PRIMARY KEY,
    seen_until timestamptz NOT NULL,
    after_event_id text NOT NULL DEFAULT '',
    next_time timestamptz NOT NULL
);
INSERT INTO watches (scope, seen_until, next_time) VALUES ('platform', now(), now());
INSERT INTO watches (scope, seen_until, next_time)
    SELECT stripe_account_id, now(), now() FROM experts WHERE stripe_account_id IS NOT NULL;

-- When an open payment is asked about next.
CREATE TABLE payment_asks (
    payment_id text PRIMARY KEY REFERENCES payments,
    next_time timestamptz NOT NULL
);
CREATE INDEX payments_open ON payments (update_time)
    WHERE state IN ('PENDING', 'FAILED', 'IN_ESCROW');
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute("DROP TABLE watches; DROP TABLE payment_asks; DROP INDEX payments_open;")
