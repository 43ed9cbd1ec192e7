"""Invariants between the tables, as small named queries.

Each query returns the payments that violate the invariant, among those that changed since a time.
A payment's rows are read by a subquery, so that the planner cannot choose to read everybody's. It
should never find one: the code and the schema already refuse such changes. Whether a payment's row
still agrees with its own history is not checked here; the audit of the hash chain does that.
"""

from __future__ import annotations

from typing import Final

from payment_service.adapters.postgres.statements import OPEN
from payment_service.domain.discrepancies import DiscrepancyKind

#: The balance of a payment on one ledger account is as expected from the payment's row.
_BALANCE_IS: Final = (
    "SELECT p.payment_id FROM payments p WHERE {{scope}} AND "
    "(SELECT coalesce(sum(l.minor_units), 0) FROM postings l WHERE l.payment_id = p.payment_id "
    "AND l.account = {account}) <> {expected} LIMIT 100"
)

_INVARIANTS: Final[dict[DiscrepancyKind, str]] = {
    DiscrepancyKind.POSTINGS_SUM_TO_ZERO: (
        "SELECT p.payment_id FROM payments p WHERE {scope} AND EXISTS (SELECT FROM postings l "
        "WHERE l.payment_id = p.payment_id GROUP BY l.currency HAVING sum(l.minor_units) <> 0) "
        "LIMIT 100"
    ),
    DiscrepancyKind.EACH_VERSION_HAS_ONE_EVENT: (
        "SELECT p.payment_id FROM payments p WHERE {scope} AND NOT EXISTS (SELECT FROM events e "
        "WHERE e.payment_id = p.payment_id "
        "HAVING count(*) = p.version AND max(e.sequence) = p.version) LIMIT 100"
    ),
    DiscrepancyKind.LAST_EVENT_IS_HEAD: (
        "SELECT p.payment_id FROM payments p LEFT JOIN events e "
        "ON e.payment_id = p.payment_id AND e.sequence = p.version "
        "WHERE {scope} AND e.hash IS DISTINCT FROM p.head_hash LIMIT 100"
    ),
    DiscrepancyKind.EACH_EVENT_IS_IN_FEED: (
        "SELECT p.payment_id FROM payments p WHERE {scope} AND EXISTS (SELECT FROM events e "
        "LEFT JOIN feed f USING (payment_id, sequence) "
        "LEFT JOIN feed_pending w USING (payment_id, sequence) "
        "WHERE e.payment_id = p.payment_id AND f.position IS NULL AND w.pending_id IS NULL) "
        "LIMIT 100"
    ),
    DiscrepancyKind.FEED_KEEPS_EVENT_ORDER: (
        "SELECT p.payment_id FROM payments p WHERE {scope} AND EXISTS (SELECT FROM feed f "
        "JOIN feed l ON l.payment_id = f.payment_id AND l.sequence = f.sequence + 1 "
        "WHERE f.payment_id = p.payment_id AND l.position < f.position) LIMIT 100"
    ),
    DiscrepancyKind.AUTHORIZED_EQUALS_HOLD_ACCOUNT: _BALANCE_IS.format(
        account="'hold'", expected="CASE WHEN p.charged = 0 THEN p.held ELSE 0 END"
    ),
    DiscrepancyKind.HELD_EQUALS_ESCROW_ACCOUNT: _BALANCE_IS.format(
        account="'escrow:' || p.payment_id",
        expected="CASE WHEN p.charged > 0 THEN -p.held ELSE 0 END",
    ),
    DiscrepancyKind.CHARGED_IS_ACCOUNTED_FOR: (
        "SELECT p.payment_id FROM payments p WHERE {scope} AND p.charged > 0 "
        "AND p.charged <> p.held + p.captured + p.refunded_from_escrow + p.lost_held LIMIT 100"
    ),
    DiscrepancyKind.NET_COMMISSION_EQUALS_ACCOUNT: _BALANCE_IS.format(
        account="'commission'", expected="-p.net_commission"
    ),
    # Together: what waits for the platform's balance becomes payable if Stripe does not pay it.
    DiscrepancyKind.CLIENT_PAYABLE_EQUALS_ACCOUNT: (
        "SELECT p.payment_id FROM payments p WHERE {scope} AND EXISTS "
        "(SELECT FROM postings l WHERE l.payment_id = p.payment_id HAVING "
        "coalesce(sum(l.minor_units) FILTER (WHERE l.account = 'client_payable:' || "
        "p.payment_id), 0) <> -p.client_payable OR "
        "coalesce(sum(l.minor_units) FILTER (WHERE l.account = 'pending_refund:' || "
        "p.payment_id), 0) <> -p.pending_refund) LIMIT 100"
    ),
    DiscrepancyKind.DISPUTED_EQUALS_DISPUTE_HOLD_ACCOUNT: _BALANCE_IS.format(
        account="'dispute_hold:' || p.payment_id",
        expected=(
            "(SELECT coalesce(sum(greatest("
            "d.withdrawn - d.reinstated - d.lost, 0)), 0) "
            "FROM disputes d WHERE d.payment_id = p.payment_id)"
        ),
    ),
    DiscrepancyKind.LOST_IS_WITHIN_DISPUTES: (
        "SELECT p.payment_id FROM payments p "
        "WHERE {scope} AND p.lost + p.lost_held > "
        "(SELECT coalesce(sum(d.withdrawn), 0) FROM disputes d "
        "WHERE d.payment_id = p.payment_id) "
        "LIMIT 100"
    ),
    # Of a payment, no more is taken back from its expert than refunds, losses and adjustments have
    # made due. What its captures kept back was due for other payments.
    DiscrepancyKind.DUE_IS_TAKEN_BACK_ONCE: (
        "SELECT p.payment_id FROM payments p WHERE {scope} AND EXISTS (SELECT FROM postings l "
        "WHERE l.payment_id = p.payment_id AND l.account = 'expert_debt:' || p.expert_id "
        "AND l.kind <> 'debt_netted' AND NOT (l.kind = 'adjusted' AND l.minor_units < 0) "
        "HAVING sum(l.minor_units) < 0) LIMIT 100"
    ),
    DiscrepancyKind.DISPUTED_PAYMENT_IS_FROZEN: (
        "SELECT DISTINCT p.payment_id FROM payments p JOIN disputes d USING (payment_id) "
        "WHERE {scope} AND p.frozen NOT IN ('INQUIRY', 'CHARGEBACK') AND (d.outcome = 'OPEN' "
        "OR (d.outcome IN ('LOST', 'PREVENTED') "
        "AND d.withdrawn > d.reinstated + d.lost)) "
        "LIMIT 100"
    ),
    DiscrepancyKind.PAYMENT_NAMES_ITS_OPEN_OPERATION: (
        "SELECT p.payment_id FROM payments p LEFT JOIN operations o "
        f"ON o.payment_id = p.payment_id AND o.state IN {OPEN} "
        "WHERE {scope} AND coalesce(o.operation_id, '') <> p.operation_id LIMIT 100"
    ),
    DiscrepancyKind.CLIENT_PAYABLE_HAS_OPEN_REPAYMENT: (
        "SELECT p.payment_id FROM payments p WHERE {scope} "
        "AND p.client_payable > 0 AND p.operation_id = '' LIMIT 100"
    ),
    DiscrepancyKind.BUSY_STATE_HAS_OPEN_OPERATION: (
        "SELECT p.payment_id FROM payments p WHERE {scope} "
        "AND p.state IN ('CAPTURING', 'CANCELING', 'PROMOTING', 'REFUNDING') "
        "AND p.operation_id = '' LIMIT 100"
    ),
}

