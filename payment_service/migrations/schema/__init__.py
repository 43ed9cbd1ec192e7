"""The tables of the service as plain SQL, one module for each aggregate.

What must never be true is refused here as well as in the code: amounts that do not add up (CHECK),
a second open operation on a payment, a fact that is booked twice (UNIQUE), an edited posting or
event (triggers), postings that do not sum to zero (trigger).

Conventions: times are UTC and end in ``_time``. Amounts are minor units of the row's currency. An
id that is not known yet is an empty text, except in columns that are UNIQUE or a foreign key, where
it is NULL.
"""

from typing import Final

from payment_service.migrations.schema import (
    adjustments,
    discrepancies,
    disputes,
    experts,
    feed,
    guards,
    heads,
    installation,
    jobs,
    ledger,
    operations,
    payments,
    payouts,
    releases,
    texts,
    webhooks,
)

#: Every statement in the order of the foreign keys.
STATEMENTS: Final = (
    guards.SCHEMA,
    releases.SCHEMA,
    installation.SCHEMA,
    experts.SCHEMA,
    payments.SCHEMA,
    texts.SCHEMA,
    adjustments.SCHEMA,
    ledger.SCHEMA,
    payouts.SCHEMA,
    disputes.SCHEMA,
    operations.SCHEMA,
    webhooks.SCHEMA,
    feed.SCHEMA,
    heads.SCHEMA,
    discrepancies.SCHEMA,
    jobs.SCHEMA,
)
