"""Experts, their accounts at Stripe, their audit trail, and their onboarding tokens."""

from typing import Final

SCHEMA: Final = r"""
-- A person who is paid, and what Stripe last said about their present account.
-- Never: the present account replaced before it is in former_accounts, or replaced by a former
-- account (trigger); one account of two experts (unique).
CREATE TABLE experts (
    expert_id text PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL,
    country char(2) NOT NULL,
    business_type text NOT NULL,

    commission_basis_points integer NOT NULL,
    -- The rate that the creation asked for, NULL for the default. Only compared with retries.
    commission_asked integer,

    -- The account at Stripe, and the flags that Stripe last returned.
    stripe_account_id text,
    charges_enabled boolean NOT NULL DEFAULT false,
    payouts_enabled boolean NOT NULL DEFAULT false,
    transfers_active boolean NOT NULL DEFAULT false,
    details_submitted boolean NOT NULL DEFAULT false,
    requirements_due text[] NOT NULL DEFAULT '{}',
    disabled_reason text NOT NULL DEFAULT '',
    -- When what is due stops the account, and what Stripe has announced for later.
    requirements_due_time timestamptz,
    future_requirements text[] NOT NULL DEFAULT '{}',
    future_requirements_due_time timestamptz,
    -- Whether the account has revoked our access.
    deauthorized boolean NOT NULL DEFAULT false,
    -- What that means for payments to the expert. Derived: `Expert.status`.
    status text NOT NULL,
    -- When Stripe was last asked about the account.
    check_time timestamptz,
    -- From when on Stripe must be asked again, whether or not an event comes. Computed when the row
    -- is written (`schedule.account_check_due_time`), and earlier once a capture waits.
    check_due_time timestamptz,

    -- The open operation on this expert, if there is one.
    operation_id text NOT NULL DEFAULT '',
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,

    CONSTRAINT expert_id_length CHECK (length(expert_id) BETWEEN 1 AND 64),
    CONSTRAINT commission_rate_range CHECK (commission_basis_points BETWEEN 0 AND 9999),
    CONSTRAINT one_expert_per_account UNIQUE (stripe_account_id)
);
CREATE INDEX experts_account_checks ON experts (check_due_time) WHERE check_due_time IS NOT NULL;
CREATE INDEX experts_by_first_deadline ON experts
    (least(requirements_due_time, future_requirements_due_time))
    WHERE least(requirements_due_time, future_requirements_due_time) IS NOT NULL;

-- The audit trail of an expert: what happened and who did it.
-- Never: updated, deleted or truncated (triggers).
CREATE TABLE expert_events (
    expert_id text NOT NULL REFERENCES experts,
    -- The expert's version after the event.
    sequence bigint NOT NULL,
    kind text NOT NULL,
    body text NOT NULL,
    time timestamptz NOT NULL,
    PRIMARY KEY (expert_id, sequence)
);
CREATE TRIGGER expert_events_are_append_only BEFORE UPDATE OR DELETE ON expert_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER expert_events_are_never_truncated BEFORE TRUNCATE ON expert_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- An account that an expert had before. Stripe still pays out of it, and transfers to it can still
-- be reversed, so it is kept forever.
-- Never: rewritten, deleted or truncated (triggers).
CREATE TABLE former_accounts (
    stripe_account_id text PRIMARY KEY,
    expert_id text NOT NULL REFERENCES experts,
    replace_time timestamptz NOT NULL,
    -- Since when the account has revoked our access; NULL while we have access.
    deauthorize_time timestamptz
);
CREATE INDEX former_accounts_by_expert ON former_accounts (expert_id);

-- Only deauthorize_time of a former account may change.
CREATE FUNCTION refuse_former_account_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.stripe_account_id, OLD.expert_id, OLD.replace_time)
       IS DISTINCT FROM (NEW.stripe_account_id, NEW.expert_id, NEW.replace_time)
    THEN
        RAISE EXCEPTION 'a former account is not rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER former_accounts_are_not_rewritten BEFORE UPDATE ON former_accounts
    FOR EACH ROW EXECUTE FUNCTION refuse_former_account_rewrite();
CREATE TRIGGER former_accounts_are_kept BEFORE DELETE ON former_accounts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER former_accounts_are_never_truncated BEFORE TRUNCATE ON former_accounts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- An account may be replaced only after it was copied to former_accounts, and never by an account
-- that was replaced before.
CREATE FUNCTION refuse_account_loss() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM former_accounts
        WHERE stripe_account_id = OLD.stripe_account_id AND expert_id = OLD.expert_id)
       OR EXISTS (SELECT FROM former_accounts WHERE stripe_account_id = NEW.stripe_account_id)
    THEN
        RAISE EXCEPTION 'an account is not forgotten, nor taken again'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER accounts_are_not_forgotten BEFORE UPDATE ON experts
    FOR EACH ROW WHEN (OLD.stripe_account_id IS NOT NULL
        AND NEW.stripe_account_id IS DISTINCT FROM OLD.stripe_account_id)
    EXECUTE FUNCTION refuse_account_loss();

-- Every account, present and former, with its expert. If an account is not readable, the ledger may
-- have postings of it until unread_time that we cannot see at Stripe.
CREATE VIEW accounts AS
    SELECT stripe_account_id, expert_id, NOT deauthorized AS readable,
        CASE WHEN deauthorized THEN now() END AS unread_time
    FROM experts WHERE stripe_account_id IS NOT NULL
    UNION ALL
    SELECT stripe_account_id, expert_id, deauthorize_time IS NULL, deauthorize_time
    FROM former_accounts;

-- The tokens of onboarding pages. Only the hash is stored, so a reader of the table cannot use
-- them.
CREATE TABLE onboarding_tokens (
    token_hash bytea PRIMARY KEY,
    expert_id text NOT NULL REFERENCES experts,
    -- Where the page continues when the expert has finished.
    continue_url text NOT NULL,
    expire_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL
);
CREATE INDEX onboarding_tokens_by_end ON onboarding_tokens (expire_time);
"""
