"""The SQL of experts' accounts at Stripe: the present ones, and those that were replaced."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from payment_service.adapters.statements import Statements
from payment_service.domain.experts import Expert
from payment_service.domain.ports import LedgerAccount


class AccountWrites(Statements):
    """What a transaction does with accounts that an expert had."""

    def add_former_account(self, expert: Expert, now: datetime) -> None:
        """Keep the present account of a locked expert, before another takes its place."""
        self._do(
            "INSERT INTO former_accounts (stripe_account_id, expert_id, replace_time, "
            "deauthorize_time) VALUES (:account_id, :expert_id, :now, "
            "CASE WHEN :deauthorized THEN CAST(:now AS timestamptz) END)",
            account_id=expert.account.stripe_account_id,
            expert_id=expert.expert_id,
            now=now,
            deauthorized=expert.deauthorized,
        )

    def see_former_account(self, stripe_account_id: str, *, deauthorized: bool) -> bool:
        """Keep whether Stripe shows us a former account; True if that is news."""
        changed = self._do(
            "UPDATE former_accounts SET deauthorize_time = CASE WHEN :deauthorized THEN now() END "
            "WHERE stripe_account_id = :id AND (deauthorize_time IS NOT NULL) <> :deauthorized",
            id=stripe_account_id,
            deauthorized=deauthorized,
        )
        return changed == 1


class AccountReads(Statements):
    """Whose account is whose, former ones included."""

    def expert_of_account(self, stripe_account_id: str) -> str | None:
        row = self._maybe(
            "SELECT expert_id FROM accounts WHERE stripe_account_id = :id", id=stripe_account_id
        )
        return row and str(row["expert_id"])

    def readable_accounts(self, expert_id: str) -> Sequence[str]:
        """All accounts that an expert has or had, but for those that are cut off from us."""
        found = self._all(
            "SELECT stripe_account_id FROM accounts WHERE expert_id = :id AND readable ORDER BY 1",
            id=expert_id,
        )
        return [row["stripe_account_id"] for row in found]

    def accounts_with_postings(self, since: datetime) -> Sequence[LedgerAccount]:
        """The ledger account of every expert whose balance moved since then."""
        found = self._all(
            "WITH moved AS (SELECT DISTINCT account FROM postings WHERE time >= :since "
            "AND starts_with(account, 'stripe:connected:')) "
            "SELECT account, max(unread_time) AS unread_time, array_agg(stripe_account_id "
            "ORDER BY stripe_account_id) FILTER (WHERE readable) AS stripe_account_ids "
            "FROM moved JOIN accounts ON account = 'stripe:connected:' || expert_id "
            "GROUP BY account HAVING bool_or(readable)",
            since=since,
        )
        return [
            LedgerAccount(row["account"], tuple(row["stripe_account_ids"]), row["unread_time"])
            for row in found
        ]
