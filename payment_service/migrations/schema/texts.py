"""What people wrote, and what was erased of it."""

from typing import Final

SCHEMA: Final = r"""
-- A fact of an event that is somebody's words. The event has a salted hash of it, so that the text
-- can be erased and the chain of events stays as it is. Without the salt nobody can guess the text.
-- Never: updated or truncated (triggers). It is deleted when its user is erased.
CREATE TABLE texts (
    payment_id text,
    expert_id text,
    -- The event, and the name of its fact.
    sequence bigint NOT NULL,
    name text NOT NULL,
    salt bytea NOT NULL,
    text text NOT NULL,

    FOREIGN KEY (payment_id, sequence) REFERENCES events,
    FOREIGN KEY (expert_id, sequence) REFERENCES expert_events,
    CONSTRAINT text_has_one_owner CHECK (num_nonnulls(payment_id, expert_id) = 1)
);
CREATE UNIQUE INDEX texts_of_payment ON texts (payment_id, sequence, name)
    WHERE payment_id IS NOT NULL;
CREATE UNIQUE INDEX texts_of_expert ON texts (expert_id, sequence, name)
    WHERE expert_id IS NOT NULL;
CREATE TRIGGER texts_are_not_rewritten BEFORE UPDATE ON texts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER texts_are_never_truncated BEFORE TRUNCATE ON texts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Who erased whom, when and why.
-- Never: updated, deleted or truncated (triggers).
CREATE TABLE erasures (
    erasure_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_kind text NOT NULL,
    user_id text NOT NULL,
    reason text NOT NULL,
    caller text NOT NULL,
    request_id text NOT NULL,
    time timestamptz NOT NULL,

    CONSTRAINT known_user_kind CHECK (user_kind IN ('CLIENT', 'EXPERT'))
);
CREATE TRIGGER erasures_are_append_only BEFORE UPDATE OR DELETE ON erasures
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER erasures_are_never_truncated BEFORE TRUNCATE ON erasures
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""
