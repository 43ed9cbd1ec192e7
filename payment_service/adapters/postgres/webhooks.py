"""Webhook events: stored once when they arrive, applied later by a background job.

Only the envelope is stored. Stripe is asked for the object again when the event is applied.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from payment_service.adapters.postgres import rows
from payment_service.adapters.postgres.statements import Statements, TransactionStatements
from payment_service.domain.ports.records import StoredEvents, WebhookEvent
from payment_service.domain.webhook_event import EFFECTS_OF

#: The columns of the envelopes, with the types that they have in JSON.
_ENVELOPE: Final = (
    "event_id text, endpoint text, type text, object_id text, account_id text, "
    "payment_intent_id text, payment_ref text, payload_sha256 text, own_key text, "
    "traceparent text, "
    "create_time timestamptz, state text, verdict text"
)
#: What an operation's own event tells, as pairs of SQL.
_EFFECTS: Final = ", ".join(
    f"('{kind.value}', '{type_}')" for kind, types in EFFECTS_OF.items() for type_ in sorted(types)
)
#: What the books know of the event ``e``: one row, or none. An event is known if it is from before
#: its operation was settled by a snapshot, and what it says was made is on the books. Anything else
#: is a reason to look at Stripe. It is expected while the call that has sent the request is still
#: at work: that call books what the event tells. LIMIT keeps PostgreSQL from joining the whole
#: tables, whose size it does not know when it plans.
_OWN: Final = f"""
LEFT JOIN LATERAL (
    SELECT o.state = 'SUCCEEDED' AND e.create_time <= o.settle_time
        AND (e.type NOT IN ('transfer.created', 'refund.created')
        OR EXISTS (SELECT FROM movements WHERE movement_id = e.object_id)) AS known,
        o.state = 'STARTED' AND o.lease_until > now() AS expected
    FROM operations AS o WHERE o.operation_id = split_part(e.own_key, '-', 1)
    AND o.operation_id || '-' || o.attempt = e.own_key AND (o.kind, e.type) IN ({_EFFECTS})
    LIMIT 1
) AS own ON true
"""
_STORE: Final = f"""
WITH stored AS (
    INSERT INTO webhook_events (event_id, endpoint, type, object_id, account_id,
        payment_intent_id, payment_ref, payload_sha256, own_key, traceparent, create_time, state,
        verdict, attempts, last_error, receive_time, next_try_time, apply_time)
    SELECT event_id, endpoint, type, object_id, account_id, payment_intent_id, payment_ref,
        decode(payload_sha256, 'hex'), own_key, traceparent, create_time,
        CASE WHEN known THEN 'APPLIED' ELSE state END,
        CASE WHEN known THEN 'known' ELSE verdict END, 0, '', now(),
        CASE WHEN state = 'WAITING' AND NOT known
            THEN now() + CASE WHEN expected THEN :patience ELSE :gathering END END,
        CASE WHEN known THEN now() END
    FROM (SELECT e.*, coalesce(known, false) AS known, coalesce(expected, false) AS expected
        FROM jsonb_to_recordset(CAST(:events AS jsonb)) AS e ({_ENVELOPE}) {_OWN}) AS e
    ON CONFLICT DO NOTHING RETURNING event_id, next_try_time
)
SELECT coalesce(array_agg(event_id), '{{}}') AS new_ids,
    coalesce(bool_or(next_try_time <= now() + :gathering), false) AS has_due,
    coalesce(bool_or(next_try_time > now() + :gathering), false) AS has_expected FROM stored
"""
#: An event is due when its pause is over, or with another one of its payment: one sync applies all.
_IS_DUE: Final = (
    "e.state = 'WAITING' AND e.next_try_time <= now() + :gathering AND (e.next_try_time <= now() "
    "OR e.attempts = 0 AND e.payment_ref <> '' AND EXISTS (SELECT FROM webhook_events AS other "
    "WHERE other.payment_ref = e.payment_ref AND other.state = 'WAITING' "
    "AND other.next_try_time <= now()))"
)
#: The limit is hidden from the planner, which would plan the statement anew for each value.
_LEASE: Final = f"""
UPDATE webhook_events AS w SET attempts = w.attempts + 1,
    state = CASE WHEN known THEN 'APPLIED' ELSE w.state END,
    verdict = CASE WHEN known THEN 'known' ELSE w.verdict END,
    apply_time = CASE WHEN known THEN now() END,
    next_try_time = CASE WHEN NOT known THEN now() + :lease END
FROM (SELECT e.event_id AS due_id, coalesce(known, false) AS known
    FROM webhook_events AS e {_OWN}
    WHERE {_IS_DUE}
    ORDER BY e.next_try_time LIMIT (SELECT :limit) FOR UPDATE OF e SKIP LOCKED) AS due
