"""The feed: every event of every payment at one position, for those who watch them all."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SCHEMA = r"""
-- Events that have no position yet. Within a payment they come in its order: its row is locked.
CREATE TABLE feed_pending (
    pending_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_id text NOT NULL,
    sequence bigint NOT NULL,
    time timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Positions count from 1 without gaps, and become visible in their order.
CREATE TABLE feed (
    position bigint PRIMARY KEY CHECK (position >= 1),
    payment_id text NOT NULL,
    sequence bigint NOT NULL,
    CONSTRAINT an_event_is_fed_once UNIQUE (payment_id, sequence),
    FOREIGN KEY (payment_id, sequence) REFERENCES events
);

CREATE TRIGGER feed_is_append_only BEFORE UPDATE OR DELETE ON feed
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER feed_is_never_truncated BEFORE TRUNCATE ON feed
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER what_is_pending_is_not_rewritten BEFORE UPDATE ON feed_pending
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER what_is_pending_is_never_truncated BEFORE TRUNCATE ON feed_pending
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Whoever inserts an event, a replica of the former version too, has put it before the feed.
CREATE FUNCTION await_a_position() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO feed_pending (payment_id, sequence, time)
    VALUES (NEW.payment_id, NEW.sequence, NEW.time);
    RETURN NULL;
END $$;
CREATE TRIGGER events_await_a_position AFTER INSERT ON events
    FOR EACH ROW EXECUTE FUNCTION await_a_position();

-- The trigger's lock keeps new events out until this is committed. By time as far as a payment's
-- own order allows, should the clock ever have gone back.
INSERT INTO feed (position, payment_id, sequence)
SELECT row_number() OVER (ORDER BY reached, payment_id, sequence), payment_id, sequence
FROM (SELECT payment_id, sequence,
    max(time) OVER (PARTITION BY payment_id ORDER BY sequence) AS reached FROM events) AS told;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    raise NotImplementedError("the books are not thrown away; restore a backup instead")
