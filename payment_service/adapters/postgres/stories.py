"""What ExplainPayment reads: payments by any id, and everything that is stored of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from payment_service.adapters.postgres import rows, texts
from payment_service.adapters.postgres.statements import OPEN, Statements
from payment_service.domain.audit_trail import cause_in
from payment_service.domain.disputes import Dispute
from payment_service.domain.ledger import expert_debt as expert_debt_account
from payment_service.domain.operations import Operation
from payment_service.domain.payment import Payment
from payment_service.domain.ports.records import (
    StoredDiscrepancy,
    StoredEvent,
    StoredPosting,
    WebhookEvent,
)
from payment_service.domain.story.entries import MOST_ROWS, Records, StoredOperation
from payment_service.domain.sync.changes import Movement

#: How the payment of an id is found, by what stands before its first underscore. Each reads one
#: index.
_BY_PREFIX: Final[Mapping[str, str]] = {
    "pay": "SELECT payment_id FROM payments WHERE payment_id = :id",
    "pi": "SELECT payment_id FROM payments WHERE payment_intent_id = :id",
    "ch": "SELECT payment_id FROM payments WHERE charge_id = :id AND charge_id <> ''",
    "py": "SELECT payment_id FROM payments WHERE charge_id = :id AND charge_id <> ''",
    "du": "SELECT payment_id FROM disputes WHERE dispute_id = :id",
    "dp": "SELECT payment_id FROM disputes WHERE dispute_id = :id",
    "op": (
        "SELECT coalesce(o.payment_id, d.payment_id, o.payload ->> 'payment_id') AS payment_id "
        "FROM operations o LEFT JOIN disputes d USING (dispute_id) WHERE o.operation_id = :id"
    ),
    "txn": (
        "SELECT payment_id FROM postings WHERE balance_transaction_id = :id "
        "AND balance_transaction_id <> '' AND payment_id IS NOT NULL LIMIT 1"
    ),
    "disc": (
        "SELECT payment_id FROM discrepancies WHERE 'disc_' || discrepancy_id = :id "
        "AND discrepancy_id = :number"
    ),
}
#: Refunds, transfers, reversals, fee refunds, fraud warnings.
_BY_MOVEMENT: Final = "SELECT payment_id FROM movements WHERE movement_id = :id"
_NAMED: Final = " UNION ALL ".join(
    f"(SELECT payment_id, create_time FROM payments WHERE {column} = :id "
    "ORDER BY create_time DESC, payment_id DESC LIMIT :limit)"
    for column in ("gig_id", "client_id", "expert_id")
)
#: How many events before a page are asked who caused them, so that no call is named twice.
_FORMER: Final = 200
#: Before the first event and after the last.
_EVER: Final = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
_OF_PAYMENT: Final = (
    "(payment_id = :id OR dispute_id IN (SELECT dispute_id FROM disputes WHERE payment_id = :id))"
)


class StoryReads(Statements):
    """Reads the records of one payment's story, within `SqlDatabase.read_at_once`."""

    def payments_named(self, given: str, limit: int) -> Sequence[Payment]:
        """Returns the payments that an id names, newest first, at most ``limit``."""
        found = self._payment_ids(given)
        if not found:
            # An id of the gig or user service may look like anything.
            listed = self._all(
                f"SELECT DISTINCT payment_id, create_time FROM ({_NAMED}) AS named "
                "ORDER BY create_time DESC, payment_id DESC LIMIT :limit",
                id=given,
                limit=limit,
            )
            found = [row["payment_id"] for row in listed]
        payments = self._all(
            "SELECT * FROM payments WHERE payment_id = ANY(:ids) "
            "ORDER BY create_time DESC, payment_id DESC",
            ids=found,
        )
        return [rows.payment_of(row) for row in payments]

    def _payment_ids(self, given: str) -> list[str]:
        """Returns the payment of an id of Stripe's, or of one of ours."""
        prefix, _, rest = given.partition("_")
        if prefix == "evt":
            row = self._maybe(
                "SELECT payment_ref, payment_intent_id FROM webhook_events WHERE event_id = :id",
                id=given,
            )
            references = [row["payment_ref"], row["payment_intent_id"]] if row else []
            named = [one for reference in references if reference for one in self._by(reference)]
            return named[:1]
        number = int(rest) if rest.isascii() and rest.isdigit() and len(rest) < 18 else 0
        return self._by(given, number)

    def _by(self, reference: str, number: int = 0) -> list[str]:
        sql = _BY_PREFIX.get(reference.partition("_")[0], _BY_MOVEMENT)
        found = self._all(sql, id=reference, number=number)
        return [row["payment_id"] for row in found if row["payment_id"]]

    def story(self, payment_id: str, after: int, limit: int) -> Records | None:
        """Returns ``limit`` events after a sequence, and all that happened between them."""
        row = self._maybe(
            "SELECT *, clock_timestamp() AS moment FROM payments WHERE payment_id = :id",
            id=payment_id,
        )
        if row is None:
            return None
        payment = rows.payment_of(row)
        former = self._story_events(payment_id, max(after - _FORMER, 0), min(after, _FORMER))
        events = self._story_events(payment_id, after, limit + 1)
        has_more = len(events) > limit
        # What has no event belongs to the page with the event before it.
        since = events[0].time if former and events else _EVER[0]
        window = (since, events[limit].time if has_more else _EVER[1])
        events = events[:limit]
        movements = self._movements(payment_id)
        operations = self._operations(payment_id, window)
        references = [payment_id, payment.payment_intent_id, payment.charge_id]
        references += [one.movement_id for one in movements]
        webhooks = self._webhooks(references, window)
        discrepancies = self._discrepancies(payment_id, window)
        return Records(
            payment=payment,
            schedule=rows.schedule_of(row),
            since=since if former else None,
            until=window[1] if has_more else None,
            former_causes=[cause_in(event.body) for event in former],
            events=events,
            has_more=has_more,
            left_out=MOST_ROWS in (len(operations), len(webhooks), len(discrepancies)),
            postings=self._story_postings(payment_id, events),
            operations=operations,
            movements=movements,
            webhooks=webhooks,
            kept_event_ids=self._kept_event_ids(events),
            discrepancies=discrepancies,
            open_operations=self._open_operations(payment_id),
            open_discrepancies=self._open_discrepancies(payment_id),
            waiting_webhooks=self._waiting_webhooks(references),
            disputes=self._disputes_now(payment_id),
            expert_debt=self._debt(payment),
            now=row["moment"],
        )

    def _story_events(self, payment_id: str, after: int, limit: int) -> list[StoredEvent]:
        found = self._all(
            f"SELECT *, {texts.TEXTS_OF_EVENT} FROM events "
            "WHERE payment_id = :id AND sequence > :after ORDER BY sequence LIMIT :limit",
            id=payment_id,
            after=after,
            limit=limit,
        )
        return [rows.stored_event_of(row) for row in found]

    def _story_postings(
        self, payment_id: str, events: Sequence[StoredEvent]
    ) -> Sequence[StoredPosting]:
        if not events:
            return []
        found = self._all(
            "SELECT * FROM postings WHERE payment_id = :id "
            "AND sequence BETWEEN :first AND :last ORDER BY posting_id",
            id=payment_id,
            first=events[0].sequence,
            last=events[-1].sequence,
        )
        return [rows.stored_posting_of(row) for row in found]

    def _movements(self, payment_id: str) -> Sequence[Movement]:
        found = self._all(
            "SELECT * FROM movements WHERE payment_id = :id "
            "ORDER BY time, movement_id LIMIT :limit",
            id=payment_id,
            limit=MOST_ROWS,
        )
        return [
            Movement(
                row["movement_id"],
                row["kind"],
                row["minor_units"],
                row["operation_id"],
                row["transfer_id"],
            )
            for row in found
        ]

    def _operations(
        self, payment_id: str, window: tuple[datetime, datetime]
    ) -> Sequence[StoredOperation]:
        found = self._all(
            f"SELECT * FROM operations WHERE {_OF_PAYMENT} AND create_time < :until "
            "AND (create_time >= :since OR settle_time >= :since) "
            "ORDER BY create_time LIMIT :limit",
            id=payment_id,
            since=window[0],
            until=window[1],
            limit=MOST_ROWS,
        )
        return [StoredOperation(rows.operation_of(row), row["settle_time"]) for row in found]

    def _open_operations(self, payment_id: str) -> Sequence[Operation]:
        found = self._all(
            f"SELECT * FROM operations WHERE {_OF_PAYMENT} "
            f"AND state IN {OPEN} ORDER BY create_time LIMIT :limit",
            id=payment_id,
            limit=MOST_ROWS,
        )
        return [rows.operation_of(row) for row in found]

    def _webhooks(
        self, references: Sequence[str], window: tuple[datetime, datetime]
    ) -> Sequence[WebhookEvent]:
        found = self._all(
            "SELECT * FROM webhook_events WHERE payment_ref = ANY(:references) "
            "AND payment_ref <> '' AND receive_time >= :since AND receive_time < :until "
            "ORDER BY receive_time, event_id LIMIT :limit",
            references=list(references),
            since=window[0],
            until=window[1],
            limit=MOST_ROWS,
        )
        return [rows.webhook_event_of(row) for row in found]

    def _kept_event_ids(self, events: Sequence[StoredEvent]) -> frozenset[str]:
        """Returns which of Stripe's events that caused these are still stored."""
        causes = {cause_in(event.body).request_id for event in events}
        found = self._all(
            "SELECT event_id FROM webhook_events WHERE event_id = ANY(:ids)",
            ids=[one for one in causes if one.startswith("evt_")],
        )
        return frozenset(row["event_id"] for row in found)

    def _waiting_webhooks(self, references: Sequence[str]) -> Sequence[WebhookEvent]:
        found = self._all(
            "SELECT * FROM webhook_events WHERE payment_ref = ANY(:references) "
            "AND payment_ref <> '' AND state IN ('WAITING', 'PARKED') "
            "ORDER BY receive_time LIMIT :limit",
            references=list(references),
            limit=MOST_ROWS,
        )
        return [rows.webhook_event_of(row) for row in found]

    def _discrepancies(
        self, payment_id: str, window: tuple[datetime, datetime]
    ) -> Sequence[StoredDiscrepancy]:
        found = self._all(
            "SELECT * FROM discrepancies WHERE payment_id = :id AND time >= :since "
            "AND time < :until ORDER BY time, discrepancy_id LIMIT :limit",
            id=payment_id,
            since=window[0],
            until=window[1],
            limit=MOST_ROWS,
        )
        return [rows.discrepancy_of(row) for row in found]

    def _open_discrepancies(self, payment_id: str) -> Sequence[StoredDiscrepancy]:
        found = self._all(
            "SELECT * FROM discrepancies WHERE payment_id = :id AND resolve_time IS NULL "
            "ORDER BY discrepancy_id LIMIT :limit",
            id=payment_id,
            limit=MOST_ROWS,
        )
        return [rows.discrepancy_of(row) for row in found]

    def _disputes_now(self, payment_id: str) -> Sequence[Dispute]:
        found = self._all(
            "SELECT * FROM disputes WHERE payment_id = :id ORDER BY create_time, dispute_id "
            "LIMIT :limit",
            id=payment_id,
            limit=MOST_ROWS,
        )
        return [rows.dispute_of(row) for row in found]

    def _debt(self, payment: Payment) -> int:
        row = self._one(
            "SELECT coalesce(sum(minor_units), 0)::bigint AS debt FROM postings "
            "WHERE account = :account AND currency = :currency",
            account=expert_debt_account(payment.expert_id),
            currency=payment.currency,
        )
        return int(row["debt"])
