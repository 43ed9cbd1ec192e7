"""The account at Stripe that the books of this database are of."""

from __future__ import annotations

from payment_service.adapters.postgres.statements import TransactionStatements
from payment_service.domain.ports.records import StripeBinding


class InstallationWrites(TransactionStatements):
    """Reads and stores the account. Two replicas that start at once store the same one."""

    def stripe_binding(self) -> StripeBinding | None:
        """Returns the account and locks it until the transaction ends; None before the first."""
        row = self._one("SELECT stripe_account_id, livemode FROM installation FOR UPDATE")
        if row["stripe_account_id"] is None:
            return None
        return StripeBinding(row["stripe_account_id"], row["livemode"])

    def bind_stripe_account(self, binding: StripeBinding) -> None:
        """Stores the account."""
        self._do(
            "UPDATE installation SET stripe_account_id = :account_id, livemode = :livemode, "
            "bind_time = now()",
            account_id=binding.stripe_account_id,
            livemode=binding.livemode,
        )
