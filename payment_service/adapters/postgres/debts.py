"""Experts' debts, derived from the postings: nothing here is stored twice.

An expert owes money when a refund or a lost dispute could not be taken back from them. Later
captures keep it back, and what comes into the expert's account is collected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from payment_service.adapters.postgres import rows
from payment_service.adapters.postgres.statements import (
    OPEN,
    Row,
    Statements,
    TransactionStatements,
)
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.experts import Expert
from payment_service.domain.ledger import expert_debt, expert_funds
from payment_service.domain.operation_payloads import ReversalPayload, payload_from_json
from payment_service.domain.ports.records import DebtCheck
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
#: What the postings say is owed. PostgreSQL must not see the account's name when it plans: it would
#: expect fewer postings than of other accounts, and plan this anew each time.
_BOOKED: Final = (
    "(SELECT coalesce(sum(minor_units), 0) FROM postings "
    "WHERE account = (SELECT CAST(:account AS text)) AND currency = :currency)"
)
#: What the expert owes, and the reversals that may be taking some of it back.
_DEBT: Final = (
    f"{_BOOKED} "
    "- (SELECT coalesce(sum(debt_offset), 0) FROM payments "
    "WHERE expert_id = :id AND currency = :currency AND debt_offset > 0) "
    "- (SELECT coalesce(sum(minor_units), 0) FROM operations "
    f"WHERE kind = 'collect_debt' AND operations.state IN {OPEN} "
    "AND operations.expert_id = :id AND payload ->> 'currency' = :currency) AS debt, "
    "(SELECT coalesce(jsonb_agg(jsonb_build_array(payment_id, minor_units, payload)), '[]') "
    "FROM operations JOIN payments USING (payment_id) "
    f"WHERE kind = 'reverse_transfer' AND operations.state IN {OPEN} "
    "AND payments.expert_id = :id AND currency = :currency) AS reversals"
)
#: What a payment has left as debt and no open collection takes back.
_LEFT_BY_PAYMENT: Final = (
    "(SELECT coalesce(sum(minor_units), 0) FROM postings "
    "WHERE account = :account AND currency = :currency AND payment_id = :payment_id) "
    "- (SELECT coalesce(sum(minor_units), 0) FROM operations "
    f"WHERE operations.expert_id = :id AND kind = 'collect_debt' AND operations.state IN {OPEN} "
    "AND payload ->> 'payment_id' = :payment_id) AS left_by_payment"
)


@dataclass(frozen=True, slots=True)
class _FreeDebt:
    """What nothing takes back yet, in minor units: of the expert, and of one payment."""

    of_expert: int
    of_payment: int


def _debt_values(expert_id: str, currency: str) -> dict[str, Any]:
    return {
        "id": expert_id,
        "account": expert_debt(expert_id),
        "currency": currency,
    }


def _free_of(row: Row, payment_id: str = "") -> _FreeDebt:
    reversing: Counter[str] = Counter()
    for reversed_payment, minor_units, payload in row["reversals"]:
        unrecovered = payload_from_json(ReversalPayload, payload).unrecovered
        reversing[reversed_payment] += minor_units + unrecovered
    left = int(row["left_by_payment"]) if payment_id else 0
    return _FreeDebt(
        of_expert=max(int(row["debt"]) - reversing.total(), 0),
        of_payment=max(left - reversing[payment_id], 0),
    )


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
        return self._free_debt(expert_id, currency, "").of_expert

    def booked_debt(self, expert_id: str, currency: str) -> int:
        """Returns what the postings say is owed, with what open operations are taking back.

        Negative if more was kept back than the books have recorded as debt so far.
        """
        row = self._one(f"SELECT {_BOOKED} AS debt", **_debt_values(expert_id, currency))
        return int(row["debt"])

    def collectible_debt(self, expert_id: str, currency: str, payment_id: str) -> int:
        """Returns what may be taken of :meth:`expert_debt` out of this payment's transfers.

        That is at most what the payment itself has left as debt and nothing takes back yet. The
        expert may owe more for other payments: their own transfers pay for that.
        """
        free = self._free_debt(expert_id, currency, payment_id)
        return min(free.of_expert, free.of_payment)

    def _free_debt(self, expert_id: str, currency: str, payment_id: str) -> _FreeDebt:
        if expert_id not in self._locked_experts:
            self._later(_LOCK_EXPERT, id=expert_id)
            self._locked_experts.add(expert_id)
        columns = f"{_DEBT}, {_LEFT_BY_PAYMENT}" if payment_id else _DEBT
        values = {**_debt_values(expert_id, currency), "payment_id": payment_id}
        return _free_of(self._one(f"SELECT {columns}", **values), payment_id)

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
        return rows.expert_of(row), _free_of(row).of_expert

    def is_collectible(self, payment_id: str) -> bool:
        """Returns whether the debt that this payment left may be collected.

        To be asked after :meth:`collectible_debt`: a debt is free only once an operator has
        abandoned its reversal, and that is on record by then.
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
            f"AND operations.state IN {OPEN}",
            id=expert_id,
        )
        return found is not None

    def lease_debt_check(self, seconds: float) -> DebtCheck | None:
        """Returns the check that is due first, or None. It is due again after ``seconds``."""
        row = self._maybe(
            "UPDATE debt_checks SET next_time = now() + :lease "
            "WHERE expert_id = (SELECT expert_id FROM debt_checks WHERE next_time <= now() "
            "ORDER BY next_time LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING expert_id, next_time",
            lease=timedelta(seconds=seconds),
        )
        return DebtCheck(row["expert_id"], row["next_time"]) if row is not None else None

    def pause_debt_check(self, check: DebtCheck, first: float, most: float) -> None:
        """Sets the time of an expert's next check, unless somebody has set it since the lease.

        The pause doubles from ``first`` to ``most`` seconds while nothing can be taken.
        """
        self._do(
            "UPDATE debt_checks SET pause = least(greatest(pause * 2, :first), :most), "
            "next_time = now() + least(greatest(pause * 2, :first), :most) "
            "WHERE expert_id = :id AND next_time = :leased_until",
            first=timedelta(seconds=first),
            most=timedelta(seconds=most),
            id=check.expert_id,
            leased_until=check.leased_until,
        )

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
    ) -> Sequence[tuple[str, str]]:
        """Returns (payment id, intent id) of payments that left a debt, in any order.

        By chance, because there may be more than ``limit`` from which nothing can be taken.

        What can be taken is :meth:`DebtWrites.collectible_debt`. A payment is left out if an
        operator has abandoned its reversal, or has not decided yet what an out-of-band reversal was
        meant to pay.
        """
        found = self._all(
            "SELECT payment_id, payment_intent_id FROM "
            "(SELECT payment_id FROM postings "
            "WHERE account = :account AND currency = :currency AND payment_id IS NOT NULL "
            "GROUP BY payment_id HAVING sum(minor_units) > 0) AS debts "
            f"JOIN payments USING (payment_id) WHERE {_COLLECTIBLE} "
            "ORDER BY random() LIMIT :limit",
            account=expert_debt(expert_id),
            currency=currency,
            limit=limit,
            **_LEFT_TO_OPERATORS,
        )
        return [(row["payment_id"], row["payment_intent_id"]) for row in found]
