"""Money held by the platform, parts of it, deadlines, and captures that wait for an expert."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = r"""
ALTER TABLE payments
    ADD COLUMN mode_reason text NOT NULL DEFAULT 'DEFAULT',
    ADD COLUMN on_deadline text NOT NULL DEFAULT 'ALERT',
    -- What the card was charged; 0 before.
    ADD COLUMN charged bigint NOT NULL DEFAULT 0 CHECK (charged BETWEEN 0 AND amount),
    -- Given back to the client out of escrow, after the card was charged.
    ADD COLUMN returned bigint NOT NULL DEFAULT 0 CHECK (returned BETWEEN 0 AND amount),
    -- What the capture under way keeps back of the expert's debt.
    ADD COLUMN netting bigint NOT NULL DEFAULT 0 CHECK (netting >= 0),
    ADD COLUMN release_due_time timestamptz,
    ADD COLUMN warn_time timestamptz,
    ADD COLUMN deadline_time timestamptz,
    DROP CONSTRAINT held_or_captured,
    DROP CONSTRAINT held_in_escrow,
    DROP CONSTRAINT captured_when_it_says_so,
    DROP CONSTRAINT refunded_when_it_says_so,
    DROP CONSTRAINT payments_state_check,
    DROP CONSTRAINT payments_waiting_for_check,
    DROP CONSTRAINT payments_check4;
ALTER TABLE payments DISABLE TRIGGER payments_are_not_rewritten;
UPDATE payments SET charged = captured;
ALTER TABLE payments ENABLE TRIGGER payments_are_not_rewritten;
ALTER TABLE payments
    ALTER COLUMN mode_reason DROP DEFAULT,
    ALTER COLUMN on_deadline DROP DEFAULT,
    ADD CONSTRAINT a_known_state CHECK (state IN (
        'PENDING', 'FAILED', 'IN_ESCROW', 'CAPTURING', 'CANCELING', 'PROMOTING', 'REFUNDING',
        'CAPTURED', 'CANCELED', 'EXPIRED', 'REFUNDED')),
    ADD CONSTRAINT a_known_wait
        CHECK (waiting_for IN ('', 'processor', 'operator', 'expert')),
    ADD CONSTRAINT what_was_charged_is_somewhere CHECK (
        CASE WHEN charged > 0 THEN held + captured + returned = charged
        ELSE captured = 0 AND returned = 0 END),
    ADD CONSTRAINT held_in_escrow CHECK (held = 0 OR state IN (
        'IN_ESCROW', 'CAPTURING', 'CANCELING', 'PROMOTING', 'REFUNDING')),
    ADD CONSTRAINT in_escrow_something_is_held CHECK (state <> 'IN_ESCROW' OR held > 0),
    ADD CONSTRAINT captured_when_it_says_so CHECK (state <> 'CAPTURED' OR captured > refunded),
    ADD CONSTRAINT refunded_when_it_says_so
        CHECK (state <> 'REFUNDED' OR (charged > 0 AND captured = refunded AND held = 0)),
    ADD CONSTRAINT owed_of_what_went_back
        CHECK (client_owed BETWEEN 0 AND refunded + returned),
    ADD CONSTRAINT netted_only_in_a_capture CHECK (netting = 0 OR state = 'CAPTURING');

DROP INDEX payments_held;
CREATE INDEX payments_held ON payments (escrow_expire_time)
    WHERE held > 0;
CREATE INDEX payments_due ON payments (release_due_time)
    WHERE held > 0 AND release_due_time IS NOT NULL;
CREATE INDEX payments_netting ON payments (expert_id) WHERE netting > 0;
CREATE INDEX payments_waiting ON payments (expert_id) WHERE waiting_for = 'expert';

-- A payment may have many transfers; a reversal is of one of them.
ALTER TABLE movements ADD COLUMN transfer_id text NOT NULL DEFAULT '';
CREATE INDEX movements_by_transfer ON movements (transfer_id) WHERE transfer_id <> '';
INSERT INTO movements (movement_id, payment_id, kind, minor_units, operation_id, time)
    SELECT transfer_id, payment_id, 'transfer', captured, '', coalesce(capture_time, update_time)
    FROM payments WHERE transfer_id <> '';
ALTER TABLE movements DISABLE TRIGGER movements_are_append_only;
UPDATE movements SET transfer_id = payments.transfer_id FROM payments
    WHERE payments.payment_id = movements.payment_id AND movements.kind = 'reversal';
ALTER TABLE movements ENABLE TRIGGER movements_are_append_only;
DROP INDEX payments_by_transfer;

-- How a payment is held may change (a promotion); how it was to be held is frozen with the quote.
CREATE OR REPLACE FUNCTION refuse_rewriting() RETURNS trigger LANGUAGE plpgsql AS $$
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
       OR NEW.version <> OLD.version + 1
    THEN
        RAISE EXCEPTION 'a payment is not rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
