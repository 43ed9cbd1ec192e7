"""Corrections that one person proposes and another one approves."""

from typing import Final

SCHEMA: Final = r"""
-- A proposal to correct the books, and its decision. Without payment and expert it is about the
-- platform's own accounts. An open one expires by its time alone: no row changes then.
-- Never: rewritten except to be decided, once, or to erase its texts (trigger); approved after its
-- time (check); deleted or truncated (triggers).
CREATE TABLE adjustments (
    adjustment_id text PRIMARY KEY,
    kind text NOT NULL,
    payment_id text REFERENCES payments,
    expert_id text REFERENCES experts,
    -- [[account, currency, minor units], ...]: what its approval posts.
    lines jsonb NOT NULL,
    ticket text NOT NULL,
    -- What the proposer wrote, and a salted hash of it. The hash stays when the text is erased.
    reason text NOT NULL,
    reason_salt bytea NOT NULL,
    reason_seal text NOT NULL,
    proposed_by text NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    state text NOT NULL,
    decided_by text NOT NULL DEFAULT '',
    decide_time timestamptz,
    decide_reason text NOT NULL DEFAULT '',
    -- The sequence of the event with its postings: the payment's, the expert's, or 1 for the
    -- platform's own. 0 unless it is approved.
    sequence bigint NOT NULL DEFAULT 0,

    CONSTRAINT known_kind CHECK (kind IN ('CORRECTION', 'WRITE_OFF')),
    CONSTRAINT known_state CHECK (state IN ('PROPOSED', 'APPROVED', 'REJECTED')),
    CONSTRAINT adjustment_has_one_owner_at_most CHECK (num_nonnulls(payment_id, expert_id) <= 1),
    CONSTRAINT decision_is_whole
        CHECK ((state <> 'PROPOSED') = (decide_time IS NOT NULL AND decided_by <> '')),
    CONSTRAINT approved_is_posted CHECK ((state = 'APPROVED') = (sequence > 0)),
    CONSTRAINT approved_in_time CHECK (state <> 'APPROVED' OR decide_time < expire_time)
);
CREATE INDEX adjustments_by_payment ON adjustments (payment_id) WHERE payment_id IS NOT NULL;
CREATE INDEX adjustments_by_expert ON adjustments (expert_id) WHERE expert_id IS NOT NULL;
CREATE INDEX adjustments_by_time ON adjustments (create_time DESC, adjustment_id DESC);
CREATE INDEX adjustments_approved ON adjustments (decide_time) WHERE state = 'APPROVED';

CREATE FUNCTION refuse_adjustment_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    texts text[] := '{reason,reason_salt,decide_reason}';
    decision text[] := '{state,decided_by,decide_time,decide_reason,sequence}';
BEGIN
    IF OLD.state = 'PROPOSED' AND NEW.state <> 'PROPOSED'
       AND to_jsonb(NEW) - decision = to_jsonb(OLD) - decision
    THEN
        RETURN NEW;
    END IF;
    IF (OLD.state <> 'PROPOSED' OR OLD.expire_time <= now())
       AND NEW.reason = '[erased]' AND NEW.reason_salt = ''
       AND NEW.decide_reason IN ('', '[erased]')
       AND to_jsonb(NEW) - texts = to_jsonb(OLD) - texts
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'an adjustment is not rewritten' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER adjustments_are_not_rewritten BEFORE UPDATE ON adjustments
    FOR EACH ROW EXECUTE FUNCTION refuse_adjustment_rewrite();
CREATE TRIGGER adjustments_are_kept BEFORE DELETE ON adjustments
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER adjustments_are_never_truncated BEFORE TRUNCATE ON adjustments
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""
