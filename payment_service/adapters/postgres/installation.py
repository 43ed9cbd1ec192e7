"""The account at Stripe that the books of this database are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from payment_service.adapters.postgres.statements import Row, Statements, TransactionStatements
from payment_service.domain.ledger import STRIPE_PLATFORM
from payment_service.domain.opening import Beginning
from payment_service.domain.ports.records import StripeBinding

_BEGINNING: Final = "SELECT stripe_account_id, bind_time, opening_time FROM installation"


class InstallationWrites(TransactionStatements):
    """Reads and stores the account. Two replicas that start at once store the same one."""

    def stripe_binding(self) -> StripeBinding | None:
        """Returns the account and locks it until the transaction ends; None before the first."""
        row = self._one("SELECT stripe_account_id, livemode FROM installation FOR UPDATE")
        if row["stripe_account_id"] is None:
            return None
        return StripeBinding(row["stripe_account_id"], row["livemode"])

    def bind_stripe_account(self, binding: StripeBinding, bind_time: datetime) -> None:
        """Stores the account, whose opening balance is not on the books yet."""
        self._do(
            "UPDATE installation SET stripe_account_id = :account_id, livemode = :livemode, "
            "bind_time = :bind_time, opening_time = NULL",
            account_id=binding.stripe_account_id,
            livemode=binding.livemode,
            bind_time=bind_time,
        )

    def lock_beginning(self) -> Beginning | None:
        """Returns since when the books are of the account, and locks that; None before."""
        return _beginning_of(self._one(f"{_BEGINNING} FOR UPDATE"))

    def platform_balances(self) -> Mapping[str, int]:
        """Returns what the ledger says that the platform has at Stripe, by currency."""
        found = self._all(
            "SELECT currency, sum(minor_units)::bigint AS balance FROM ("
            "SELECT currency, minor_units FROM ledger_balances WHERE account = :account UNION ALL "
            "SELECT currency, minor_units FROM open_postings() WHERE account = :account) AS lines "
            "GROUP BY currency HAVING sum(minor_units) <> 0 ORDER BY currency",
            account=STRIPE_PLATFORM,
        )
        return {row["currency"]: row["balance"] for row in found}

    def lines_posted_before(self, ids: Sequence[str], time: datetime) -> Mapping[str, int]:
        """Returns what was posted of these lines of the platform before a time, by currency."""
        found = self._all(
            "SELECT currency, sum(minor_units)::bigint AS posted FROM postings "
            "WHERE balance_transaction_id = ANY(:ids) AND account = :account AND time < :time "
            "GROUP BY currency",
            ids=list(ids),
            account=STRIPE_PLATFORM,
            time=time,
        )
        return {row["currency"]: row["posted"] for row in found}

    def end_opening(self) -> None:
        """Stores that the opening balance is on the books, in every currency that has one."""
        self._do("UPDATE installation SET opening_time = :now", now=self.now)


class InstallationReads(Statements):
    """Reads since when the books are of the account."""

    def beginning(self) -> Beginning | None:
        """Returns since when the books are of the account, or None before the first start."""
        return _beginning_of(self._one(_BEGINNING))


def _beginning_of(row: Row) -> Beginning | None:
    if row["stripe_account_id"] is None:
        return None
    return Beginning(row["stripe_account_id"], row["bind_time"], row["opening_time"])
