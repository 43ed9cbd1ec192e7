"""What is read from Stripe although no webhook has arrived: lists of events, stale payments."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from payment_service.adapters.postgres.statements import TransactionStatements
from payment_service.domain.ports.records import EventCursor
from payment_service.domain.schedule import POLLED, UNFINISHED
from payment_service.domain.webhook_event import EFFECTS

#: Stripe holds earnings back for at most 90 days outside the US, and a bank may need a few more
#: days to reject a payout. Webhooks and reconciliation find anything older.
_PAID_OUT_WITHIN: Final = timedelta(days=100)
#: The account is not ready, or its expert has payments that are not finished.
_OPEN: Final = (
    "(status <> 'READY' OR EXISTS (SELECT FROM payments WHERE payments.expert_id = "
    "experts.expert_id AND state = ANY(:unfinished)))"
)
#: The account has nothing open, but was paid to, or paid out, in the last ``:recent``.
_MAY_PAY_OUT: Final = (
    f"NOT {_OPEN} AND (EXISTS (SELECT FROM payments WHERE payments.expert_id = experts.expert_id "
    "AND capture_time > now() - :recent) OR EXISTS (SELECT FROM payouts WHERE payouts.expert_id = "
    "experts.expert_id AND update_time > now() - :recent))"
)
#: A former account may still hold money, which Stripe pays out to the bank later.
_REPLACED: Final = (
    "EXISTS (SELECT FROM former_accounts WHERE stripe_account_id = scope "
    "AND deauthorize_time IS NULL AND (replace_time > now() - :recent OR EXISTS (SELECT FROM "
    "payouts WHERE payouts.stripe_account_id = scope AND update_time > now() - :recent)))"
)

#: Payments whose parked operation can take effect no more, and that are not queued.
UNPOLLED_PARKED: Final = (
    "SELECT payment_id, now() FROM operations WHERE state = 'PARKED' AND unsure_until <= now() "
    "AND payment_id IS NOT NULL AND NOT EXISTS "
    "(SELECT FROM payment_polls WHERE payment_polls.payment_id = operations.payment_id)"
)
#: Looks at the head of the queue. What is stale is leased, what is finished leaves, and the others
#: are put off.
_LEASE_STALE: Final = """
WITH due AS (
    SELECT payment_id FROM payment_polls WHERE next_time <= now()
    ORDER BY next_time LIMIT :most FOR UPDATE SKIP LOCKED
), seen AS (
    SELECT payment_id, update_time, state = ANY(:unfinished) AS is_open,
        payment_intent_id IS NOT NULL AND update_time < now() - :pause
        AND (state = ANY(:polled) OR is_parked) AS is_stale, is_parked
    FROM due JOIN payments USING (payment_id), LATERAL (SELECT EXISTS (SELECT FROM operations
        WHERE operations.payment_id = payments.payment_id
        AND operations.state = 'PARKED' AND unsure_until <= now()) AS is_parked) AS parked
), turns AS (
    SELECT *, is_stale AND row_number() OVER (PARTITION BY is_stale ORDER BY update_time) <= :limit
        AS stale FROM seen
), finished AS (
    DELETE FROM payment_polls WHERE payment_id IN
        (SELECT payment_id FROM turns WHERE NOT is_open AND NOT is_parked)
)
UPDATE payment_polls SET next_time = CASE
    WHEN stale THEN now() + greatest(:pause, (now() - update_time) / 2)
    ELSE greatest(now() + :pause / 4, update_time + :pause) END
FROM turns WHERE turns.payment_id = payment_polls.payment_id AND (is_open OR is_parked)
    AND stale = is_stale
