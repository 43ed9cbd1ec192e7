"""Reads across payments: the ledger, totals, the backlog, and what reconciliation compares."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final

from payment_service.adapters.postgres.invariants import INVARIANTS
from payment_service.adapters.postgres.rows import payment_of, schedule_of, stored_posting_of
from payment_service.adapters.postgres.statements import OPEN, Row, Statements
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.ledger import Posting
from payment_service.domain.ports.records import (
    Backlog,
    HeldMoney,
    LedgerAccount,
    StoredEvent,
    StoredPosting,
    Trail,
)
from payment_service.domain.sync.changes import Movement
from payment_service.domain.texts import KeptText
from payment_service.domain.unreadable import UnreadableTrail

#: Everything that is stored of each payment, in one statement, so that all of it is of one moment:
#: a page of the payments that changed since a time, or one payment.
_TRAILS: Final = """
SELECT p.*,
    (SELECT json_agg(json_build_array(e.sequence, e.kind, e.time, e.body, encode(e.hash, 'hex'))
        ORDER BY e.sequence) FROM events e WHERE e.payment_id = p.payment_id) AS events,
    (SELECT json_agg(json_build_array(l.sequence, l.time, l.account, l.minor_units, l.currency,
        l.kind, l.balance_transaction_id) ORDER BY l.posting_id)
        FROM postings l WHERE l.payment_id = p.payment_id) AS postings,
    (SELECT json_agg(json_build_array(m.movement_id, m.kind, m.minor_units))
        FROM movements m WHERE m.payment_id = p.payment_id) AS movements,
    (SELECT json_agg(json_build_array(t.sequence, t.name, encode(t.salt, 'hex'), t.text))
        FROM texts t WHERE t.payment_id = p.payment_id) AS texts
FROM payments p
WHERE p.update_time >= :since AND (:payment_id = '' OR p.payment_id = :payment_id)
    AND (p.update_time, p.payment_id) > (:after_time, :after_id)
