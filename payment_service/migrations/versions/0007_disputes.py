"""Disputes, what they freeze and what they take."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SCHEMA = r"""
ALTER TABLE payments
    -- What disputes and warnings forbid now, and by which of them.
    ADD COLUMN frozen text NOT NULL DEFAULT 'NONE'
        CONSTRAINT a_known_freeze
        CHECK (frozen IN ('NONE', 'FRAUD_WARNING', 'INQUIRY', 'CHARGEBACK')),
    ADD COLUMN frozen_by text NOT NULL DEFAULT '',
    ADD COLUMN fraud_warning_id text NOT NULL DEFAULT '',
    -- What lost disputes took: out of escrow, and of what had been captured.
    ADD COLUMN lost_held bigint NOT NULL DEFAULT 0 CHECK (lost_held BETWEEN 0 AND amount),
    ADD COLUMN lost bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT what_was_charged_is_somewhere,
    DROP CONSTRAINT captured_when_it_says_so,
    DROP CONSTRAINT refunded_when_it_says_so;
ALTER TABLE payments
    ADD CONSTRAINT what_was_charged_is_somewhere CHECK (
        CASE WHEN charged > 0 THEN held + captured + returned + lost_held = charged
        ELSE captured = 0 AND returned = 0 AND lost_held = 0 END),
    ADD CONSTRAINT lost_of_what_is_left CHECK (lost BETWEEN 0 AND captured - refunded),
    ADD CONSTRAINT commission_of_what_is_left
        CHECK (net_commission BETWEEN 0 AND captured - refunded - lost),
    ADD CONSTRAINT captured_when_it_says_so
        CHECK (state <> 'CAPTURED' OR captured > refunded + lost),
    ADD CONSTRAINT refunded_when_it_says_so
        CHECK (state <> 'REFUNDED' OR (charged > 0 AND captured = refunded + lost AND held = 0)),
    ADD CONSTRAINT frozen_by_something CHECK ((frozen = 'NONE') = (frozen_by = ''));

-- A dispute as it stands: written under its payment's lock, its history is in events and postings.
CREATE TABLE disputes (
    dispute_id text PRIMARY KEY,
    payment_id text NOT NULL REFERENCES payments,
    expert_id text NOT NULL REFERENCES experts,
    charge_id text NOT NULL,
    stage text NOT NULL CHECK (stage IN ('INQUIRY', 'CHARGEBACK')),
    status text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('OPEN', 'WON', 'LOST', 'CLOSED', 'PREVENTED')),
    reason text NOT NULL,
    currency char(3) NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    withdrawn bigint NOT NULL CHECK (withdrawn >= 0),
    reinstated bigint NOT NULL CHECK (reinstated BETWEEN 0 AND withdrawn),
    lost bigint NOT NULL CHECK (lost BETWEEN 0 AND withdrawn),
    -- Of fee_currency, as Stripe settled it; negative if Stripe gave back more than it took.
    fee bigint NOT NULL,
    fee_currency text NOT NULL,
    evidence_due_time timestamptz,
    has_evidence boolean NOT NULL,
    submission_count integer NOT NULL,
    operation_id text NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    close_time timestamptz,
    CONSTRAINT closed_when_it_says_so CHECK ((outcome = 'OPEN') = (close_time IS NULL))
);
CREATE INDEX disputes_by_payment ON disputes (payment_id, create_time);
CREATE INDEX disputes_by_expert ON disputes (expert_id, create_time DESC, dispute_id DESC);
CREATE INDEX disputes_by_time ON disputes (create_time DESC, dispute_id DESC);
CREATE INDEX disputes_open ON disputes (evidence_due_time) WHERE outcome = 'OPEN';
CREATE INDEX disputes_to_write_off ON disputes (payment_id)
    WHERE outcome IN ('LOST', 'PREVENTED') AND withdrawn > reinstated + lost;

CREATE FUNCTION refuse_another_dispute() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.dispute_id, OLD.payment_id, OLD.expert_id, OLD.charge_id, OLD.currency,
        OLD.create_time)
       IS DISTINCT FROM
       (NEW.dispute_id, NEW.payment_id, NEW.expert_id, NEW.charge_id, NEW.currency,
        NEW.create_time)
       OR NEW.withdrawn < OLD.withdrawn OR NEW.reinstated < OLD.reinstated OR NEW.lost < OLD.lost
    THEN
        RAISE EXCEPTION 'a dispute is not rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER disputes_are_not_rewritten BEFORE UPDATE ON disputes
    FOR EACH ROW EXECUTE FUNCTION refuse_another_dispute();
CREATE TRIGGER disputes_are_kept BEFORE DELETE ON disputes
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- An answer to a dispute hangs on that: the payment's own operation goes on beside it.
ALTER TABLE operations
    ADD COLUMN dispute_id text REFERENCES disputes,
    DROP CONSTRAINT of_a_payment_or_an_expert,
    ADD CONSTRAINT of_one_thing CHECK (num_nonnulls(payment_id, expert_id, dispute_id) = 1);
CREATE UNIQUE INDEX one_open_operation_per_dispute ON operations (dispute_id)
    WHERE state IN ('STARTED', 'UNKNOWN', 'PARKED');
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
