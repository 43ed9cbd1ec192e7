"""Exported heads of the audit trail."""

from typing import Final

SCHEMA: Final = r"""
-- A statement about the whole audit trail that has left the house by the log. With the
-- statement, any later change of what it covers is found. This copy is for proofs of one payment.
-- Never: updated, deleted or truncated (triggers).
CREATE TABLE exported_heads (
    heads_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    time timestamptz NOT NULL,
    -- How many events of the feed it covers, and the root of the Merkle tree over them.
    events bigint NOT NULL,
    events_root bytea NOT NULL,
    -- The same for events of experts, platform lines and adjustments.
    records bigint NOT NULL,
    records_root bytea NOT NULL,
    -- Empty if it is not signed.
    key_id text NOT NULL,
    signature bytea NOT NULL
);
CREATE TRIGGER exported_heads_are_append_only BEFORE UPDATE OR DELETE ON exported_heads
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER exported_heads_are_never_truncated BEFORE TRUNCATE ON exported_heads
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The root of each complete block of events in the feed, so that no export reads them again. What
-- verifies the books does not use it.
-- Never: updated, deleted or truncated (triggers).
CREATE TABLE head_blocks (
    block bigint PRIMARY KEY,
    root bytea NOT NULL
);
CREATE TRIGGER head_blocks_are_append_only BEFORE UPDATE OR DELETE ON head_blocks
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER head_blocks_are_never_truncated BEFORE TRUNCATE ON head_blocks
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""
