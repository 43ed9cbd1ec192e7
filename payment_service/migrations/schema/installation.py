"""What this database is, and at which account of Stripe its books are kept."""

from typing import Final

SCHEMA: Final = r"""
-- One row. Its id is made with the schema, so a restored backup has the same one: every id that is
-- derived from it is the same again, and it marks what this service has made at Stripe.
CREATE TABLE installation (
    is_the_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    installation_id text NOT NULL,
    -- The platform's account at Stripe, and whether it is used in live mode. NULL until the first
    -- start; then no start with another account is accepted.
    stripe_account_id text,
    livemode boolean,
    bind_time timestamptz,
    -- When the books got what that account had before they began, in every currency; NULL before.
    opening_time timestamptz,

    CONSTRAINT account_and_mode_come_together
        CHECK (num_nulls(stripe_account_id, livemode, bind_time) IN (0, 3)),
    CONSTRAINT the_opening_is_that_of_an_account
        CHECK (opening_time IS NULL OR bind_time IS NOT NULL)
);
INSERT INTO installation (installation_id)
    VALUES ('ins_' || replace(gen_random_uuid()::text, '-', ''));
"""
