"""The first schema: payments, their events and postings, operations, claims, experts, the inbox.

What must never be is refused here as well as in the code: amounts that do not add up (CHECK), a
second open operation on a payment, a fact booked twice (UNIQUE), an edited posting or event
(triggers), a ledger transaction that does not sum to zero (trigger).
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = r"""
-- The people who are paid. The flags are what Stripe last said.
CREATE TABLE experts (
    expert_id text PRIMARY KEY CHECK (length(expert_id) BETWEEN 1 AND 64),
    name text NOT NULL,
    email text NOT NULL,
    country char(2) NOT NULL,
    business_type text NOT NULL,
    commission_basis_points integer NOT NULL CHECK (commission_basis_points BETWEEN 0 AND 9999),
    commission_asked integer,
    stripe_account_id text UNIQUE,
    charges_enabled boolean NOT NULL DEFAULT false,
    payouts_enabled boolean NOT NULL DEFAULT false,
    transfers_active boolean NOT NULL DEFAULT false,
    details_submitted boolean NOT NULL DEFAULT false,
    requirements_due text[] NOT NULL DEFAULT '{}',
    disabled_reason text NOT NULL DEFAULT '',
    deauthorized boolean NOT NULL DEFAULT false,
    operation_id text NOT NULL DEFAULT '',
    check_time timestamptz,
    version bigint NOT NULL DEFAULT 1,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL
);

-- What happened to an expert, and by whose hand.
CREATE TABLE expert_events (
    expert_id text NOT NULL REFERENCES experts,
    sequence bigint NOT NULL,
    kind text NOT NULL,
    body text NOT NULL,
    time timestamptz NOT NULL,
    PRIMARY KEY (expert_id, sequence)
);

-- A payment as it stands. The row is a summary: its history is in events and postings.
CREATE TABLE payments (
    payment_id text PRIMARY KEY,
    client_id text NOT NULL,
    expert_id text NOT NULL REFERENCES experts,
    gig_id text NOT NULL,
    description text NOT NULL,
    state text NOT NULL CHECK (state IN (
        'PENDING', 'FAILED', 'IN_ESCROW', 'CAPTURING', 'CANCELING', 'REFUNDING',
        'CAPTURED', 'CANCELED', 'EXPIRED', 'REFUNDED')),
    escrow_mode text NOT NULL,
    charge_model text NOT NULL,
    destination_account_id text NOT NULL,
    currency char(3) NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    commission_basis_points integer NOT NULL CHECK (commission_basis_points BETWEEN 0 AND 9999),
    commission bigint NOT NULL CHECK (commission >= 0),
    expert_amount bigint NOT NULL CHECK (expert_amount > 0),
    held bigint NOT NULL CHECK (held BETWEEN 0 AND amount),
    captured bigint NOT NULL CHECK (captured BETWEEN 0 AND amount),
    refunded bigint NOT NULL CHECK (refunded BETWEEN 0 AND captured),
    net_commission bigint NOT NULL CHECK (net_commission BETWEEN 0 AND captured - refunded),
    client_owed bigint NOT NULL CHECK (client_owed BETWEEN 0 AND refunded),
    processor_fee bigint,
    payment_intent_id text UNIQUE,
    charge_id text NOT NULL,
    transfer_id text NOT NULL,
    operation_id text NOT NULL,
    waiting_for text NOT NULL CHECK (waiting_for IN ('', 'processor', 'operator')),
    failure jsonb,
    version bigint NOT NULL CHECK (version >= 1),
    -- The hash of the payment's last event.
    head_hash bytea NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    escrow_time timestamptz,
    capture_time timestamptz,
    escrow_expire_time timestamptz,
    payment_expire_time timestamptz NOT NULL,
    CONSTRAINT the_quote_adds_up CHECK (commission + expert_amount = amount),
    CONSTRAINT held_or_captured CHECK (held = 0 OR captured = 0),
    CONSTRAINT held_in_escrow CHECK (held = 0 OR state IN ('IN_ESCROW', 'CAPTURING', 'CANCELING')),
    CONSTRAINT captured_when_it_says_so
        CHECK (state NOT IN ('CAPTURED', 'REFUNDED') OR (captured > 0)),
    CONSTRAINT refunded_when_it_says_so CHECK (state <> 'REFUNDED' OR captured = refunded)
);
CREATE INDEX payments_by_client ON payments (client_id, create_time DESC, payment_id DESC);
CREATE INDEX payments_by_expert ON payments (expert_id, create_time DESC, payment_id DESC);
CREATE INDEX payments_by_charge ON payments (charge_id) WHERE charge_id <> '';
CREATE INDEX payments_by_transfer ON payments (transfer_id) WHERE transfer_id <> '';
CREATE INDEX payments_held ON payments (escrow_expire_time) WHERE state = 'IN_ESCROW';
CREATE INDEX payments_unpaid ON payments (payment_expire_time)
    WHERE state IN ('PENDING', 'FAILED');

