"""What refuses a statement: a table that is append-only, and a change that came too late."""

from typing import Final

SCHEMA: Final = r"""
-- Refuses the statement that fired it. A table uses it for UPDATE, DELETE or TRUNCATE.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;

-- Refuses a statement that has found another version than it expects. The transaction runs again.
CREATE FUNCTION refuse_concurrent_change() RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'another transaction has changed it' USING ERRCODE = 'serialization_failure';
END $$;
"""
