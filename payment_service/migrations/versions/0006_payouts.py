"""Payouts, and postings that hang on an expert's event where there is no payment."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- A connected account's payout to its bank, as Stripe last showed it.
CREATE TABLE payouts (
    payout_id text PRIMARY KEY,
    expert_id text NOT NULL REFERENCES experts,
    stripe_account_id text NOT NULL,
    -- Negative where Stripe takes from the bank what the account owes.
    minor_units bigint NOT NULL,
    currency char(3) NOT NULL,
    state text NOT NULL CHECK (state IN (
        'PENDING', 'IN_TRANSIT', 'PAID', 'FAILED', 'CANCELED', 'UNKNOWN')),
    automatic boolean NOT NULL,
    arrival_time timestamptz NOT NULL,
    failure_code text NOT NULL,
    -- The lines that are in the books.
    balance_transaction_id text NOT NULL,
    failure_balance_transaction_id text NOT NULL,
    version bigint NOT NULL CHECK (version >= 1),
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL
);
CREATE INDEX payouts_by_expert ON payouts (expert_id, create_time DESC, payout_id DESC);
CREATE UNIQUE INDEX a_payout_is_booked_once ON payouts (balance_transaction_id)
    WHERE balance_transaction_id <> '';
CREATE UNIQUE INDEX a_payout_is_returned_once ON payouts (failure_balance_transaction_id)
    WHERE failure_balance_transaction_id <> '';

CREATE FUNCTION refuse_rewriting_payout() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.payout_id, OLD.expert_id, OLD.stripe_account_id, OLD.minor_units, OLD.currency,
        OLD.create_time)
       IS DISTINCT FROM
       (NEW.payout_id, NEW.expert_id, NEW.stripe_account_id, NEW.minor_units, NEW.currency,
        NEW.create_time)
       OR NEW.version <> OLD.version + 1
       OR OLD.balance_transaction_id NOT IN ('', NEW.balance_transaction_id)
       OR OLD.failure_balance_transaction_id NOT IN ('', NEW.failure_balance_transaction_id)
    THEN
        RAISE EXCEPTION 'a payout is not rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER payouts_are_not_rewritten BEFORE UPDATE ON payouts
    FOR EACH ROW EXECUTE FUNCTION refuse_rewriting_payout();
CREATE TRIGGER payouts_are_kept BEFORE DELETE ON payouts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payouts_are_never_truncated BEFORE TRUNCATE ON payouts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A posting hangs on an event of a payment, or of an expert: a payout has no payment.
ALTER TABLE postings
    ALTER COLUMN payment_id DROP NOT NULL,
    ADD COLUMN expert_id text,
    ADD FOREIGN KEY (expert_id, sequence) REFERENCES expert_events,
    ADD CONSTRAINT of_a_payments_event_or_an_experts
        CHECK ((payment_id IS NULL) <> (expert_id IS NULL));
CREATE INDEX postings_by_expert ON postings (expert_id, posting_id) WHERE expert_id IS NOT NULL;

CREATE OR REPLACE FUNCTION refuse_imbalance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM new_postings
        GROUP BY payment_id, expert_id, sequence, currency HAVING sum(minor_units) <> 0
    ) THEN
        RAISE EXCEPTION 'postings do not sum to zero' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;

-- Whose account may pay out soon, so that its list of events is read.
CREATE INDEX payments_captured ON payments (expert_id, capture_time)
    WHERE capture_time IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
