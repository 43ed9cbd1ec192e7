"""Webhook events."""

from typing import Final

SCHEMA: Final = r"""
-- A webhook event. It is stored once and applied later, by reading the object from Stripe. Only the
-- envelope is stored, because the object may contain a secret.
-- It is deleted when it is done and Stripe no longer lists it.
-- Never: stored twice (primary key).
CREATE TABLE webhook_events (
    event_id text PRIMARY KEY,
    endpoint text NOT NULL,
    type text NOT NULL,
    object_id text NOT NULL,
    account_id text NOT NULL,
    payment_intent_id text NOT NULL,
    -- The id by which the payment is found; see PaymentReads.payment_of.
    payment_ref text NOT NULL,
    payload_sha256 bytea NOT NULL,
    -- The idempotency key of our own request, if the event tells only what that request did.
    own_key text NOT NULL,
    create_time timestamptz NOT NULL,
    state text NOT NULL,
    -- What came of the event.
    verdict text NOT NULL,
    attempts integer NOT NULL,
    last_error text NOT NULL,
    receive_time timestamptz NOT NULL,
    next_try_time timestamptz,
    apply_time timestamptz,
    -- The trace of the delivery, if there was one.
    traceparent text NOT NULL DEFAULT '',

    CONSTRAINT known_state CHECK (state IN ('WAITING', 'APPLIED', 'IGNORED', 'PARKED'))
);
CREATE INDEX webhook_events_due ON webhook_events (next_try_time) WHERE state = 'WAITING';
CREATE INDEX webhook_events_open ON webhook_events (receive_time, event_id)
    WHERE state IN ('WAITING', 'PARKED');
-- For ExplainPayment.
CREATE INDEX webhook_events_by_payment ON webhook_events (payment_ref, receive_time)
    WHERE payment_ref <> '';
-- For the deletion of old ones.
CREATE INDEX webhook_events_done ON webhook_events (receive_time)
    WHERE state IN ('APPLIED', 'IGNORED');
"""