WHERE w.event_id = due_id RETURNING w.*
"""


class WebhookWrites(TransactionStatements):
    """Stores, leases and finishes webhook events."""

    def store_events(
        self, events: Sequence[WebhookEvent], patience: float, gathering: float
    ) -> StoredEvents:
        """Inserts those of the events that are not stored yet, by one statement.

        An event that tells only what an operation of ours has done is applied at once if the
        operation has succeeded. If the operation's holder is still at work, the event waits for it
        for ``patience`` seconds. Any other event waits ``gathering`` seconds for those that Stripe
        sends with it.
        """
        row = self._one(
            _STORE,
            events=json.dumps([_envelope(event) for event in events]),
            patience=timedelta(seconds=patience),
            gathering=timedelta(seconds=gathering),
        )
        return StoredEvents(frozenset(row["new_ids"]), row["has_due"], row["has_expected"])

    def lease_webhook_events(
        self, seconds: float, gathering: float, limit: int
    ) -> Sequence[WebhookEvent]:
        """Leases at most ``limit`` events that are due for ``seconds``, and returns them.

        Two replicas never get the same event. An event that is known by now is returned as applied.
        """
        found = self._all(
            _LEASE,
            lease=timedelta(seconds=seconds),
            gathering=timedelta(seconds=gathering),
            limit=limit,
        )
        return [rows.webhook_event_of(row) for row in found]

    def finish_events(self, event_ids: Sequence[str], state: str, verdict: str) -> None:
        """Closes events that wait or are parked, with their final state and what came of them.

        They are found by their ids. PostgreSQL must not take the index of what is open, which has
        the entries of all that was closed since the last VACUUM; and it must not see how many ids
        there are, or it would plan this anew each time.
        """
        self._later(
            "UPDATE webhook_events SET state = :state, verdict = :verdict, last_error = '', "
            "next_try_time = NULL, apply_time = now() "
            "WHERE event_id = ANY(CAST((SELECT :ids) AS text[])) "
            "AND state NOT IN ('APPLIED', 'IGNORED')",
            ids=list(event_ids),
            state=state,
            verdict=verdict,
        )

    def postpone_event(self, event_id: str, last_error: str, seconds: float | None) -> bool:
        """Schedules the next try after ``seconds``, or parks the event if this is None.

        Returns False, and changes nothing, if the event is closed by now.
        """
        postponed = self._do(
            "UPDATE webhook_events SET state = :state, last_error = :last_error, "
            "next_try_time = now() + :delay WHERE event_id = :id AND state = 'WAITING'",
            id=event_id,
            state="PARKED" if seconds is None else "WAITING",
            last_error=last_error,
            delay=None if seconds is None else timedelta(seconds=seconds),
        )
        return postponed == 1

    def retry_event(self, event_id: str) -> WebhookEvent | None:
        """Makes a parked event due now and returns it. Returns None if it is not parked."""
        row = self._maybe(
            "UPDATE webhook_events SET state = 'WAITING', attempts = 0, next_try_time = now() "
            "WHERE event_id = :id AND state = 'PARKED' RETURNING *",
            id=event_id,
        )
        return row and rows.webhook_event_of(row)


class WebhookReads(Statements):
    """Reads webhook events outside transactions."""

    def webhook_events(
        self, state: str | None, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[WebhookEvent]:
        """Returns one page, oldest first; without a state, of all waiting and parked events."""
        which = "state = :state" if state else "state IN ('WAITING', 'PARKED')"
        found = self._page(
            f"SELECT * FROM webhook_events WHERE {which}",
            ("receive_time", "event_id"),
            after,
            limit,
            state=state,
        )
        return [rows.webhook_event_of(row) for row in found]

    def webhook_event(self, event_id: str) -> WebhookEvent | None:
        """Returns the event, or None."""
        row = self._maybe("SELECT * FROM webhook_events WHERE event_id = :id", id=event_id)
        return row and rows.webhook_event_of(row)


def _envelope(event: WebhookEvent) -> dict[str, Any]:
    """Returns the envelope as JSON, by the columns of ``_ENVELOPE``."""
    return {
        "event_id": event.event_id,
        "endpoint": event.endpoint,
        "type": event.type,
        "object_id": event.object_id,
        "account_id": event.account_id,
        "payment_intent_id": event.payment_intent_id,
        "payment_ref": event.payment_ref,
        "payload_sha256": event.payload_sha256.hex(),
        "own_key": event.own_key,
        "traceparent": event.traceparent,
        "create_time": event.create_time.isoformat(),
        "state": event.state,
        "verdict": event.verdict,
    }
