"""Experts' debts, derived from the postings: nothing here is stored twice.

An expert owes money when a refund or a lost dispute could not be taken back from them. Later
captures keep it back.
"""

from __future__ import annotations

from collections.abc import Sequence

from payment_service.adapters.postgres.rows import operation_of
from payment_service.adapters.postgres.statements import Statements, TransactionStatements
from payment_service.domain.ledger import expert_debt, expert_funds
from payment_service.domain.operations import OPEN_STATES
from payment_service.domain.sync.superseded import debt_if_not_reversed


class DebtWrites(TransactionStatements):
    """Reads debts inside a transaction, under the expert's lock."""

    def expert_debt(self, expert_id: str, currency: str) -> int:
        """Returns the debt that no open operation collects yet, in minor units, at least 0.

        An open capture may be keeping some of it back. An open reversal may be taking some of it
        back: its remaining legs, and the debt after them, count only when it has ended. Locks the
        expert until the transaction ends, so that two captures cannot keep back the same debt.
        """
        self._maybe("SELECT FROM experts WHERE expert_id = :id FOR UPDATE", id=expert_id)
        # One statement: a reversal that ends between two of them would count as open in neither,
        # or in both, because its transaction does not lock the expert.
        rows = self._all(
            "SELECT debt.minor_units AS debt, open_reversal.* FROM "
            "(SELECT (SELECT coalesce(sum(minor_units), 0) FROM postings "
            "WHERE account = :account AND currency = :currency) "
            "- (SELECT coalesce(sum(debt_offset), 0) FROM payments "
            "WHERE expert_id = :id AND currency = :currency AND debt_offset > 0) "
            "AS minor_units) AS debt "
            "LEFT JOIN (SELECT operations.* FROM operations JOIN payments USING (payment_id) "
            "WHERE kind = 'reverse_transfer' AND operations.state = ANY(:open) "
            "AND payments.expert_id = :id AND currency = :currency) AS open_reversal ON true",
            id=expert_id,
            account=expert_debt(expert_id),
            currency=currency,
            open=[state.value for state in OPEN_STATES],
        )
        reversing = sum(
            debt_if_not_reversed(operation_of(row)) for row in rows if row["operation_id"]
        )
        return max(int(rows[0]["debt"]) - reversing, 0)


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
            "FROM postings WHERE account IN (:funds, :debt) GROUP BY currency ORDER BY currency",
            funds=expert_funds(expert_id),
            debt=expert_debt(expert_id),
        )
        return [(row["currency"], row["funds"], row["debt"]) for row in found]
