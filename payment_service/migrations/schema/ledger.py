"""The ledger."""

from typing import Final

SCHEMA: Final = r"""
-- One line of the books. It belongs to an event of a payment, or of an expert (payouts,
-- write-offs). The postings of one event sum to zero in each currency (trigger).
-- Never: updated, deleted or truncated (triggers).
CREATE TABLE postings (
    posting_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_id text,
    expert_id text,
    -- The sequence of the event.
    sequence bigint NOT NULL,
    account text NOT NULL,
    currency char(3) NOT NULL,
    -- A debit is positive, a credit negative.
    minor_units bigint NOT NULL,
    kind text NOT NULL,
    -- Stripe's balance transaction that the posting books; empty if there is none.
    balance_transaction_id text NOT NULL,
    time timestamptz NOT NULL,

    FOREIGN KEY (payment_id, sequence) REFERENCES events,
    FOREIGN KEY (expert_id, sequence) REFERENCES expert_events,
    CONSTRAINT posting_has_one_owner CHECK ((payment_id IS NULL) <> (expert_id IS NULL)),
    CONSTRAINT posting_is_not_zero CHECK (minor_units <> 0)
);
CREATE INDEX postings_by_payment ON postings (payment_id, posting_id);
CREATE INDEX postings_by_expert ON postings (expert_id, posting_id) WHERE expert_id IS NOT NULL;
CREATE INDEX postings_by_account ON postings (account, currency) INCLUDE (minor_units);
CREATE INDEX postings_by_line ON postings (balance_transaction_id)
    WHERE balance_transaction_id <> '';
CREATE INDEX postings_by_time ON postings (time);
CREATE TRIGGER postings_are_append_only BEFORE UPDATE OR DELETE ON postings
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER postings_are_never_truncated BEFORE TRUNCATE ON postings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Checks the postings of one INSERT together. An event's postings are always inserted by one
-- statement.
CREATE FUNCTION refuse_unbalanced_postings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM new_postings
        GROUP BY payment_id, expert_id, sequence, currency HAVING sum(minor_units) <> 0
    ) THEN
        RAISE EXCEPTION 'postings do not sum to zero' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER postings_sum_to_zero AFTER INSERT ON postings
    REFERENCING NEW TABLE AS new_postings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_unbalanced_postings();
"""
