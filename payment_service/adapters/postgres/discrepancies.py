"""Discrepancies: differences between Stripe and our books, kept until they end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from payment_service.adapters.postgres import rows
from payment_service.adapters.postgres.statements import Statements, TransactionStatements
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.ports.records import StoredDiscrepancy
from payment_service.domain.sync.changes import Discrepancy

#: True if an operator has resolved the stored discrepancy, and it is reported again unchanged.
_DECIDED: Final = (
    "discrepancies.resolved_by <> '' AND NOT :describes_a_state "
    "AND discrepancies.found IS NOT DISTINCT FROM excluded.found"
)

_ID: Final = re.compile(r"disc_([1-9][0-9]{0,17})")


class DiscrepancyWrites(TransactionStatements):
    """Reports and resolves discrepancies."""

    def report(self, discrepancy: Discrepancy) -> None:
        """Stores a discrepancy once, however often it is reported. A resolved one is opened again.

        A discrepancy that an operator resolved stays resolved, except in two cases: the amount has
        changed, or the kind describes a state, which still holds.
        """
        self._do(
            "INSERT INTO discrepancies (payment_id, kind, detail, time, last_seen_time, expected, "
            "found, currency, remediation, line_id) "
            "VALUES (:payment_id, :kind, :detail, now(), now(), "
            ":expected, :found, :currency, :remediation, :line_id) "
            "ON CONFLICT (payment_id, kind, detail) DO UPDATE "
            "SET last_seen_time = now(), found = excluded.found, line_id = excluded.line_id, "
            f"resolve_time = CASE WHEN {_DECIDED} THEN discrepancies.resolve_time END, "
            f"resolved_by = CASE WHEN {_DECIDED} THEN discrepancies.resolved_by ELSE '' END, "
            f"resolve_reason = CASE WHEN {_DECIDED} THEN discrepancies.resolve_reason ELSE '' END",
            describes_a_state=discrepancy.kind.describes_a_state,
            payment_id=discrepancy.payment_id or None,
            kind=discrepancy.kind.value,
            detail=discrepancy.detail,
            expected=discrepancy.expected,
            found=discrepancy.found,
            currency=discrepancy.currency,
            remediation=discrepancy.remediation,
            line_id=discrepancy.line_id,
        )

    def is_reported(self, discrepancy: Discrepancy) -> bool:
        """Returns whether the discrepancy is stored already, open or not."""
        row = self._maybe(
            "SELECT FROM discrepancies WHERE payment_id = :payment_id AND kind = :kind "
            "AND detail = :detail",
            payment_id=discrepancy.payment_id,
            kind=discrepancy.kind.value,
            detail=discrepancy.detail,
        )
        return row is not None

    def resolve_discrepancies(self, ids: Sequence[str], unseen_since: datetime) -> None:
        """Closes these discrepancies, except any that was reported again since then."""
        self._do(
            "UPDATE discrepancies SET resolve_time = now() WHERE discrepancy_id = ANY(:ids) "
            "AND resolve_time IS NULL AND last_seen_time < :since",
            ids=[_number_of(discrepancy_id) for discrepancy_id in ids],
            since=unseen_since,
        )

    def close_discrepancies(self, payment_id: str, kind: DiscrepancyKind) -> None:
        """Closes a payment's open discrepancies of a kind whose cause is over."""
        self._do(
            "UPDATE discrepancies SET resolve_time = now() WHERE payment_id = :payment_id "
            "AND kind = :kind AND resolve_time IS NULL",
            payment_id=payment_id,
            kind=kind.value,
        )

    def lock_discrepancy(self, discrepancy_id: str) -> StoredDiscrepancy | None:
        """Returns the discrepancy and locks it until the transaction ends, or returns None."""
        row = self._maybe(
            "SELECT * FROM discrepancies WHERE discrepancy_id = :id FOR UPDATE",
            id=_number_of(discrepancy_id),
        )
        return row and rows.discrepancy_of(row)

    def decide_discrepancy(self, discrepancy_id: str, resolved_by: str, reason: str) -> None:
        """Closes a discrepancy with the operator who resolved it and the reason."""
        self._do(
            "UPDATE discrepancies SET resolve_time = now(), resolved_by = :resolved_by, "
            "resolve_reason = :reason WHERE discrepancy_id = :id",
            id=_number_of(discrepancy_id),
            resolved_by=resolved_by,
            reason=reason,
        )


class DiscrepancyReads(Statements):
    """Reads discrepancies outside transactions."""

    def discrepancies(
        self, payment_id: str, before: str | None, limit: int, *, open_only: bool
    ) -> Sequence[StoredDiscrepancy]:
        """Returns one page, the newest first. ``before`` is the last id of the page before."""
        conditions = "WHERE true"
        conditions += " AND resolve_time IS NULL" if open_only else ""
        conditions += " AND payment_id = :payment_id" if payment_id else ""
        conditions += " AND discrepancy_id < :before" if before else ""
        found = self._all(
            f"SELECT * FROM discrepancies {conditions} ORDER BY discrepancy_id DESC LIMIT :limit",
            payment_id=payment_id,
            before=before and _number_of(before),
            limit=limit,
        )
        return [rows.discrepancy_of(row) for row in found]

    def some_open_discrepancies(
        self, kinds: Sequence[DiscrepancyKind], payment_id: str, limit: int
    ) -> Sequence[StoredDiscrepancy]:
        """Returns at most ``limit`` open discrepancies of these kinds, of all payments or of one.

        The choice is random, so that every discrepancy is returned some time if there are many.
        """
        found = self._all(
            "SELECT * FROM discrepancies WHERE resolve_time IS NULL AND kind = ANY(:kinds) "
            "AND (:payment_id = '' OR payment_id = :payment_id) ORDER BY random() LIMIT :limit",
            kinds=[kind.value for kind in kinds],
            payment_id=payment_id,
            limit=limit,
        )
        return [rows.discrepancy_of(row) for row in found]


def _number_of(discrepancy_id: str) -> int:
    """Returns the number in an id, or 0, which no discrepancy has, for a text that is no id."""
    match = _ID.fullmatch(discrepancy_id)
    return int(match[1]) if match else 0
