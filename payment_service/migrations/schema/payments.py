"""Payments, their audit trail, and their movements at Stripe."""

from typing import Final

SCHEMA: Final = r"""
-- The present state of a payment. It is a summary: the history is in events and postings.
-- Never: its quote rewritten, a version left out (triggers); deleted or truncated (triggers);
-- amounts that do not add up (the rules below).
CREATE TABLE payments (
    payment_id text PRIMARY KEY,
    client_id text NOT NULL,
    expert_id text NOT NULL REFERENCES experts,
    gig_id text NOT NULL,
    description text NOT NULL,
    state text NOT NULL,
    version bigint NOT NULL,
    -- The hash of the payment's last event.
    head_hash bytea NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,

    -- The quote.
    currency char(3) NOT NULL,
    amount bigint NOT NULL,
    commission_basis_points integer NOT NULL,
    commission bigint NOT NULL,
    expert_amount bigint NOT NULL,

    -- How the money is held, and what happens at a deadline.
    escrow_mode text NOT NULL,
    charge_model text NOT NULL,
    mode_reason text NOT NULL,
    on_deadline text NOT NULL,
    destination_account_id text NOT NULL,
    payment_expire_time timestamptz NOT NULL,
    escrow_time timestamptz,
    escrow_expire_time timestamptz,
    release_due_time timestamptz,
    capture_time timestamptz,
    -- The latest deadline that was warned of, and when a deadline was last acted on.
    warn_time timestamptz,
    deadline_time timestamptz,

    -- The schedule: when the background jobs examine the payment next. Derived from the other
    -- columns and the policy with each transition, by domain/schedule.py; the last event has its
    -- digest.
    first_deadline_time timestamptz,
    warn_due_time timestamptz,
    deadline_due_time timestamptz,
    expire_due_time timestamptz,
    hold_check_due_time timestamptz,
    capture_retry_due_time timestamptz,

    -- Where the money is.
    -- Authorized or charged, and not captured yet.
    held bigint NOT NULL,
    -- What the card was charged; 0 before.
    charged bigint NOT NULL DEFAULT 0,
    captured bigint NOT NULL,
    -- Refunded after capture.
    refunded_after_capture bigint NOT NULL,
    -- Refunded from escrow, after the card was charged.
    refunded_from_escrow bigint NOT NULL DEFAULT 0,
    -- Whether the remainder of the hold must go back to the client.
    remainder_to_client boolean NOT NULL DEFAULT false,
    -- What lost disputes took from escrow.
    lost_held bigint NOT NULL DEFAULT 0,
    -- What lost disputes took from the captured amount.
    lost bigint NOT NULL DEFAULT 0,
    -- What the capture in progress keeps back of the expert's debt.
    debt_offset bigint NOT NULL DEFAULT 0,
    net_commission bigint NOT NULL,
    -- What the platform still owes to the client because a refund failed.
    client_payable bigint NOT NULL,
    -- What a refund that waits for the platform's balance has to pay to the client.
    pending_refund bigint NOT NULL DEFAULT 0,
    -- Stripe's fee; NULL until its balance transaction is known.
    processor_fee bigint,

    -- The objects at Stripe.
    payment_intent_id text,
    charge_id text NOT NULL,
    transfer_id text NOT NULL,

    -- What happens now, and what stops it.
    -- The open operation, if there is one.
    operation_id text NOT NULL,
    waiting_for text NOT NULL,
    -- Why the expert's account cannot be paid, or that the platform's balance is too low.
    waiting_reason text NOT NULL DEFAULT '',
    -- What disputes and fraud warnings forbid now, and which of them does.
    frozen text NOT NULL DEFAULT 'NONE',
    frozen_by text NOT NULL DEFAULT '',
    fraud_warning_id text NOT NULL DEFAULT '',
    -- Radar's manual review of the charge, while it is open.
    review_id text NOT NULL DEFAULT '',
    -- Why the last attempt of the client to pay failed.
    failure jsonb,

    CONSTRAINT one_payment_per_intent UNIQUE (payment_intent_id)
);
-- The rules of a payment's row, by name. They are one function, because PostgreSQL compiles it once
-- in a session: the text of a constraint is read anew by every statement that writes a row.
-- Its operators are PostgreSQL's own, whatever a session's search_path says.
CREATE FUNCTION keeps_the_rules(payment payments) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog AS $$
DECLARE
    broken text := CASE
    WHEN payment.state NOT IN (
        'PENDING', 'FAILED', 'IN_ESCROW', 'CAPTURING', 'CANCELING', 'PROMOTING', 'REFUNDING',
        'CAPTURED', 'CANCELED', 'EXPIRED', 'REFUNDED') THEN 'known_state'
    WHEN payment.version < 1 THEN 'version_starts_at_one'

    WHEN payment.amount <= 0 THEN 'amount_is_positive'
    WHEN payment.commission_basis_points NOT BETWEEN 0 AND 9999 THEN 'commission_rate_range'
    WHEN payment.commission < 0 THEN 'commission_is_not_negative'
    WHEN payment.expert_amount <= 0 THEN 'expert_amount_is_positive'
    WHEN payment.commission + payment.expert_amount <> payment.amount THEN 'quote_adds_up'

    -- Every minor unit that was charged is in exactly one of four places.
    WHEN payment.charged > 0
        AND payment.held + payment.captured + payment.refunded_from_escrow + payment.lost_held
            <> payment.charged
        OR payment.charged <= 0
        AND (payment.captured <> 0 OR payment.refunded_from_escrow <> 0 OR payment.lost_held <> 0)
        THEN 'charged_money_is_accounted_for'
    WHEN payment.held NOT BETWEEN 0 AND payment.amount THEN 'held_within_amount'
    WHEN payment.charged NOT BETWEEN 0 AND payment.amount THEN 'charged_within_amount'
    WHEN payment.captured NOT BETWEEN 0 AND payment.amount THEN 'captured_within_amount'
    WHEN payment.refunded_from_escrow NOT BETWEEN 0 AND payment.amount
        THEN 'returned_within_amount'
    WHEN payment.lost_held NOT BETWEEN 0 AND payment.amount THEN 'lost_held_within_amount'
    WHEN payment.refunded_after_capture NOT BETWEEN 0 AND payment.captured
        THEN 'refunded_within_captured'
    WHEN payment.lost NOT BETWEEN 0 AND payment.captured - payment.refunded_after_capture
        THEN 'lost_within_captured'
    WHEN payment.net_commission
        NOT BETWEEN 0 AND payment.captured - payment.refunded_after_capture - payment.lost
        THEN 'commission_within_captured'
    WHEN payment.client_payable
        NOT BETWEEN 0 AND payment.refunded_after_capture + payment.refunded_from_escrow
        THEN 'client_payable_within_refunds'
    WHEN payment.pending_refund
        NOT BETWEEN 0 AND payment.refunded_after_capture + payment.refunded_from_escrow
        THEN 'pending_refund_within_refunds'
    WHEN payment.pending_refund <> 0 AND payment.state <> 'REFUNDING'
        THEN 'pending_refund_only_while_refunding'
    WHEN payment.debt_offset < 0 THEN 'debt_offset_is_not_negative'
    WHEN payment.debt_offset <> 0 AND payment.state <> 'CAPTURING'
        THEN 'debt_offset_only_while_capturing'
    WHEN payment.remainder_to_client AND payment.charged <= 0
        THEN 'remainder_to_return_was_charged'

    -- The state agrees with the amounts.
    WHEN payment.held <> 0 AND payment.state NOT IN (
        'IN_ESCROW', 'CAPTURING', 'CANCELING', 'PROMOTING', 'REFUNDING')
        THEN 'held_only_in_escrow'
    WHEN payment.state = 'IN_ESCROW' AND payment.held <= 0 THEN 'escrow_holds_money'
    WHEN payment.state = 'CAPTURED'
        AND payment.captured <= payment.refunded_after_capture + payment.lost
        THEN 'captured_has_money_left'
    WHEN payment.state = 'REFUNDED' AND NOT (payment.charged > 0 AND payment.held = 0
        AND payment.captured = payment.refunded_after_capture + payment.lost)
        THEN 'refunded_has_no_money_left'

    WHEN payment.waiting_for NOT IN ('', 'processor', 'operator', 'expert')
        THEN 'known_waiting_for'
    WHEN payment.waiting_reason NOT IN ('', 'EXPERT_ONBOARDING',
        'EXPERT_PENDING_VERIFICATION', 'EXPERT_RESTRICTED', 'EXPERT_REJECTED',
        'EXPERT_DEAUTHORIZED', 'EXPERT_REFUSED', 'DESTINATION_ACCOUNT_REPLACED',
        'REFUND_PENDING_FUNDS', 'TRANSFER_PENDING_FUNDS') THEN 'known_waiting_reason'
    WHEN payment.waiting_reason <> '' AND payment.waiting_for <> CASE
        WHEN payment.waiting_reason IN ('REFUND_PENDING_FUNDS', 'TRANSFER_PENDING_FUNDS')
        THEN 'processor' ELSE 'expert' END THEN 'waiting_reason_fits_waiting_for'
    WHEN payment.frozen NOT IN ('NONE', 'FRAUD_WARNING', 'REVIEW', 'INQUIRY', 'CHARGEBACK')
        THEN 'known_freeze_reason'
    WHEN (payment.frozen = 'NONE') <> (payment.frozen_by = '') THEN 'frozen_by_something'
    END;
BEGIN
    IF broken IS NULL THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION 'a payment breaks the rule %', broken
        USING ERRCODE = 'check_violation', TABLE = 'payments', CONSTRAINT = broken;
END $$;
ALTER TABLE payments ADD CONSTRAINT payments_keep_the_rules CHECK (keeps_the_rules(payments));
-- For ListPayments, and for the references in webhook events.
CREATE INDEX payments_by_client ON payments (client_id, create_time DESC, payment_id DESC);
CREATE INDEX payments_by_expert ON payments (expert_id, create_time DESC, payment_id DESC);
-- For ExplainPayment.
CREATE INDEX payments_by_gig ON payments (gig_id, create_time DESC, payment_id DESC);
CREATE INDEX payments_by_charge ON payments (charge_id) WHERE charge_id <> '';
-- For reconciliation and the audit.
CREATE INDEX payments_by_change ON payments (update_time, payment_id);
-- For background jobs: the schedule, waiting captures.
CREATE INDEX payments_warn_due ON payments (warn_due_time) WHERE warn_due_time IS NOT NULL;
CREATE INDEX payments_deadline_due ON payments (deadline_due_time)
    WHERE deadline_due_time IS NOT NULL;
CREATE INDEX payments_expire_due ON payments (expire_due_time) WHERE expire_due_time IS NOT NULL;
CREATE INDEX payments_hold_check_due ON payments (hold_check_due_time)
    WHERE hold_check_due_time IS NOT NULL;
CREATE INDEX payments_waiting_for_expert ON payments (expert_id) WHERE waiting_for = 'expert';
-- For the metric of the money in escrow.
CREATE INDEX payments_held ON payments (currency) WHERE held > 0;
-- For the metric of what clients still get.
CREATE INDEX payments_owed ON payments (currency) WHERE client_payable > 0 OR pending_refund > 0;
-- For the expert's debt, and for experts whose account may pay out soon.
CREATE INDEX payments_netting ON payments (expert_id) WHERE debt_offset > 0;
CREATE INDEX payments_captured ON payments (expert_id, capture_time)
    WHERE capture_time IS NOT NULL;

-- The identity and the quote of a payment never change. The way of holding (escrow_mode) may change
-- by a promotion; how the payment was to be held may not. Only a statement that names one of these
-- columns is examined.
CREATE FUNCTION refuse_payment_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.payment_id, OLD.client_id, OLD.expert_id, OLD.gig_id, OLD.currency, OLD.amount,
        OLD.commission, OLD.expert_amount, OLD.commission_basis_points, OLD.charge_model,
        OLD.mode_reason, OLD.on_deadline, OLD.release_due_time,
        OLD.destination_account_id, OLD.create_time)
       IS DISTINCT FROM
       (NEW.payment_id, NEW.client_id, NEW.expert_id, NEW.gig_id, NEW.currency, NEW.amount,
        NEW.commission, NEW.expert_amount, NEW.commission_basis_points, NEW.charge_model,
        NEW.mode_reason, NEW.on_deadline, NEW.release_due_time,
        NEW.destination_account_id, NEW.create_time)
    THEN
        RAISE EXCEPTION 'a payment is not rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER payments_are_not_rewritten BEFORE UPDATE OF
    payment_id, client_id, expert_id, gig_id, currency, amount, commission, expert_amount,
    commission_basis_points, charge_model, mode_reason, on_deadline, release_due_time,
    destination_account_id, create_time
    ON payments FOR EACH ROW EXECUTE FUNCTION refuse_payment_rewrite();

-- Every change counts the version up by one. The description is somebody's words: it may be erased
-- without that, and nothing else with it.
CREATE FUNCTION refuse_uncounted_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version = OLD.version AND NEW.description = '[erased]'
       AND to_jsonb(NEW) - 'description' = to_jsonb(OLD) - 'description'
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'a payment is not rewritten' USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER payments_count_their_versions BEFORE UPDATE ON payments
    FOR EACH ROW WHEN (NEW.version IS DISTINCT FROM OLD.version + 1)
    EXECUTE FUNCTION refuse_uncounted_change();
CREATE TRIGGER payments_are_kept BEFORE DELETE ON payments
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payments_are_never_truncated BEFORE TRUNCATE ON payments
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The audit trail: one event for each version of a payment. Each hash covers the event before.
-- Never: updated, deleted or truncated (triggers).
CREATE TABLE events (
    payment_id text NOT NULL REFERENCES payments,
    -- The payment's version after the event.
    sequence bigint NOT NULL,
    kind text NOT NULL,
    time timestamptz NOT NULL,
    body text NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (payment_id, sequence)
);
CREATE INDEX events_by_time ON events USING brin (time)
    WITH (autosummarize = on, pages_per_range = 16);
CREATE TRIGGER events_are_append_only BEFORE UPDATE OR DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_are_never_truncated BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- One object at Stripe that is in our books: a transfer, refund, reversal, fee refund, or balance
-- transaction of a dispute.
-- Never: booked twice (primary key); updated, deleted or truncated (triggers).
CREATE TABLE movements (
    -- Stripe's id of the object.
    movement_id text PRIMARY KEY,
    payment_id text NOT NULL REFERENCES payments,
    kind text NOT NULL,
    minor_units bigint NOT NULL,
    -- The operation that caused it; empty if it was made out of band.
    operation_id text NOT NULL,
    -- The transfer that a reversal takes back.
    transfer_id text NOT NULL DEFAULT '',
    time timestamptz NOT NULL
);
CREATE INDEX movements_by_payment ON movements (payment_id);
CREATE INDEX movements_by_transfer ON movements (transfer_id) WHERE transfer_id <> '';
CREATE INDEX movements_by_time ON movements USING brin (time)
    WITH (autosummarize = on, pages_per_range = 16);
CREATE TRIGGER movements_are_append_only BEFORE UPDATE OR DELETE ON movements
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER movements_are_never_truncated BEFORE TRUNCATE ON movements
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""
