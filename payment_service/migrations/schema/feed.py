"""The feed: the events of all payments in one order."""

from typing import Final

SCHEMA: Final = r"""
-- An event that has no position yet. The events of one payment arrive in their order, because the
-- payment's row is locked.
-- Never: updated or truncated (triggers). A row is deleted when its event gets a position.
CREATE TABLE feed_pending (
    pending_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_id text NOT NULL,
    sequence bigint NOT NULL,
    time timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE TRIGGER feed_pending_is_not_rewritten BEFORE UPDATE ON feed_pending
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER feed_pending_is_never_truncated BEFORE TRUNCATE ON feed_pending
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The position of an event. Positions count from 1 without gaps and become visible in their order.
-- Never: updated, deleted or truncated (triggers); two positions of one event (unique).
CREATE TABLE feed (
    position bigint PRIMARY KEY,
    payment_id text NOT NULL,
    sequence bigint NOT NULL,

    FOREIGN KEY (payment_id, sequence) REFERENCES events,
    CONSTRAINT position_starts_at_one CHECK (position >= 1),
    CONSTRAINT an_event_is_fed_once UNIQUE (payment_id, sequence)
);
CREATE TRIGGER feed_is_append_only BEFORE UPDATE OR DELETE ON feed
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER feed_is_never_truncated BEFORE TRUNCATE ON feed
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Queues each new event for the feed, in the statement that inserts it, so that none can be left
-- out.
CREATE FUNCTION queue_for_feed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO feed_pending (payment_id, sequence, time)
    VALUES (NEW.payment_id, NEW.sequence, NEW.time);
    RETURN NULL;
END $$;
CREATE TRIGGER events_are_queued_for_the_feed AFTER INSERT ON events
    FOR EACH ROW EXECUTE FUNCTION queue_for_feed();
"""
