"""Disputes of payments."""

from typing import Final

SCHEMA: Final = r"""
-- The present state of a dispute. It is written under its payment's lock; its history is in the
-- payment's events and postings.
-- Never: moved to another payment, or with less withdrawn or reinstated than
-- before (trigger); deleted (trigger).
CREATE TABLE disputes (
    dispute_id text PRIMARY KEY,
    payment_id text NOT NULL REFERENCES payments,
    expert_id text NOT NULL REFERENCES experts,
    charge_id text NOT NULL,
    stage text NOT NULL,
    -- Stripe's own status, and our reading of it.
    status text NOT NULL,
    outcome text NOT NULL,
    reason text NOT NULL,

    currency char(3) NOT NULL,
    amount bigint NOT NULL,
    -- What Stripe took from the platform for the dispute, and what it gave back.
    withdrawn bigint NOT NULL,
    reinstated bigint NOT NULL,
    -- What is written off now. Funds that are reinstated after a loss lower it.
    lost bigint NOT NULL,
    -- What is lost for good and not written off yet. Derived: `Dispute.unsettled`.
    unsettled bigint NOT NULL,
    -- In fee_currency, as Stripe settled it. Negative if Stripe returned more than it took.
    fee bigint NOT NULL,
    fee_currency text NOT NULL,

    evidence_due_time timestamptz,
    has_evidence boolean NOT NULL,
    submission_count integer NOT NULL,
    -- The open operation that answers the dispute, if there is one.
    operation_id text NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    close_time timestamptz,

    CONSTRAINT known_stage CHECK (stage IN ('INQUIRY', 'CHARGEBACK')),
    CONSTRAINT known_outcome CHECK (outcome IN ('OPEN', 'WON', 'LOST', 'CLOSED', 'PREVENTED')),
    CONSTRAINT closed_has_a_close_time CHECK ((outcome = 'OPEN') = (close_time IS NULL)),
    CONSTRAINT amount_is_not_negative CHECK (amount >= 0),
    CONSTRAINT withdrawn_is_not_negative CHECK (withdrawn >= 0),
    CONSTRAINT reinstated_within_withdrawn CHECK (reinstated BETWEEN 0 AND withdrawn),
    CONSTRAINT lost_within_withdrawn CHECK (lost BETWEEN 0 AND withdrawn)
);
CREATE INDEX disputes_by_payment ON disputes (payment_id, create_time);
CREATE INDEX disputes_by_expert ON disputes (expert_id, create_time DESC, dispute_id DESC);
CREATE INDEX disputes_by_time ON disputes (create_time DESC, dispute_id DESC);
CREATE INDEX disputes_open ON disputes (evidence_due_time) WHERE outcome = 'OPEN';
CREATE INDEX disputes_to_answer ON disputes (evidence_due_time)
    WHERE status IN ('needs_response', 'warning_needs_response');
-- Lost disputes whose loss is not booked completely.
CREATE INDEX disputes_to_write_off ON disputes (payment_id) WHERE unsettled > 0;

-- The identity of a dispute never changes, and what Stripe moved never goes down.
CREATE FUNCTION refuse_dispute_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.dispute_id, OLD.payment_id, OLD.expert_id, OLD.charge_id, OLD.currency,
        OLD.create_time)
       IS DISTINCT FROM
       (NEW.dispute_id, NEW.payment_id, NEW.expert_id, NEW.charge_id, NEW.currency,
        NEW.create_time)
       OR NEW.withdrawn < OLD.withdrawn OR NEW.reinstated < OLD.reinstated
    THEN
        RAISE EXCEPTION 'a dispute is not rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER disputes_are_not_rewritten BEFORE UPDATE ON disputes
    FOR EACH ROW EXECUTE FUNCTION refuse_dispute_rewrite();
CREATE TRIGGER disputes_are_kept BEFORE DELETE ON disputes
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
"""
