"""Experts' debts, derived from the postings: nothing here is stored twice.

An expert owes money when a refund or a lost dispute could not be taken back from them. Later
captures keep it back, and what comes into the expert's account is collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from payment_service.adapters.postgres import rows
from payment_service.adapters.postgres.statements import Row, Statements, TransactionStatements
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.experts import Expert
from payment_service.domain.ledger import expert_debt, expert_funds
from payment_service.domain.operation_payloads import ReversalPayload, payload_from_json
from payment_service.domain.operations import OPEN_STATES
from payment_service.domain.state_machine import EventKind

#: Makes the collection of an expert's debt due now.
START_DEBT_CHECK: Final = (
    "INSERT INTO debt_checks (expert_id, pause, next_time) "
    "VALUES (:expert_id, interval '0', now()) ON CONFLICT (expert_id) DO UPDATE "
    "SET pause = interval '0', next_time = least(debt_checks.next_time, now())"
)
#: The same for an expert who is known to owe something, because money has come.
HASTEN_DEBT_CHECK: Final = (
    "UPDATE debt_checks SET pause = interval '0', next_time = least(next_time, now()) "
    "WHERE expert_id = :expert_id"
)


#: Whether a payment's debt may be collected. What an operator has abandoned, or has not decided
#: yet, is left alone.
_COLLECTIBLE: Final = (
    "NOT EXISTS (SELECT FROM discrepancies WHERE discrepancies.payment_id = payments.payment_id "
    "AND kind = :out_of_band AND resolve_time IS NULL) AND NOT EXISTS "
    "(SELECT FROM events WHERE events.payment_id = payments.payment_id "
    "AND kind = :recorded AND body::jsonb -> 'facts' ->> 'code' = 'abandoned')"
)
_LEFT_TO_OPERATORS: Final = {
    "out_of_band": DiscrepancyKind.OUT_OF_BAND_REVERSAL.value,
    "recorded": EventKind.EXPERT_DEBT_RECORDED.value,
}


_LOCK_EXPERT: Final = "SELECT FROM experts WHERE expert_id = :id FOR UPDATE"
#: Written out, so that PostgreSQL finds these operations in the indexes of open ones.
_IS_OPEN: Final = "operations.state IN ({})".format(
    ", ".join(f"'{state}'" for state in sorted(OPEN_STATES))
)
#: What the expert owes, and the reversals that may be taking some of it back.
_DEBT: Final = (
    "(SELECT coalesce(sum(minor_units), 0) FROM postings "
    "WHERE account = :account AND currency = :currency) "
    "- (SELECT coalesce(sum(debt_offset), 0) FROM payments "
    "WHERE expert_id = :id AND currency = :currency AND debt_offset > 0) "
    "- (SELECT coalesce(sum(minor_units), 0) FROM operations "
    f"WHERE kind = 'collect_debt' AND {_IS_OPEN} "
    "AND operations.expert_id = :id AND payload ->> 'currency' = :currency) AS debt, "
    "(SELECT coalesce(jsonb_agg(jsonb_build_array(minor_units, payload)), '[]') "
    "FROM operations JOIN payments USING (payment_id) "
    f"WHERE kind = 'reverse_transfer' AND {_IS_OPEN} "
    "AND payments.expert_id = :id AND currency = :currency) AS reversals"
)


def _debt_values(expert_id: str, currency: str) -> dict[str, Any]:
    return {
        "id": expert_id,
        "account": expert_debt(expert_id),
        "currency": currency,
    }


def _debt_of(row: Row) -> int:
    reversing = sum(
        minor_units + payload_from_json(ReversalPayload, payload).unrecovered
        for minor_units, payload in row["reversals"]
    )
    return max(int(row["debt"]) - int(reversing), 0)


class DebtWrites(TransactionStatements):
    """Reads debts inside a transaction, under the expert's lock."""

    def expert_debt(self, expert_id: str, currency: str) -> int:
        """Returns the debt that no open operation collects yet, in minor units, at least 0.

        An open capture may be keeping some of it back. An open reversal may be taking some of it
        back: its remaining legs, and the debt after them, count only when it has ended. A
        collection may be taking some of it back too. Locks the expert until the transaction ends,
        so that no two operations take the same debt. What takes it is booked without that lock, so
        the debt and all that reserves it are read by one statement.
        """
        if expert_id not in self._locked_experts:
            self._later(_LOCK_EXPERT, id=expert_id)
            self._locked_experts.add(expert_id)
        return _debt_of(self._one(f"SELECT {_DEBT}", **_debt_values(expert_id, currency)))

    def lock_expert_with_debt(self, expert_id: str, currency: str) -> tuple[Expert, int] | None:
        """Returns what :meth:`lock_expert` and :meth:`expert_debt` do, in one round trip."""
        self._later(_LOCK_EXPERT, id=expert_id)
        row = self._maybe(
            f"SELECT experts.*, clock_timestamp() AS now, {_DEBT} FROM experts "
            "WHERE expert_id = :id",
            **_debt_values(expert_id, currency),
        )
        if row is None:
            return None
        self._tell_time(row["now"])
        self._locked_experts.add(expert_id)
        return rows.expert_of(row), _debt_of(row)

    def is_collectible(self, payment_id: str) -> bool:
        """Returns whether the debt that this payment left may be collected.

        To be asked after :meth:`expert_debt`: a debt is free only once an operator has abandoned
        its reversal, and that is on record by then.
        """
        found = self._maybe(
            f"SELECT FROM payments WHERE payment_id = :payment_id AND {_COLLECTIBLE}",
            payment_id=payment_id,
            **_LEFT_TO_OPERATORS,
        )
        return found is not None

    def has_open_collection(self, expert_id: str) -> bool:
        """Returns whether the expert's debt is being collected. Requires the expert's lock."""
        found = self._maybe(
            "SELECT FROM operations WHERE expert_id = :id AND kind = 'collect_debt' "
            f"AND {_IS_OPEN}",
            id=expert_id,
        )
        return found is not None

    def lease_debt_checks(self, first: float, most: float, limit: int) -> Sequence[str]:
        """Returns experts whose debt is to be collected now. No other replica gets them.

        An expert is returned again after a pause, which doubles from ``first`` to ``most`` seconds
        while nothing can be taken.
        """
        found = self._all(
            "UPDATE debt_checks SET pause = least(greatest(pause * 2, :first), :most), "
            "next_time = now() + least(greatest(pause * 2, :first), :most) "
            "WHERE expert_id IN (SELECT expert_id FROM debt_checks WHERE next_time <= now() "
            "ORDER BY next_time LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING expert_id",
            first=timedelta(seconds=first),
            most=timedelta(seconds=most),
            limit=limit,
        )
        return [row["expert_id"] for row in found]

    def end_debt_check(self, expert_id: str) -> bool:
        """Ends the checks of an expert who owes nothing any more. Returns whether that is so."""
        self._maybe("SELECT FROM debt_checks WHERE expert_id = :id FOR UPDATE", id=expert_id)
        ended = self._do(
            "DELETE FROM debt_checks WHERE expert_id = :id AND NOT EXISTS "
            "(SELECT FROM postings WHERE account = :account "
            "GROUP BY currency HAVING sum(minor_units) > 0)",
            id=expert_id,
            account=expert_debt(expert_id),
        )
        return ended == 1


