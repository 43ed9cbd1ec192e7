"""Invariants between the tables, as small named queries.

Each query returns the payments that violate the invariant, among those that changed since a time.
It should never find one: the code and the schema already refuse such changes. Whether a payment's
row still agrees with its own history is not checked here; the audit of the hash chain does that.
"""

from __future__ import annotations

from typing import Final

#: The balance of a payment on one ledger account is as expected from the payment's row.
_BALANCE_IS: Final = (
    "SELECT p.payment_id FROM payments p LEFT JOIN postings l ON l.payment_id = p.payment_id "
    "AND l.account = {account} WHERE {{scope}} GROUP BY p.payment_id "
    "HAVING coalesce(sum(l.minor_units), 0) <> {expected} LIMIT 100"
)

_INVARIANTS: Final[dict[str, str]] = {
    "postings_sum_to_zero": (
        "SELECT DISTINCT l.payment_id FROM postings l JOIN payments p USING (payment_id) "
        "WHERE {scope} GROUP BY l.payment_id, l.currency "
        "HAVING sum(l.minor_units) <> 0 LIMIT 100"
    ),
    "one_event_for_every_version": (
        "SELECT p.payment_id FROM payments p JOIN events e USING (payment_id) "
        "WHERE {scope} GROUP BY p.payment_id "
        "HAVING count(*) <> p.version OR max(e.sequence) <> p.version LIMIT 100"
    ),
    "the_last_event_is_the_chains_head": (
        "SELECT p.payment_id FROM payments p LEFT JOIN events e "
        "ON e.payment_id = p.payment_id AND e.sequence = p.version "
        "WHERE {scope} AND e.hash IS DISTINCT FROM p.head_hash LIMIT 100"
    ),
    "every_event_is_in_the_feed": (
        "SELECT DISTINCT p.payment_id FROM payments p JOIN events e USING (payment_id) "
        "LEFT JOIN feed f USING (payment_id, sequence) "
        "LEFT JOIN feed_pending w USING (payment_id, sequence) "
        "WHERE {scope} AND f.position IS NULL AND w.pending_id IS NULL LIMIT 100"
    ),
    "the_feed_is_in_each_payments_order": (
        "SELECT DISTINCT p.payment_id FROM payments p JOIN feed f USING (payment_id) "
        "JOIN feed l ON l.payment_id = f.payment_id AND l.sequence = f.sequence + 1 "
        "WHERE {scope} AND l.position < f.position LIMIT 100"
    ),
    "the_hold_is_in_the_memo": _BALANCE_IS.format(
        account="'hold'", expected="CASE WHEN p.charged = 0 THEN p.held ELSE 0 END"
    ),
    "what_the_platform_holds_is_in_the_books": _BALANCE_IS.format(
        account="'escrow:' || p.payment_id",
        expected="CASE WHEN p.charged > 0 THEN -p.held ELSE 0 END",
    ),
    "what_was_charged_is_somewhere": (
        "SELECT p.payment_id FROM payments p WHERE {scope} AND p.charged > 0 "
        "AND p.charged <> p.held + p.captured + p.refunded_from_escrow + p.lost_held LIMIT 100"
    ),
    "the_commission_is_in_the_books": _BALANCE_IS.format(
        account="'commission'", expected="-p.net_commission"
    ),
    "what_the_client_is_owed_is_in_the_books": _BALANCE_IS.format(
        account="'client_payable:' || p.payment_id", expected="-p.client_payable"
    ),
    "what_the_bank_holds_is_in_the_books": _BALANCE_IS.format(
        account="'dispute_hold:' || p.payment_id",
        expected=(
            "(SELECT coalesce(sum(greatest("
            "d.withdrawn - d.reinstated - d.lost, 0)), 0) "
            "FROM disputes d WHERE d.payment_id = p.payment_id)"
        ),
    ),
    "what_was_lost_is_in_the_disputes": (
        "SELECT p.payment_id FROM payments p "
        "WHERE {scope} AND p.lost + p.lost_held > "
        "(SELECT coalesce(sum(d.withdrawn), 0) FROM disputes d "
        "WHERE d.payment_id = p.payment_id) "
        "LIMIT 100"
    ),
    "what_is_contested_is_frozen": (
        "SELECT DISTINCT p.payment_id FROM payments p JOIN disputes d USING (payment_id) "
        "WHERE {scope} AND p.frozen NOT IN ('INQUIRY', 'CHARGEBACK') AND (d.outcome = 'OPEN' "
        "OR (d.outcome IN ('LOST', 'PREVENTED') "
        "AND d.withdrawn > d.reinstated + d.lost)) "
        "LIMIT 100"
    ),
    "an_open_operation_is_the_payments_own": (
        "SELECT p.payment_id FROM payments p LEFT JOIN operations o "
        "ON o.payment_id = p.payment_id AND o.state IN ('STARTED', 'UNKNOWN', 'PARKED') "
        "WHERE {scope} AND coalesce(o.operation_id, '') <> p.operation_id LIMIT 100"
    ),
    "what_the_client_is_owed_is_being_paid": (
        "SELECT p.payment_id FROM payments p WHERE {scope} "
        "AND p.client_payable > 0 AND p.operation_id = '' LIMIT 100"
    ),
    "what_is_under_way_has_an_operation": (
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
#: Invariants of experts' postings, which belong to no payment. They are checked only when all
#: payments are checked, and a violation has no payment id.
_OF_PAYOUTS: Final = {
    "an_experts_postings_sum_to_zero": (
        "SELECT DISTINCT '' AS payment_id FROM postings WHERE :payment_id = '' AND expert_id IN "
        "(SELECT expert_id FROM payouts WHERE update_time >= :since) "
        "GROUP BY expert_id, sequence, currency HAVING sum(minor_units) <> 0"
    ),
    "a_payout_is_in_the_books": (
        "SELECT DISTINCT '' AS payment_id FROM payouts p LEFT JOIN postings l "
        "ON l.expert_id = p.expert_id AND l.balance_transaction_id <> '' AND "
        "l.balance_transaction_id IN (p.balance_transaction_id, p.failure_balance_transaction_id) "
        "WHERE p.update_time >= :since AND :payment_id = '' GROUP BY p.payout_id "
        "HAVING count(l.posting_id) <> (p.balance_transaction_id <> '')::int "
        "+ (p.failure_balance_transaction_id <> '')::int"
    ),
}

#: One payment, or all payments that changed since a time.
_SCOPE: Final = "p.update_time >= :since AND (:payment_id = '' OR p.payment_id = :payment_id)"
INVARIANTS: Final = {
    **{name: sql.format(scope=_SCOPE) for name, sql in _INVARIANTS.items()},
    "nothing_is_left_of_a_payment_that_is_gone": f"{_OWNERLESS} LIMIT 100",
    **_OF_PAYOUTS,
}
