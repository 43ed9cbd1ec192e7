"""The trigger function that makes a table append-only."""

from typing import Final

SCHEMA: Final = r"""
-- Refuses the statement that fired it. A table uses it for UPDATE, DELETE or TRUNCATE.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
"""
