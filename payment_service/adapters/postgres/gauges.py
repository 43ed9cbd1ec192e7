"""Reads for the gauges: what is overdue, what is at risk, which discrepancies are open.

Every replica reads them every few seconds, so each part goes by an index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from payment_service.adapters.postgres.polling import BEHIND_STRIPE
from payment_service.adapters.postgres.statements import Statements
from payment_service.domain.ports.records import Backlog, MoneyAtRisk, OpenDiscrepancies

#: The queues of the background jobs: name, table, column of the time, and what else must hold.
_QUEUES: Final = (
    ("operation", "operations", "next_try_time", "state IN ('STARTED', 'UNKNOWN')"),
    ("webhook_event", "webhook_events", "next_try_time", "state = 'WAITING'"),
    ("deadline", "payments", "deadline_due_time", "deadline_due_time IS NOT NULL"),
    ("deadline_warning", "payments", "warn_due_time", "warn_due_time IS NOT NULL"),
    ("payment_window", "payments", "expire_due_time", "expire_due_time IS NOT NULL"),
    ("hold_check", "payments", "hold_check_due_time", "hold_check_due_time IS NOT NULL"),
    ("debt", "debt_checks", "next_time", "true"),
    ("account_check", "experts", "check_due_time", "check_due_time IS NOT NULL"),
    # What the books wait for until they are known to be as new as Stripe.
    ("catching_up", f"({BEHIND_STRIPE}) AS behind", "since", "true"),
)
_OVERDUE: Final = " UNION ALL ".join(
    f"SELECT '{queue}' AS queue, count(*) AS count, "
    f"extract(epoch FROM now() - min({column}))::float AS oldest "
    f"FROM {table} WHERE {where} AND {column} < now() HAVING count(*) > 0"
    for queue, table, column, where in _QUEUES
)


class GaugeReads(Statements):
    """Reads counts and sums for metrics."""

    def overdue(self) -> Sequence[Backlog]:
        """Returns what is due in each queue and not done yet; empty queues are left out."""
        return [
            Backlog(row["queue"], "DUE", row["count"], row["oldest"]) for row in self._all(_OVERDUE)
        ]

    def money_at_risk(self) -> Sequence[MoneyAtRisk]:
        """Returns what may be lost and what is owed, by currency.

        An inquiry counts with the chargebacks: it becomes one if nobody answers it.
        """
        found = self._all(
            "SELECT 'disputed' AS what, currency, sum(amount)::bigint AS minor_units "
            "FROM disputes WHERE outcome = 'OPEN' GROUP BY currency UNION ALL "
            "SELECT 'client_payable', currency, sum(client_payable)::bigint FROM payments "
            "WHERE client_payable > 0 OR pending_refund > 0 GROUP BY currency UNION ALL "
            "SELECT 'pending_refund', currency, sum(pending_refund)::bigint FROM payments "
            "WHERE client_payable > 0 OR pending_refund > 0 GROUP BY currency UNION ALL "
            # An expert who owes something has a row in debt_checks.
            "SELECT 'expert_debt', currency, sum(minor_units)::bigint FROM debt_checks "
            "JOIN postings ON account = 'expert_debt:' || debt_checks.expert_id GROUP BY currency"
        )
        return [MoneyAtRisk(row["what"], row["currency"], row["minor_units"]) for row in found]

    def discrepancies_open(self) -> Sequence[OpenDiscrepancies]:
        """Returns how many discrepancies of each kind are open."""
        found = self._all(
            "SELECT kind, count(*) AS count, "
            "extract(epoch FROM now() - min(time))::float AS oldest FROM discrepancies "
            "WHERE resolve_time IS NULL GROUP BY kind"
        )
        return [OpenDiscrepancies(row["kind"], row["count"], row["oldest"]) for row in found]