class DebtReads(Statements):
    """Reads what an expert is owed and owes outside transactions."""

    def expert_balances(self, expert_id: str) -> Sequence[tuple[str, int, int]]:
        """Returns (currency, funds, debt) for each currency, in minor units.

        Funds are what the platform owes to the expert, debt is what the expert owes. Both are
        positive when they exist.
        """
        found = self._all(
            "SELECT currency, "
            "-coalesce(sum(minor_units) FILTER (WHERE account = :funds), 0)::bigint AS funds, "
            "coalesce(sum(minor_units) FILTER (WHERE account = :debt), 0)::bigint AS debt "
            "FROM (SELECT account, currency, minor_units FROM ledger_balances "
            "WHERE account IN (:funds, :debt) UNION ALL "
            "SELECT account, currency, minor_units FROM postings WHERE account IN (:funds, :debt) "
            "AND posting_id > (SELECT folded_until FROM ledger_span)) AS lines "
            "GROUP BY currency ORDER BY currency",
            funds=expert_funds(expert_id),
            debt=expert_debt(expert_id),
        )
        return [(row["currency"], row["funds"], row["debt"]) for row in found]

    def collectible_payments(
        self, expert_id: str, currency: str, limit: int
    ) -> Sequence[tuple[str, str, int]]:
        """Returns (payment id, intent id, amount) of payments that left a debt, in any order.

        By chance, because there may be more than ``limit`` from which nothing can be taken.

        The amount is what the payment left and did not take back itself; captures may have kept it
        back meanwhile. A payment is left out if an operator has abandoned its reversal, or has not
        decided yet what an out-of-band reversal was meant to pay.
        """
        found = self._all(
            "SELECT payment_id, payment_intent_id, debt FROM "
            "(SELECT payment_id, sum(minor_units)::bigint AS debt FROM postings "
            "WHERE account = :account AND currency = :currency AND payment_id IS NOT NULL "
            "GROUP BY payment_id HAVING sum(minor_units) > 0) AS debts "
            f"JOIN payments USING (payment_id) WHERE {_COLLECTIBLE} "
            "ORDER BY random() LIMIT :limit",
            account=expert_debt(expert_id),
            currency=currency,
            limit=limit,
            **_LEFT_TO_OPERATORS,
        )
        return [(row["payment_id"], row["payment_intent_id"], row["debt"]) for row in found]