#: The tables whose rows belong to payments, with the column that says when a row was written.
_BELONGINGS: Final = {
    "events": "time",
    "postings": "time",
    "movements": "time",
    "operations": "create_time",
    "idempotency_keys": "create_time",
}
_OWNERLESS: Final = " UNION ".join(
    f"SELECT r.payment_id FROM {table} r WHERE r.{time} >= :since "
    "AND (:payment_id = '' OR r.payment_id = :payment_id) AND NOT EXISTS "
    "(SELECT FROM payments p WHERE p.payment_id = r.payment_id) AND r.payment_id IS NOT NULL"
    for table, time in _BELONGINGS.items()
)
#: Invariants of balances and of experts' postings, which belong to no payment. They are checked
#: only when all payments are checked, and a violation has no payment id.
_OF_PAYOUTS: Final[dict[DiscrepancyKind, str]] = {
    DiscrepancyKind.EXPERT_POSTINGS_SUM_TO_ZERO: (
        "SELECT DISTINCT '' AS payment_id FROM postings WHERE :payment_id = '' AND expert_id IN "
        "(SELECT expert_id FROM payouts WHERE update_time >= :since) "
        "GROUP BY expert_id, sequence, currency HAVING sum(minor_units) <> 0"
    ),
    # Both sums have come to the same posting: the reconciliation has just made the second one.
    DiscrepancyKind.BALANCES_EQUAL_POSTINGS: (
        "SELECT '' AS payment_id FROM ledger_span WHERE :payment_id = '' AND :since IS NOT NULL "
        "AND checked_until = folded_until AND ((SELECT minor_units - checked_units "
        # The order makes the planner use the index that has only what differs.
        "FROM ledger_balances WHERE minor_units <> checked_units "
        "ORDER BY minor_units - checked_units LIMIT 1) IS NOT NULL OR EXISTS "
        "(SELECT FROM ledger_families WHERE minor_units <> checked_units))"
    ),
    DiscrepancyKind.PAYOUT_HAS_ITS_POSTINGS: (
        "SELECT DISTINCT '' AS payment_id FROM payouts p LEFT JOIN postings l "
        "ON l.expert_id = p.expert_id AND l.balance_transaction_id <> '' AND "
        "l.balance_transaction_id IN (p.balance_transaction_id, p.failure_balance_transaction_id) "
        "WHERE p.update_time >= :since AND :payment_id = '' GROUP BY p.payout_id "
        "HAVING count(l.posting_id) <> (p.balance_transaction_id <> '')::int "
        "+ (p.failure_balance_transaction_id <> '')::int"
    ),
}

