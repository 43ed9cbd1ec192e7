"""Disputes. A dispute is only written under the lock of its payment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from payment_service.adapters.postgres import rows
from payment_service.adapters.postgres.rows import DISPUTE_COLUMNS
from payment_service.adapters.postgres.statements import PARTY, Statements, TransactionStatements
from payment_service.domain.disputes import Dispute
from payment_service.domain.ports.records import DisputeFilter

_WRITTEN: Final = (*DISPUTE_COLUMNS, "unsettled")
_SAVE_DISPUTE: Final = (
    f"INSERT INTO disputes ({', '.join(_WRITTEN)}) "
    f"VALUES ({', '.join(f':{name}' for name in _WRITTEN)}) "
    "ON CONFLICT (dispute_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _WRITTEN if name != "dispute_id")
)

#: The disputes about payments that a user is a party to.
_OF_PARTY: Final = (
    "(:of_user = '' OR EXISTS (SELECT FROM payments "
    f"WHERE payments.payment_id = disputes.payment_id AND {PARTY}))"
)


class DisputeWrites(TransactionStatements):
    """Reads and writes disputes inside a transaction."""

    def dispute(self, dispute_id: str) -> Dispute | None:
        """Returns the dispute, or None."""
        row = self._maybe("SELECT * FROM disputes WHERE dispute_id = :id", id=dispute_id)
        return row and rows.dispute_of(row)

    def disputes_of(self, payment_id: str) -> Sequence[Dispute]:
        """Returns all disputes of one payment, the oldest first."""
        found = self._all(
            "SELECT * FROM disputes WHERE payment_id = :id ORDER BY create_time, dispute_id",
            id=payment_id,
        )
        return [rows.dispute_of(row) for row in found]

    def save_dispute(self, dispute: Dispute) -> None:
        """Inserts or updates the dispute.

        The caller holds the payment's lock and records the transition that says what changed.
        """
        self._do(_SAVE_DISPUTE, **rows.dispute_values(dispute))


class DisputeReads(Statements):
    """Reads disputes outside transactions."""

    def dispute(self, dispute_id: str, of_user: str = "") -> Dispute | None:
        """Returns the dispute, or None.

        With ``of_user``, a dispute about a payment that this user is no party to is not found.
        """
        row = self._maybe(
            f"SELECT * FROM disputes WHERE dispute_id = :id AND {_OF_PARTY}",
            id=dispute_id,
            of_user=of_user,
        )
        return row and rows.dispute_of(row)

    def disputes(self, which: DisputeFilter, limit: int) -> Sequence[Dispute]:
        """Returns one page of the disputes that match the filter, newest first."""
        conditions = {
            _OF_PARTY: which.of_user,
            "payment_id = :payment_id": which.payment_id,
            "expert_id = :expert_id": which.expert_id,
            "outcome = 'OPEN'": which.open_only,
        }
        chosen = "".join(f" AND {sql}" for sql, given in conditions.items() if given)
        found = self._page(
            f"SELECT * FROM disputes WHERE true{chosen}",
            ("create_time", "dispute_id"),
            which.before,
            limit,
            newest_first=True,
            of_user=which.of_user,
            payment_id=which.payment_id,
            expert_id=which.expert_id,
        )
        return [rows.dispute_of(row) for row in found]
