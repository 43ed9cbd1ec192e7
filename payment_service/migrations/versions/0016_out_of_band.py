"""One rule for what others move at Stripe, and none for what an appeal brings back."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- What was booked out of band after an operation was last resumed parks it again.
ALTER TABLE operations ADD COLUMN resume_time timestamptz;

-- A payment's row is under its last event's hash. Only figures of zero leave no trace there.
DO $$
BEGIN
    IF EXISTS (SELECT FROM payments WHERE lost_beyond <> 0 OR taken_by_hand <> 0) THEN
        RAISE EXCEPTION 'lost_beyond or taken_by_hand is in use: settle these payments first';
    END IF;
END $$;
ALTER TABLE payments DROP COLUMN lost_beyond, DROP COLUMN taken_by_hand;

-- Funds that are reinstated after a loss lower what is written off.
CREATE OR REPLACE FUNCTION refuse_another_dispute() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.dispute_id, OLD.payment_id, OLD.expert_id, OLD.charge_id, OLD.currency,
        OLD.create_time)
       IS DISTINCT FROM
       (NEW.dispute_id, NEW.payment_id, NEW.expert_id, NEW.charge_id, NEW.currency,
        NEW.create_time)
       OR NEW.withdrawn < OLD.withdrawn OR NEW.reinstated < OLD.reinstated
    THEN
        RAISE EXCEPTION 'a dispute is not rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
DROP INDEX disputes_to_write_off;
UPDATE disputes SET lost = lost - recovered WHERE recovered > 0;
ALTER TABLE disputes DROP COLUMN recovered, DROP COLUMN kept;
CREATE INDEX disputes_to_write_off ON disputes (payment_id)
    WHERE outcome IN ('LOST', 'PREVENTED') AND withdrawn > reinstated + lost;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