-- The audit trail: one event for every version of a payment, chained by hash.
CREATE TABLE events (
    payment_id text NOT NULL REFERENCES payments,
    sequence bigint NOT NULL,
    kind text NOT NULL,
    time timestamptz NOT NULL,
    body text NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (payment_id, sequence)
);

-- The books. The lines of one event sum to zero in every currency.
CREATE TABLE postings (
    posting_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_id text NOT NULL,
    sequence bigint NOT NULL,
    account text NOT NULL,
    currency char(3) NOT NULL,
    minor_units bigint NOT NULL CHECK (minor_units <> 0),
    kind text NOT NULL,
    balance_transaction_id text NOT NULL,
    time timestamptz NOT NULL,
    FOREIGN KEY (payment_id, sequence) REFERENCES events
);
CREATE INDEX postings_by_payment ON postings (payment_id, posting_id);
CREATE INDEX postings_by_account ON postings (account, currency) INCLUDE (minor_units);

-- Refunds, reversals and fee refunds that are on the books: one row per fact at Stripe.
CREATE TABLE movements (
    movement_id text PRIMARY KEY,
    payment_id text NOT NULL REFERENCES payments,
    kind text NOT NULL,
    minor_units bigint NOT NULL,
    operation_id text NOT NULL,
    time timestamptz NOT NULL
);
CREATE INDEX movements_by_payment ON movements (payment_id);

-- What Stripe shows and the books do not explain.
CREATE TABLE discrepancies (
    discrepancy_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_id text NOT NULL REFERENCES payments,
    kind text NOT NULL,
    detail text NOT NULL,
    time timestamptz NOT NULL,
    UNIQUE (payment_id, kind, detail)
);

-- Durable intents to change something at Stripe.
CREATE TABLE operations (
    operation_id text PRIMARY KEY,
    kind text NOT NULL,
    payment_id text REFERENCES payments,
    expert_id text REFERENCES experts,
    params jsonb NOT NULL,
    minor_units bigint NOT NULL,
    claim_id text,
    state text NOT NULL CHECK (state IN ('STARTED', 'UNKNOWN', 'PARKED', 'SUCCEEDED', 'REFUSED')),
    attempt integer NOT NULL,
    tries integer NOT NULL,
    last_error text NOT NULL,
    create_time timestamptz NOT NULL,
    attempt_time timestamptz NOT NULL,
    lease_until timestamptz,
    lease_token text NOT NULL,
    next_try_time timestamptz,
    settle_time timestamptz,
    CONSTRAINT of_a_payment_or_an_expert CHECK ((payment_id IS NULL) <> (expert_id IS NULL))
);
CREATE UNIQUE INDEX one_open_operation_per_payment ON operations (payment_id)
    WHERE state IN ('STARTED', 'UNKNOWN', 'PARKED');
CREATE UNIQUE INDEX one_open_operation_per_expert ON operations (expert_id)
    WHERE state IN ('STARTED', 'UNKNOWN', 'PARKED');
