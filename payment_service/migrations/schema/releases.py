"""Which releases may write."""

from typing import Final

SCHEMA: Final = r"""
-- The oldest writer whose releases may write (`domain.audit_trail.WRITER`). A migration raises it
-- when what a former release would write could no longer be understood. One row.
CREATE TABLE releases (
    one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    minimum_writer integer NOT NULL
);
INSERT INTO releases (minimum_writer) VALUES (1);
"""
