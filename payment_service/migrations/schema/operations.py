"""Operations at Stripe, and the idempotency keys of the callers that asked for them."""

from typing import Final

SCHEMA: Final = r"""
-- A durable intent to change something at Stripe. It is committed before the request is sent, so
-- that a crash cannot lose it.
-- Never: two open operations on one payment, expert or dispute (unique indexes); a person's words
-- in the payload of a settled one (trigger).
CREATE TABLE operations (
    operation_id text PRIMARY KEY,
    kind text NOT NULL,
    -- Why it exists: a caller asked for it, a deadline has passed, or it follows from other money.
    purpose text NOT NULL,
    -- Its subject: exactly one of the three. An answer to a dispute belongs to the dispute, so that
    -- the payment's own operation can run beside it.
    payment_id text REFERENCES payments,
    expert_id text REFERENCES experts,
    dispute_id text REFERENCES disputes,
    -- What it asks Stripe for besides the amount. The keys depend on the kind; reading is strict.
    payload jsonb NOT NULL,
    minor_units bigint NOT NULL,
    -- The key of the caller who asked for it; NULL if a background job did.
    claim_id text,
    state text NOT NULL,
    -- The number in the idempotency key at Stripe, and since when this key is used.
    attempt integer NOT NULL,
    attempt_time timestamptz NOT NULL,
    tries integer NOT NULL,
    -- Whether Stripe keeps an error under the present key, so that only a new key can succeed.
    key_spent boolean NOT NULL,
    -- Whether it may be searched for at Stripe but must not be sent, because of a dispute.
    verify_only boolean NOT NULL,
    last_error text NOT NULL,
    create_time timestamptz NOT NULL,
    -- The lease of the replica that works on it. Only the holder of the token may change the row.
    lease_until timestamptz,
    lease_token text NOT NULL,
    next_try_time timestamptz,
    -- Until when a parked operation may still take effect at Stripe. NULL if Stripe has answered
    -- each of its requests, or none was sent.
    unsure_until timestamptz,
    -- When an operator last resumed it. A later out-of-band movement parks it again.
    resume_time timestamptz,
    settle_time timestamptz,

    CONSTRAINT known_purpose
        CHECK (purpose IN ('REQUESTED', 'DEADLINE', 'REMAINDER', 'REPAYMENT', 'LOSS', 'DEBT')),
    CONSTRAINT known_state
        CHECK (state IN ('STARTED', 'UNKNOWN', 'PARKED', 'SUCCEEDED', 'REFUSED')),
    CONSTRAINT operation_has_one_subject
        CHECK (num_nonnulls(payment_id, expert_id, dispute_id) = 1)
);
CREATE UNIQUE INDEX one_open_operation_per_payment ON operations (payment_id)
    WHERE state IN ('STARTED', 'UNKNOWN', 'PARKED');
-- Of each kind: an account may be created while a debt is collected.
CREATE UNIQUE INDEX one_open_operation_per_expert ON operations (expert_id, kind)
    WHERE state IN ('STARTED', 'UNKNOWN', 'PARKED');
CREATE UNIQUE INDEX one_open_operation_per_dispute ON operations (dispute_id)
    WHERE state IN ('STARTED', 'UNKNOWN', 'PARKED');
CREATE INDEX operations_due ON operations (greatest(next_try_time, lease_until))
    WHERE state IN ('STARTED', 'UNKNOWN');
CREATE INDEX operations_unsure ON operations (unsure_until)
    WHERE state = 'PARKED' AND unsure_until IS NOT NULL;
CREATE INDEX operations_open ON operations (create_time, operation_id)
    WHERE state IN ('STARTED', 'UNKNOWN', 'PARKED');
-- For ListOperations, and to erase a user.
CREATE INDEX operations_by_payment ON operations (payment_id) WHERE payment_id IS NOT NULL;
CREATE INDEX operations_by_dispute ON operations (dispute_id) WHERE dispute_id IS NOT NULL;
CREATE INDEX operations_by_expert ON operations (expert_id) WHERE expert_id IS NOT NULL;
CREATE INDEX operations_by_state ON operations (state, create_time, operation_id);
CREATE INDEX operations_by_time ON operations USING brin (create_time)
    WITH (autosummarize = on, pages_per_range = 16);

-- What people wrote is sent to Stripe with an operation. Nothing needs it once the operation is
-- settled, so only the fields' names are left.
CREATE FUNCTION drop_operation_texts() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    field text;
BEGIN
    FOREACH field IN ARRAY ARRAY['notes', 'reason', 'description', 'name', 'email'] LOOP
        IF NEW.payload ->> field <> '' THEN
            NEW.payload := jsonb_set(NEW.payload, ARRAY[field], '""');
        END IF;
    END LOOP;
    IF NEW.payload ? 'evidence' THEN
        NEW.payload := jsonb_set(NEW.payload, '{evidence}', '{}');
    END IF;
    IF NEW.payload #>> '{transfer,notes}' <> '' THEN
        NEW.payload := jsonb_set(NEW.payload, '{transfer,notes}', '""');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER settled_operations_have_no_texts BEFORE INSERT OR UPDATE ON operations
    FOR EACH ROW WHEN (NEW.state IN ('SUCCEEDED', 'REFUSED'))
    EXECUTE FUNCTION drop_operation_texts();

-- A caller's idempotency key, and the stored answer.
-- Never: a key used for two requests (unique); answered twice (the statement's own condition).
CREATE TABLE idempotency_keys (
    claim_id text PRIMARY KEY,
    caller text NOT NULL,
    -- The user for whom the caller acts; '' if it acts for itself.
    act_for text NOT NULL,
    rpc text NOT NULL,
    key text NOT NULL,
    -- A digest of each field of the request: enough to name the field that differs, without keeping
    -- it.
    fields jsonb NOT NULL,
    -- What the key led to.
    payment_id text,
    operation_id text,
    -- Whether the answer is a response or an error, and its bytes on the wire. Of an old or erased
    -- answer only settle_time is left: the key stays taken.
    ok boolean,
    answer bytea,
    create_time timestamptz NOT NULL,
    settle_time timestamptz,

    CONSTRAINT a_key_is_used_once UNIQUE (caller, act_for, rpc, key),
    CONSTRAINT key_length CHECK (length(key) BETWEEN 1 AND 255)
);
CREATE INDEX idempotency_keys_by_time ON idempotency_keys USING brin (create_time)
    WITH (autosummarize = on, pages_per_range = 16);
-- To erase a user.
CREATE INDEX idempotency_keys_by_payment ON idempotency_keys (payment_id)
    WHERE answer IS NOT NULL AND payment_id IS NOT NULL;
-- For the deletion of old answers.
CREATE INDEX idempotency_keys_answered ON idempotency_keys (settle_time)
    WHERE answer IS NOT NULL;
"""
