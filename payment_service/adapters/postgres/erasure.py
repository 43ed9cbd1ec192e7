"""Erases what people wrote, and what is known of them, in every table that holds it.

The events keep their salted hashes, so the chain of a payment stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from payment_service.adapters.postgres.statements import OPEN, TransactionStatements
from payment_service.domain.ledger import expert_debt
from payment_service.domain.money import Money
from payment_service.domain.ports.records import Cause, UserKind
from payment_service.domain.texts import ERASED

_COLUMN_OF: Final = {UserKind.CLIENT: "client_id", UserKind.EXPERT: "expert_id"}
#: Of an adjustment that is decided or expired; the hash of the reason stays.
_ERASE_ADJUSTMENTS: Final = (
    "UPDATE adjustments SET reason = :erased, reason_salt = '', decide_reason = "
    "CASE WHEN decide_reason = '' THEN '' ELSE :erased END "
    "WHERE (state <> 'PROPOSED' OR expire_time <= now()) AND reason <> :erased"
)
#: How many open things of each kind a refusal names.
_NAMED: Final = 3


class ErasureWrites(TransactionStatements):
    """Erases a user. The caller has refused users who have something open."""

    def open_operations_of(self, kind: UserKind, user_id: str) -> Sequence[str]:
        """Returns some open operations on payments of this user, on their disputes and account."""
        column = _COLUMN_OF[kind]
        found = self._all(
            "SELECT operations.operation_id FROM operations LEFT JOIN disputes USING (dispute_id) "
            "LEFT JOIN payments ON payments.payment_id = "
            "coalesce(operations.payment_id, disputes.payment_id) "
            f"WHERE operations.state IN {OPEN} AND (payments.{column} = :user_id "
            "OR (:is_expert AND operations.expert_id = :user_id)) "
            "ORDER BY 1 LIMIT :limit",
            user_id=user_id,
            is_expert=kind is UserKind.EXPERT,
            limit=_NAMED,
        )
        return [
            *(f"operation {row['operation_id']}" for row in found),
            *self._open_adjustments(
                f"payment_id IN (SELECT payment_id FROM payments WHERE {column} = :user_id)",
                user_id=user_id,
            ),
        ]

    def _open_adjustments(self, whose: str, **values: str) -> list[str]:
        """Returns some adjustments that can still be approved: somebody must read their reason."""
        found = self._all(
            f"SELECT adjustment_id FROM adjustments WHERE {whose} AND state = 'PROPOSED' "
            "AND expire_time > now() ORDER BY 1 LIMIT :limit",
            limit=_NAMED,
            **values,
        )
        return [f"adjustment {row['adjustment_id']}" for row in found]

    def open_business_of_expert(self, expert_id: str) -> Sequence[str]:
        """Returns some payments, disputes and debts of an expert that have not ended."""
        found = self._all(
            "(SELECT 'payment ' || payment_id AS what FROM payments WHERE expert_id = :id "
            "AND state NOT IN ('CAPTURED', 'CANCELED', 'EXPIRED', 'REFUNDED') LIMIT :limit) "
            "UNION ALL (SELECT 'dispute ' || dispute_id FROM disputes WHERE expert_id = :id "
            "AND outcome = 'OPEN' LIMIT :limit)",
            id=expert_id,
            limit=_NAMED,
        )
        debts = self._all(
            "SELECT currency, sum(minor_units)::bigint AS debt FROM postings "
            "WHERE account = :account GROUP BY currency HAVING sum(minor_units) > 0",
            account=expert_debt(expert_id),
        )
        return [
            *(str(row["what"]) for row in found),
            *self._open_adjustments("expert_id = :id", id=expert_id),
            *(f"debt of {Money(row['debt'], row['currency'])}" for row in debts),
        ]

    def lock_payments_of(
        self, kind: UserKind, user_id: str, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[tuple[datetime, str]]:
        """Returns (creation time, id) of a page of the user's payments, and locks them."""
        found = self._page(
            f"SELECT payment_id, create_time FROM payments WHERE {_COLUMN_OF[kind]} = :user_id",
            ("create_time", "payment_id"),
            after,
            limit,
            user_id=user_id,
        )
        ids = [row["payment_id"] for row in found]
        self._all(
            "SELECT FROM payments WHERE payment_id = ANY(:ids) ORDER BY payment_id FOR UPDATE",
            ids=ids,
        )
        return [(row["create_time"], row["payment_id"]) for row in found]

    def erase_payments(self, payment_ids: Sequence[str]) -> int:
        """Erases all texts about these payments. Returns how many of their events' were left."""
        ids = list(payment_ids)
        erased = self._do("DELETE FROM texts WHERE payment_id = ANY(:ids)", ids=ids)
        self._do(
            "UPDATE payments SET description = :erased WHERE payment_id = ANY(:ids) "
            "AND description NOT IN ('', :erased)",
            ids=ids,
            erased=ERASED,
        )
        self._do(
            "UPDATE operations SET last_error = :erased WHERE (payment_id = ANY(:ids) "
            "OR dispute_id IN (SELECT dispute_id FROM disputes WHERE payment_id = ANY(:ids))) "
            f"AND state NOT IN {OPEN} AND last_error NOT IN ('', :erased)",
            ids=ids,
            erased=ERASED,
        )
        self._do(
            "UPDATE idempotency_keys SET answer = NULL, fields = '{}' "
            "WHERE payment_id = ANY(:ids) AND answer IS NOT NULL",
            ids=ids,
        )
        self._do(
            "UPDATE discrepancies SET resolve_reason = :erased WHERE payment_id = ANY(:ids) "
            "AND resolve_reason NOT IN ('', :erased)",
            ids=ids,
            erased=ERASED,
        )
        self._do(f"{_ERASE_ADJUSTMENTS} AND payment_id = ANY(:ids)", ids=ids, erased=ERASED)
        return erased

    def erase_expert(self, expert_id: str) -> int:
        """Erases all texts about an expert except the row's own. Returns how many were left."""
        erased = self._do("DELETE FROM texts WHERE expert_id = :id", id=expert_id)
        self._do(
            "UPDATE idempotency_keys SET answer = NULL, fields = '{}' WHERE answer IS NOT NULL "
            "AND claim_id IN (SELECT claim_id FROM operations WHERE expert_id = :id)",
            id=expert_id,
        )
        self._do(
            "UPDATE operations SET last_error = :erased WHERE expert_id = :id "
            f"AND state NOT IN {OPEN} AND last_error NOT IN ('', :erased)",
            id=expert_id,
            erased=ERASED,
        )
        self._do(f"{_ERASE_ADJUSTMENTS} AND expert_id = :id", id=expert_id, erased=ERASED)
        self._do("DELETE FROM onboarding_tokens WHERE expert_id = :id", id=expert_id)
        return erased

    def record_erasure(self, kind: UserKind, user_id: str, reason: str, cause: Cause) -> None:
        """Records who erases a user, and why."""
        self._do(
            "INSERT INTO erasures (user_kind, user_id, reason, caller, request_id, time) "
            "VALUES (:kind, :user_id, :reason, :caller, :request_id, :now)",
            kind=kind.value,
            user_id=user_id,
            reason=reason,
            now=self.now,
            caller=cause.caller,
            request_id=cause.request_id,
        )
