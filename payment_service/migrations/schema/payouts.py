"""Payouts of experts' accounts to their banks."""

from typing import Final

SCHEMA: Final = r"""
-- A payout of a connected account, as Stripe last returned it. It belongs to the expert and to no
-- payment: one payout contains the money of several.
-- Never: rewritten, deleted or truncated (triggers); booked twice (unique indexes).
CREATE TABLE payouts (
    payout_id text PRIMARY KEY,
    expert_id text NOT NULL REFERENCES experts,
    stripe_account_id text NOT NULL,
    -- Negative if Stripe takes from the bank what the account owes.
    minor_units bigint NOT NULL,
    currency char(3) NOT NULL,
    state text NOT NULL,
    automatic boolean NOT NULL,
    arrival_time timestamptz NOT NULL,
    failure_code text NOT NULL,
    -- The balance transactions that are in the books: of the payout, and of its return.
    balance_transaction_id text NOT NULL,
    failure_balance_transaction_id text NOT NULL,
    version bigint NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,

    CONSTRAINT known_state CHECK (state IN (
        'PENDING', 'IN_TRANSIT', 'PAID', 'FAILED', 'CANCELED', 'UNKNOWN')),
    CONSTRAINT version_starts_at_one CHECK (version >= 1)
);
CREATE INDEX payouts_by_expert ON payouts (expert_id, create_time DESC, payout_id DESC);
CREATE UNIQUE INDEX a_payout_is_booked_once ON payouts (balance_transaction_id)
    WHERE balance_transaction_id <> '';
CREATE UNIQUE INDEX a_payout_is_returned_once ON payouts (failure_balance_transaction_id)
    WHERE failure_balance_transaction_id <> '';

-- The identity and the amount of a payout never change, a booked balance transaction is never
-- replaced, and the version counts up by one.
CREATE FUNCTION refuse_payout_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
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
    FOR EACH ROW EXECUTE FUNCTION refuse_payout_rewrite();
CREATE TRIGGER payouts_are_kept BEFORE DELETE ON payouts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payouts_are_never_truncated BEFORE TRUNCATE ON payouts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""
