"""The ledger."""

from typing import Final

SCHEMA: Final = r"""
-- A balance transaction that Stripe made on the platform's own account, for no payment: its fees,
-- reserves, the platform's payouts. Its postings say to which account it belongs. Or the sum of all
-- lines from before the books began, which is a line of ours.
-- Never: booked twice (primary key); updated, deleted or truncated (triggers).
CREATE TABLE platform_lines (
    line_id text PRIMARY KEY,
    -- Stripe's own words.
    type text NOT NULL,
    description text NOT NULL,
    -- When Stripe made it, and when it was booked.
    create_time timestamptz NOT NULL,
    time timestamptz NOT NULL
);
CREATE TRIGGER platform_lines_are_append_only BEFORE UPDATE OR DELETE ON platform_lines
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER platform_lines_are_never_truncated BEFORE TRUNCATE ON platform_lines
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- One line of the books. It belongs to an event of a payment, or of an expert (payouts,
-- write-offs), or to a balance transaction or an adjustment of the platform. The postings of one
-- event sum to zero in each currency (trigger).
-- Never: updated, deleted or truncated (triggers).
CREATE TABLE postings (
    posting_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_id text,
    expert_id text,
    platform_line_id text REFERENCES platform_lines,
    -- Of a correction of the platform's own accounts.
    adjustment_id text REFERENCES adjustments,
    -- The sequence of the event; 1 where there is none.
    sequence bigint NOT NULL,
    account text COLLATE "C" NOT NULL,
    currency char(3) NOT NULL,
    -- A debit is positive, a credit negative.
    minor_units bigint NOT NULL,
    kind text NOT NULL,
    -- Stripe's balance transaction that the posting books; empty if there is none.
    balance_transaction_id text NOT NULL,
    time timestamptz NOT NULL,

    FOREIGN KEY (payment_id, sequence) REFERENCES events,
    FOREIGN KEY (expert_id, sequence) REFERENCES expert_events,
    CONSTRAINT posting_has_one_owner CHECK (
        num_nonnulls(payment_id, expert_id, platform_line_id, adjustment_id) = 1),
    CONSTRAINT posting_is_not_zero CHECK (minor_units <> 0)
);
CREATE INDEX postings_by_payment ON postings (payment_id, posting_id);
CREATE INDEX postings_by_expert ON postings (expert_id, posting_id) WHERE expert_id IS NOT NULL;
CREATE INDEX postings_by_adjustment ON postings (adjustment_id) WHERE adjustment_id IS NOT NULL;
CREATE INDEX postings_by_account ON postings (account, posting_id)
    INCLUDE (currency, minor_units);
CREATE INDEX postings_by_line ON postings (balance_transaction_id)
    WHERE balance_transaction_id <> '';
-- For ranges of time only: postings lie in the order of their time.
CREATE INDEX postings_by_time ON postings USING brin (time) WITH (autosummarize = on);
-- What reconciliation compares with Stripe: the new lines of one account, not all it ever had.
CREATE INDEX postings_at_stripe ON postings (account, time) WHERE starts_with(account, 'stripe:');
CREATE TRIGGER postings_are_append_only BEFORE UPDATE OR DELETE ON postings
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER postings_are_never_truncated BEFORE TRUNCATE ON postings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The balances of all accounts at the end of a month (UTC), so that no report sums the whole past.
-- Accounts of single payments and experts are together: `escrow` is the sum of all of them.
-- Derived from the postings, which stay what counts.
-- Never: updated, deleted or truncated (triggers).
CREATE TABLE month_closings (
    -- Postings before this are in it.
    end_time timestamptz NOT NULL,
    account text NOT NULL,
    currency char(3) NOT NULL,
    minor_units bigint NOT NULL,
    PRIMARY KEY (end_time, account, currency)
);
CREATE TRIGGER month_closings_are_append_only BEFORE UPDATE OR DELETE ON month_closings
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER month_closings_are_never_truncated BEFORE TRUNCATE ON month_closings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Checks the postings of one INSERT together. An event's postings are always inserted by one
-- statement.
CREATE FUNCTION refuse_unbalanced_postings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM new_postings
        GROUP BY payment_id, expert_id, platform_line_id, adjustment_id, sequence, currency
        HAVING sum(minor_units) <> 0
    ) THEN
        RAISE EXCEPTION 'postings do not sum to zero' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER postings_sum_to_zero AFTER INSERT ON postings
    REFERENCING NEW TABLE AS new_postings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_unbalanced_postings();

-- What the postings up to `ledger_span.folded_until` come to, by account. A job folds newer ones
-- in. The balance of an account is this and its newer postings, read by one statement.
CREATE TABLE ledger_balances (
    account text COLLATE "C" NOT NULL,
    currency char(3) NOT NULL,
    minor_units bigint NOT NULL DEFAULT 0,
    -- The same sum up to `ledger_span.checked_until`, made a second time by the reconciliation.
    checked_units bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account, currency)
);
CREATE INDEX ledger_balances_in_doubt ON ledger_balances ((minor_units - checked_units))
    WHERE minor_units <> checked_units;

-- The same by the first part of the accounts' names: escrow, commission, stripe.
CREATE TABLE ledger_families (
    family text COLLATE "C" NOT NULL,
    currency char(3) NOT NULL,
    minor_units bigint NOT NULL DEFAULT 0,
    checked_units bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (family, currency)
);

-- How far the postings are folded; one row. A span of postings is closed when no transaction can
-- write into it any more: those that were under way when its end was chosen have ended.
CREATE TABLE ledger_span (
    is_the_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    -- Ids of postings: the end of the next span, and what must be over until it is closed.
    next_until bigint NOT NULL DEFAULT 0,
    next_xid xid8 NOT NULL DEFAULT '0',
    closed_until bigint NOT NULL DEFAULT 0,
    folded_until bigint NOT NULL DEFAULT 0,
    checked_until bigint NOT NULL DEFAULT 0,
    next_time timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT a_span_is_closed_folded_and_checked
        CHECK (checked_until <= folded_until AND folded_until <= closed_until
            AND closed_until <= next_until)
);
INSERT INTO ledger_span DEFAULT VALUES;

-- The postings that are not folded yet, as the calling statement sees them. The id stands in the
-- query as a number, so that the planner knows how few they are.
CREATE FUNCTION open_postings() RETURNS SETOF postings LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY EXECUTE 'SELECT * FROM postings WHERE posting_id > '
        || (SELECT folded_until FROM ledger_span);
END $$;
"""