CREATE INDEX operations_due ON operations (next_try_time) WHERE state IN ('STARTED', 'UNKNOWN');
CREATE INDEX operations_open ON operations (create_time, operation_id)
    WHERE state IN ('STARTED', 'UNKNOWN', 'PARKED');

-- The callers' idempotency keys and what they were answered.
CREATE TABLE claims (
    claim_id text PRIMARY KEY,
    caller text NOT NULL,
    rpc text NOT NULL,
    key text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    -- A digest of every field, so that a difference can be named and nothing is kept.
    fields jsonb NOT NULL,
    payment_id text,
    operation_id text,
    ok boolean,
    answer bytea,
    create_time timestamptz NOT NULL,
    settle_time timestamptz,
    CONSTRAINT a_key_is_used_once UNIQUE (caller, rpc, key)
);

-- Webhook events, stored once, applied later. The envelope only: an object may hold a secret.
CREATE TABLE inbox (
    event_id text PRIMARY KEY,
    endpoint text NOT NULL,
    type text NOT NULL,
    object_id text NOT NULL,
    account_id text NOT NULL,
    payment_intent_id text NOT NULL,
    payment_ref text NOT NULL,
    payload_sha256 bytea NOT NULL,
    create_time timestamptz NOT NULL,
    state text NOT NULL CHECK (state IN ('WAITING', 'APPLIED', 'IGNORED', 'PARKED')),
    verdict text NOT NULL,
    attempts integer NOT NULL,
    last_error text NOT NULL,
    receive_time timestamptz NOT NULL,
    next_try_time timestamptz,
    apply_time timestamptz
);
CREATE INDEX inbox_due ON inbox (next_try_time) WHERE state = 'WAITING';
CREATE INDEX inbox_open ON inbox (receive_time, event_id) WHERE state IN ('WAITING', 'PARKED');

-- The landing pages' tokens, by hash: whoever reads this table cannot use them.
CREATE TABLE landing_tokens (
    token_hash bytea PRIMARY KEY,
    expert_id text NOT NULL REFERENCES experts,
    onward_url text NOT NULL,
    expire_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER events_are_append_only BEFORE UPDATE OR DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_are_never_truncated BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER expert_events_are_append_only BEFORE UPDATE OR DELETE ON expert_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER expert_events_are_never_truncated BEFORE TRUNCATE ON expert_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER postings_are_append_only BEFORE UPDATE OR DELETE ON postings
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER postings_are_never_truncated BEFORE TRUNCATE ON postings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER movements_are_append_only BEFORE UPDATE OR DELETE ON movements
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

CREATE FUNCTION refuse_imbalance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM new_postings
        GROUP BY payment_id, sequence, currency HAVING sum(minor_units) <> 0
    ) THEN
        RAISE EXCEPTION 'postings do not sum to zero' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER postings_sum_to_zero AFTER INSERT ON postings
    REFERENCING NEW TABLE AS new_postings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_imbalance();

-- A payment's identity, quote and currency are frozen; its version only counts up by one.
CREATE FUNCTION refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.payment_id, OLD.client_id, OLD.expert_id, OLD.gig_id, OLD.currency, OLD.amount,
        OLD.commission, OLD.expert_amount, OLD.commission_basis_points, OLD.charge_model,
        OLD.destination_account_id, OLD.create_time)
       IS DISTINCT FROM
       (NEW.payment_id, NEW.client_id, NEW.expert_id, NEW.gig_id, NEW.currency, NEW.amount,
        NEW.commission, NEW.expert_amount, NEW.commission_basis_points, NEW.charge_model,
        NEW.destination_account_id, NEW.create_time)
       OR NEW.version <> OLD.version + 1
    THEN
        RAISE EXCEPTION 'a payment is not rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER payments_are_not_rewritten BEFORE UPDATE ON payments
    FOR EACH ROW EXECUTE FUNCTION refuse_rewriting();
CREATE TRIGGER payments_are_kept BEFORE DELETE ON payments
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