RETURNING payment_polls.payment_id, stale
"""


#: Three rounds of the poll, and time for the read itself.
_LATE: Final = "interval '1 minute'"
_TELLING: Final = ", ".join(f"'{type_}'" for type_ in sorted(EFFECTS))
#: Since when the books may be older than Stripe: the platform's list of events was not read to its
#: end for a minute, or an event waits that came so late and may tell of a lost operation. What
#: merely waits in a long queue came in time. An event that fails is waited for until it is parked.
BEHIND_STRIPE: Final = (
    "SELECT seen_until AS since FROM event_cursors "
    f"WHERE scope = 'platform' AND seen_until < now() - {_LATE} "
    "UNION ALL SELECT receive_time FROM webhook_events WHERE state = 'WAITING' "
    f"AND endpoint = 'platform' AND type IN ({_TELLING}) AND receive_time > create_time + {_LATE}"
)
CATCHES_UP: Final = f"EXISTS ({BEHIND_STRIPE})"


class PollingWrites(TransactionStatements):
    """Chooses what is polled next, and stores how far it was read."""

    def add_event_cursor(self, stripe_account_id: str) -> None:
        """Starts to poll the list of events of a Stripe account, from now on."""
        self._do(
            "INSERT INTO event_cursors (scope, seen_until, next_time) VALUES (:id, now(), now()) "
            "ON CONFLICT DO NOTHING",
            id=stripe_account_id,
        )

    def catches_up(self) -> bool:
        """Returns whether the books may be older than Stripe, and are being brought up to date.

        So it is for a moment after an outage, and after the restore of a backup. A new operation
        may be one that the books have lost, or meet one. What an expert owes by the books may be
        paid by then.
        """
        if self._catches_up is None:
            row = self._one(f"SELECT {CATCHES_UP} AS catches_up")
            self._catches_up = bool(row["catches_up"])
        return self._catches_up

    def lease_event_cursors(
        self, seconds: float, limit: int, *, paid_out: bool = False
    ) -> Sequence[EventCursor]:
        """Returns the lists of events that are due, and makes them due again after ``seconds``.

        With ``limit`` 0 these are the platform's own lists, otherwise at most ``limit`` lists of
        accounts: those that are not ready or have open payments. With ``paid_out`` it is the other
        accounts instead: those with recent earnings or payouts, and former accounts.
        """
        due = "SELECT scope FROM event_cursors WHERE next_time <= now() AND "
        which = "scope IN ('platform', 'thin')"
        if limit:
            which = (
                "EXISTS (SELECT FROM experts WHERE stripe_account_id = scope AND NOT deauthorized "
                f"AND {_MAY_PAY_OUT if paid_out else _OPEN})"
            )
            if paid_out:
                which = f"({which} OR {_REPLACED})"
            which += " ORDER BY next_time LIMIT :limit"
        found = self._all(
            "UPDATE event_cursors SET next_time = now() + :pause WHERE scope IN "
            f"({due}{which} FOR UPDATE SKIP LOCKED) "
            "RETURNING scope, seen_until, after_event_id, now() AS lease_time",
            pause=timedelta(seconds=seconds),
            limit=limit,
            recent=_PAID_OUT_WITHIN,
            unfinished=[state.value for state in UNFINISHED],
        )
        return [
            EventCursor(row["scope"], row["seen_until"], row["after_event_id"], row["lease_time"])
            for row in found
        ]

    def advance_event_cursor(self, scope: str, seen_until: datetime, after_event_id: str) -> None:
        """Stores how far a list was read. A position never moves back."""
        self._do(
            "UPDATE event_cursors SET seen_until = :seen_until, after_event_id = :after "
            "WHERE scope = :scope AND seen_until <= :seen_until",
            scope=scope,
            seen_until=seen_until,
            after=after_event_id,
        )

    def hasten_event_cursor(self, scope: str) -> None:
        """Makes a list of events due now."""
        self._do("UPDATE event_cursors SET next_time = now() WHERE scope = :scope", scope=scope)

    def rest_event_cursors(self, seconds: float, limit: int) -> None:
        """Puts lists of accounts off for ``seconds`` that are due, but need not be read.

        They are made due again when something opens (triggers).
        """
        self._do(
            "UPDATE event_cursors SET next_time = now() + :pause WHERE scope IN "
            "(SELECT scope FROM event_cursors WHERE next_time <= now() "
            "AND scope NOT IN ('platform', 'thin') AND NOT EXISTS (SELECT FROM experts "
            f"WHERE stripe_account_id = scope AND NOT deauthorized AND ({_OPEN} OR {_MAY_PAY_OUT}))"
            f" AND NOT {_REPLACED} ORDER BY next_time LIMIT :limit FOR UPDATE SKIP LOCKED)",
            pause=timedelta(seconds=seconds),
            limit=limit,
            recent=_PAID_OUT_WITHIN,
            unfinished=[state.value for state in UNFINISHED],
        )

    def lease_stale_payments(self, stale_seconds: float, limit: int) -> Sequence[str]:
        """Returns open payments that are due to be polled, unchanged for ``stale_seconds``.

        So is a payment whose parked operation can take effect no more, unless Stripe shows it by
        now: until a sync has shown that, the operation blocks what else could be done.

        The pause until the next poll is half the payment's age since its last change, but at least
        ``stale_seconds``. A payment that is finished leaves the queue.
        """
        self._do(
            f"INSERT INTO payment_polls (payment_id, next_time) {UNPOLLED_PARKED} "
            "ON CONFLICT DO NOTHING"
        )
        found = self._all(
            _LEASE_STALE,
            polled=[state.value for state in POLLED],
            unfinished=[state.value for state in UNFINISHED],
            pause=timedelta(seconds=stale_seconds),
            limit=limit,
            most=limit * 10,
        )
        return [row["payment_id"] for row in found if row["stale"]]
