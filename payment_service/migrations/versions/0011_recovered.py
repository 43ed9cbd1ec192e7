"""What came back of a dispute after it had been written off, by an appeal."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

SCHEMA = r"""
ALTER TABLE disputes
    -- What of `lost` came back; what is written off is the difference.
    ADD COLUMN recovered bigint NOT NULL DEFAULT 0 CHECK (recovered BETWEEN 0 AND lost),
    -- What of that stands in `losses` as the platform's: the next loss of this dispute undoes it.
    ADD COLUMN kept bigint NOT NULL DEFAULT 0 CHECK (kept BETWEEN 0 AND recovered);

-- Of disputes that were won on appeal before there were these columns. Who had borne what is not on
-- their rows, so all of it is taken for the platform's, as the books have it.
UPDATE disputes
SET recovered = least(lost, greatest(lost + reinstated - withdrawn, 0)),
    kept = least(lost, greatest(lost + reinstated - withdrawn, 0))
WHERE lost > 0 AND lost + reinstated > withdrawn;

DROP INDEX disputes_to_write_off;
CREATE INDEX disputes_to_write_off ON disputes (payment_id)
    WHERE outcome IN ('LOST', 'PREVENTED') AND withdrawn > reinstated + lost - recovered;

CREATE OR REPLACE FUNCTION refuse_another_dispute() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.dispute_id, OLD.payment_id, OLD.expert_id, OLD.charge_id, OLD.currency,
        OLD.create_time)
       IS DISTINCT FROM
       (NEW.dispute_id, NEW.payment_id, NEW.expert_id, NEW.charge_id, NEW.currency,
        NEW.create_time)
       OR NEW.withdrawn < OLD.withdrawn OR NEW.reinstated < OLD.reinstated OR NEW.lost < OLD.lost
       OR NEW.recovered < OLD.recovered
    THEN
        RAISE EXCEPTION 'a dispute is not rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