#: Each approved adjustment has posted its lines and nothing else, and whatever says that it was
#: adjusted belongs to an approved adjustment. So two people stand behind every such line.
_ADJUSTED: Final = (
    "WITH approved AS (SELECT *, coalesce(payment_id, '') AS whose FROM adjustments "
    "WHERE state = 'APPROVED' AND decide_time >= :since "
    "AND (:payment_id = '' OR payment_id = :payment_id)), "
    "planned AS (SELECT adjustment_id, whose, line ->> 0 AS account, line ->> 1 AS currency, "
    "sum((line ->> 2)::bigint) AS units FROM approved, jsonb_array_elements(lines) AS line "
    "GROUP BY 1, 2, 3, 4), "
    "there AS (SELECT a.adjustment_id, a.whose, l.account, l.currency::text AS currency, "
    "sum(l.minor_units) AS units FROM approved a JOIN postings l ON l.sequence = a.sequence AND "
    "(l.payment_id = a.payment_id OR l.expert_id = a.expert_id "
    "OR l.adjustment_id = a.adjustment_id) GROUP BY 1, 2, 3, 4), "
    "strays AS (SELECT coalesce(l.payment_id, '') AS whose FROM postings l "
    "WHERE (l.kind = 'adjusted' OR l.adjustment_id IS NOT NULL) AND l.time >= :since "
    "AND (:payment_id = '' OR l.payment_id = :payment_id) AND NOT EXISTS "
    "(SELECT FROM adjustments a WHERE a.state = 'APPROVED' AND a.sequence = l.sequence AND "
    "(a.payment_id = l.payment_id OR a.expert_id = l.expert_id "
    "OR a.adjustment_id = l.adjustment_id))) "
    "SELECT whose AS payment_id FROM ((TABLE planned EXCEPT TABLE there) "
    "UNION (TABLE there EXCEPT TABLE planned)) AS differing "
    "UNION SELECT whose FROM strays LIMIT 100"
)

#: One payment, or all payments that changed since a time.
_SCOPE: Final = "p.update_time >= :since AND (:payment_id = '' OR p.payment_id = :payment_id)"
INVARIANTS: Final[dict[DiscrepancyKind, str]] = {
    **{kind: sql.format(scope=_SCOPE) for kind, sql in _INVARIANTS.items()},
    DiscrepancyKind.EACH_ROW_HAS_ITS_PAYMENT: f"{_OWNERLESS} LIMIT 100",
    **_OF_PAYOUTS,
    DiscrepancyKind.ADJUSTMENTS_ARE_AS_APPROVED: _ADJUSTED,
}
