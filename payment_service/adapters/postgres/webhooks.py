"""Webhook events: stored once when they arrive, applied later by a background job.

Only the envelope is stored. Stripe is asked for the object again when the event is applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from payment_service.adapters.postgres import rows
from payment_service.adapters.postgres.statements import Statements, TransactionStatements
from payment_service.domain.ports.records import WebhookEvent


class WebhookWrites(TransactionStatements):
    """Stores, leases and finishes webhook events."""

    def store_event(self, event: WebhookEvent) -> bool:
        """Inserts the event. Returns False if it is already stored."""
        made = self._do(
            "INSERT INTO webhook_events (event_id, endpoint, type, object_id, account_id, "
            "payment_intent_id, payment_ref, payload_sha256, traceparent, create_time, state, "
            "verdict, attempts, last_error, receive_time, next_try_time) VALUES (:event_id, "
            ":endpoint, :type, :object_id, :account_id, :payment_intent_id, :payment_ref, "
            ":payload_sha256, :traceparent, :create_time, :state, :verdict, 0, '', now(), "
            "CASE WHEN :state = 'WAITING' THEN now() END) ON CONFLICT DO NOTHING",
            event_id=event.event_id,
            endpoint=event.endpoint,
            type=event.type,
            object_id=event.object_id,
            account_id=event.account_id,
            payment_intent_id=event.payment_intent_id,
            payment_ref=event.payment_ref,
            payload_sha256=event.payload_sha256,
            traceparent=event.traceparent,
            create_time=event.create_time,
            state=event.state,
            verdict=event.verdict,
        )
        return made == 1

    def lease_webhook_events(self, seconds: float, limit: int) -> Sequence[WebhookEvent]:
        """Leases at most ``limit`` events that are due for ``seconds``, and returns them.

        Two replicas never get the same event.
        """
        found = self._all(
            "UPDATE webhook_events SET attempts = attempts + 1, next_try_time = now() + :lease "
            "WHERE event_id IN (SELECT event_id FROM webhook_events WHERE state = 'WAITING' "
            "AND next_try_time <= now() ORDER BY next_try_time LIMIT :limit "
            "FOR UPDATE SKIP LOCKED) RETURNING *",
            lease=timedelta(seconds=seconds),
            limit=limit,
        )
        return [rows.webhook_event_of(row) for row in found]

    def finish_event(self, event_id: str, state: str, verdict: str) -> None:
        """Closes an event that waits or is parked, with its final state and what came of it."""
        self._do(
            "UPDATE webhook_events SET state = :state, verdict = :verdict, last_error = '', "
            "next_try_time = NULL, apply_time = now() WHERE event_id = :id "
            "AND state IN ('WAITING', 'PARKED')",
            id=event_id,
            state=state,
            verdict=verdict,
        )

    def postpone_event(self, event_id: str, last_error: str, seconds: float | None) -> None:
        """Schedules the next try after ``seconds``, or parks the event if this is None."""
        self._do(
            "UPDATE webhook_events SET state = :state, last_error = :last_error, "
            "next_try_time = now() + :delay WHERE event_id = :id AND state = 'WAITING'",
            id=event_id,
            state="PARKED" if seconds is None else "WAITING",
            last_error=last_error,
            delay=None if seconds is None else timedelta(seconds=seconds),
        )

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