ORDER BY p.update_time, p.payment_id LIMIT :limit
"""


class LedgerReads(Statements):
    """Reads postings and their sums. Amounts are minor units; credits are negative."""

    def postings(self, payment_id: str) -> Sequence[StoredPosting]:
        """Returns the postings of one payment in the order in which they were written."""
        found = self._all(
            "SELECT * FROM postings WHERE payment_id = :id ORDER BY posting_id", id=payment_id
        )
        return [stored_posting_of(row) for row in found]

    def ledger_lines(self, ids: Sequence[str]) -> Mapping[tuple[str, str], int]:
        """Returns the sum of the postings of each balance transaction, by id and currency."""
        found = self._all(
            "SELECT balance_transaction_id AS id, currency, sum(minor_units)::bigint AS total "
            "FROM postings WHERE balance_transaction_id = ANY(:ids) GROUP BY 1, 2",
            ids=list(ids),
        )
        return {(row["id"], row["currency"]): row["total"] for row in found}

    def ledger_line_ids(self, account: str, since: datetime, until: datetime) -> Mapping[str, str]:
        """Returns the balance transactions on a ledger account, with their payment ids.

        The account is one at Stripe. A payout of before ``since`` is left out. Its posting may be
        days younger than the payout is at Stripe, so a list of Stripe's balance transactions from
        ``since`` on would not have it.
        """
        found = self._all(
            "SELECT DISTINCT balance_transaction_id AS id, payment_id FROM postings "
            "WHERE account = :account AND time >= :since AND time < :until "
            # So the planner can use the index of these accounts, `postings_at_stripe`.
            "AND starts_with(account, 'stripe:') "
            "AND balance_transaction_id <> '' AND NOT EXISTS (SELECT FROM payouts "
            "WHERE payouts.balance_transaction_id = postings.balance_transaction_id "
            "AND payouts.create_time < :since)",
            account=account,
            since=since,
            until=until,
        )
        return {row["id"]: row["payment_id"] or "" for row in found}

    def accounts_to_compare(self, since: datetime) -> Sequence[LedgerAccount]:
        """Returns the ledger account of every expert with postings at or after ``since``.

        Also those that an earlier run could not read. An expert whose accounts are all cut off
        from us is left out.
        """
        found = self._all(
            "WITH moved AS (SELECT account FROM postings WHERE time >= :since "
            "AND starts_with(account, 'stripe:connected:') "
            "UNION SELECT account FROM comparisons WHERE account <> '') "
            "SELECT account, max(unread_time) AS unread_time, array_agg(stripe_account_id "
            "ORDER BY stripe_account_id) FILTER (WHERE readable) AS stripe_account_ids, "
            "max(compared_until) AS compared_until "
            "FROM moved JOIN accounts ON account = 'stripe:connected:' || expert_id "
            "LEFT JOIN comparisons USING (account) "
            "GROUP BY account HAVING bool_or(readable)",
            since=since,
        )
        return [
            LedgerAccount(
                row["account"],
                tuple(row["stripe_account_ids"]),
                row["unread_time"],
                row["compared_until"],
            )
            for row in found
        ]

    def compared_until(self) -> datetime | None:
        """Returns up to when complete runs have compared everything, or None before the first."""
        row = self._maybe("SELECT compared_until FROM comparisons WHERE account = ''")
        until: datetime | None = row and row["compared_until"]
        return until


class ReportReads(Statements):
    """Reads sums for metrics, and what reconciliation and the audit check."""

    def held_money(self) -> Sequence[HeldMoney]:
        """Returns the money in escrow by currency, escrow mode and time to the first deadline."""
        found = self._all(
            "SELECT currency, escrow_mode, CASE "
            "WHEN first_deadline_time < now() + interval '6 hours' THEN '6' "
            "WHEN first_deadline_time < now() + interval '24 hours' THEN '24' "
            "WHEN first_deadline_time < now() + interval '72 hours' THEN '72' "
            "ELSE 'more' END AS hours_left, "
            "sum(held)::bigint AS held FROM payments WHERE held > 0 GROUP BY 1, 2, 3"
        )
        return [
            HeldMoney(row["currency"], row["escrow_mode"], row["hours_left"], row["held"])
            for row in found
        ]

    def backlog(self) -> Sequence[Backlog]:
        """Returns how many operations, events, disputes and experts wait, by state."""
        found = self._all(
            # What waits for the platform's balance waits for days, and has a discrepancy instead.
            "SELECT 'operation' AS what, CASE WHEN EXISTS (SELECT FROM payments "
            "WHERE payments.operation_id = operations.operation_id AND waiting_reason IN "
            "('REFUND_PENDING_FUNDS', 'TRANSFER_PENDING_FUNDS') "
            "AND payments.payment_id = operations.payment_id) THEN 'PENDING_FUNDS' ELSE state END "
            "AS state, count(*) AS count, "
            "extract(epoch FROM now() - min(create_time))::float AS oldest FROM operations "
            f"WHERE state IN {OPEN} GROUP BY 2 UNION ALL "
            "SELECT 'webhook_event', state, count(*), "
            "extract(epoch FROM now() - min(receive_time))::float FROM webhook_events "
            "WHERE state IN ('WAITING', 'PARKED') GROUP BY state UNION ALL "
            # A dispute without an answer is lost. The first row counts all disputes that need one,
            # the second those whose answer is due in 3 days.
            "SELECT 'dispute', due.state, count(*), "
            "extract(epoch FROM now() - min(create_time))::float FROM disputes, "
            "(VALUES ('NEEDS_RESPONSE', interval '10 years'), ('DUE_SOON', interval '3 days')) "
            "AS due (state, ahead) "
            "WHERE status IN ('needs_response', 'warning_needs_response') "
            "AND (evidence_due_time IS NULL OR evidence_due_time < now() + ahead) "
            "GROUP BY due.state UNION ALL "
            # Stripe stops the payouts of an expert who does not give it what it asks for in time.
            "SELECT 'expert', 'REQUIREMENTS_DUE_SOON', count(*), "
            "extract(epoch FROM now() - min(update_time))::float FROM experts "
            "WHERE status = 'READY' AND least(requirements_due_time, future_requirements_due_time) "
            "< now() + interval '14 days' HAVING count(*) > 0 UNION ALL "
            "SELECT 'feed_event', 'PENDING', count(*), "
            "extract(epoch FROM now() - min(time))::float FROM feed_pending HAVING count(*) > 0"
        )
        return [Backlog(row["what"], row["state"], row["count"], row["oldest"]) for row in found]

    def trails(
        self, since: datetime, after: tuple[datetime, str], limit: int, payment_id: str
    ) -> Sequence[Trail | UnreadableTrail]:
        """Returns everything stored of the payments that changed since then, or of one."""
        found = self._all(
            _TRAILS,
            since=since,
            after_time=after[0],
            after_id=after[1],
            limit=limit,
            payment_id=payment_id,
        )
        return [_trail_of(row) for row in found]

    def violations(
        self, since: datetime, payment_id: str = "", kinds: Collection[DiscrepancyKind] = ()
    ) -> Mapping[DiscrepancyKind, Sequence[str]]:
        """Returns the payment ids that violate each invariant.

        Checks the invariants in ``kinds``, or all of them if this is empty, against the payments
        that changed at or after ``since``, or against one payment.
        """
        return {
            kind: [row["payment_id"] for row in self._all(sql, since=since, payment_id=payment_id)]
            for kind, sql in INVARIANTS.items()
            if not kinds or kind in kinds
        }


def _trail_of(row: Row) -> Trail | UnreadableTrail:
    """Returns one row of ``_TRAILS`` as a value of the domain."""
    payment_id, update_time = row["payment_id"], row["update_time"]
    events = [
        StoredEvent(
            payment_id, sequence, kind, datetime.fromisoformat(time), body, bytes.fromhex(hashed)
        )
        for sequence, kind, time, body, hashed in row["events"] or ()
    ]
    try:
        payment = payment_of(row)
    except ValueError:  # One such row must not keep the others from being audited.
        return UnreadableTrail(payment_id, update_time, events)
    return Trail(
        payment,
        schedule_of(row),
        bytes(row["head_hash"]),
        events,
        [
            (sequence, datetime.fromisoformat(time), Posting(*line))
            for sequence, time, *line in row["postings"] or ()
        ],
        [Movement(*movement) for movement in row["movements"] or ()],
        [
            (sequence, KeptText(name, bytes.fromhex(salt), text))
            for sequence, name, salt, text in row["texts"] or ()
        ],
    )
