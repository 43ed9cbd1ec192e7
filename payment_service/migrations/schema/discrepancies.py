"""Discrepancies between Stripe and our books."""

from typing import Final

SCHEMA: Final = r"""
-- Something at Stripe that the books do not explain, with the amounts, the remediation and its end.
-- Never: stored twice (unique).
CREATE TABLE discrepancies (
    -- Outside it is `disc_` and this number.
    discrepancy_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- NULL if it belongs to no payment. There is no foreign key: the discrepancy may be that the
    -- payment is gone.
    payment_id text,
    kind text NOT NULL,
    detail text NOT NULL,
    expected bigint,
    found bigint,
    currency text NOT NULL DEFAULT '',
    -- What an operator can do about it.
    remediation text NOT NULL DEFAULT '',
    -- The balance transaction that it is about, if it is about one.
    line_id text NOT NULL DEFAULT '',
    time timestamptz NOT NULL,
    last_seen_time timestamptz NOT NULL DEFAULT now(),
    resolve_time timestamptz,
    -- The operator who resolved it, and the reason. Empty if it was no longer found.
    resolved_by text NOT NULL DEFAULT '',
    resolve_reason text NOT NULL DEFAULT '',

    CONSTRAINT a_discrepancy_is_kept_once UNIQUE NULLS NOT DISTINCT (payment_id, kind, detail)
);
CREATE INDEX open_discrepancies ON discrepancies (discrepancy_id) WHERE resolve_time IS NULL;
"""
