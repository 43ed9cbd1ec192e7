"""What the background jobs remember between two runs. It holds no money and no event."""

from typing import Final

SCHEMA: Final = r"""
-- When a job runs next, on whichever replica is first.
CREATE TABLE jobs (
    name text PRIMARY KEY,
    next_time timestamptz NOT NULL
);

-- When a job (JobKind) works on a payment again, and the present pause, which doubles each time.
-- There is no foreign key, because it would wait for the payment's lock.
CREATE TABLE job_backoff (
    job text NOT NULL,
    payment_id text NOT NULL,
    pause interval NOT NULL,
    next_time timestamptz NOT NULL,
    PRIMARY KEY (job, payment_id)
);
CREATE INDEX job_backoff_by_end ON job_backoff (next_time);

-- Up to when complete runs of the reconciliation have compared the ledger with Stripe. The empty
-- account stands for all. An account has a row of its own only while it could not be read.
CREATE TABLE comparisons (
    account text PRIMARY KEY,
    compared_until timestamptz NOT NULL
);

-- When the debt of an expert is collected next, as far as the account has money, and the present
-- pause. Experts who owe nothing have no row.
CREATE TABLE debt_checks (
    expert_id text PRIMARY KEY,
    pause interval NOT NULL,
    next_time timestamptz NOT NULL
);
CREATE INDEX debt_checks_due ON debt_checks (next_time);

-- Since when an object of a payment is final at Stripe and lacks a balance transaction. The id of
-- the object may have a suffix that says which one.
CREATE TABLE awaited_lines (
    object_id text PRIMARY KEY,
    payment_id text NOT NULL REFERENCES payments,
    since timestamptz NOT NULL
);

-- How far a list of events at Stripe was read, and when it is read next. The scope is the platform
-- or an account.
CREATE TABLE event_cursors (
    scope text PRIMARY KEY,
    seen_until timestamptz NOT NULL,
    after_event_id text NOT NULL DEFAULT '',
    next_time timestamptz NOT NULL
);
CREATE INDEX event_cursors_due ON event_cursors (next_time);
INSERT INTO event_cursors (scope, seen_until, next_time) VALUES
    ('platform', now(), now()), ('thin', now(), now());

-- The list of an account that has nothing open is read rarely. It is due at once when a payment of
-- its expert begins or opens again, or when the account is not ready any more. A cursor that
-- another transaction has locked is being made due, or read, just now.
CREATE FUNCTION hasten_event_cursor() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE event_cursors SET next_time = now() WHERE scope IN (
        SELECT scope FROM event_cursors JOIN experts ON scope = stripe_account_id
        WHERE expert_id = NEW.expert_id AND next_time > now() + interval '30 seconds'
        FOR UPDATE OF event_cursors SKIP LOCKED);
    RETURN NULL;
END $$;
CREATE TRIGGER a_new_payment_hastens_its_account AFTER INSERT ON payments
    FOR EACH ROW EXECUTE FUNCTION hasten_event_cursor();
CREATE TRIGGER an_open_payment_hastens_its_account AFTER UPDATE OF state ON payments
    FOR EACH ROW WHEN (OLD.state IN ('CAPTURED', 'CANCELED', 'EXPIRED', 'REFUNDED')
        AND NEW.state NOT IN ('CAPTURED', 'CANCELED', 'EXPIRED', 'REFUNDED'))
    EXECUTE FUNCTION hasten_event_cursor();
CREATE TRIGGER an_account_that_is_not_ready_is_hastened AFTER UPDATE OF status ON experts
    FOR EACH ROW WHEN (OLD.status = 'READY' AND NEW.status <> 'READY')
    EXECUTE FUNCTION hasten_event_cursor();

-- When a payment that is not finished is polled next. Each payment begins with a row; it is deleted
-- when the payment is found to be finished. A payment that comes back, because somebody charged the
-- card out of band, gets a row again.
CREATE TABLE payment_polls (
    payment_id text PRIMARY KEY REFERENCES payments,
    next_time timestamptz NOT NULL
);
CREATE INDEX payment_polls_due ON payment_polls (next_time);
CREATE FUNCTION queue_for_polling() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO payment_polls (payment_id, next_time) VALUES (NEW.payment_id, NEW.create_time);
    RETURN NULL;
END $$;
-- The pause keeps a poll that still sees the payment as finished from deleting the row: no
-- transaction lasts so long.
CREATE FUNCTION queue_again_for_polling() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO payment_polls (payment_id, next_time)
    VALUES (NEW.payment_id, now() + interval '1 minute')
    ON CONFLICT (payment_id) DO UPDATE SET next_time = excluded.next_time;
    RETURN NULL;
END $$;
CREATE TRIGGER payments_are_queued_for_polling AFTER INSERT ON payments
    FOR EACH ROW EXECUTE FUNCTION queue_for_polling();
CREATE TRIGGER payments_that_come_back_are_queued_again AFTER UPDATE OF state ON payments
    FOR EACH ROW WHEN (OLD.state IN ('CAPTURED', 'CANCELED', 'EXPIRED', 'REFUNDED')
        AND NEW.state IN ('PENDING', 'FAILED', 'IN_ESCROW'))
    EXECUTE FUNCTION queue_again_for_polling();
"""
