"""Balances, balance transactions and payouts, of the platform and of connected accounts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from payment_service.adapters.stripe.client import StripeResource, path_to
from payment_service.adapters.stripe.fields import part, text, text_or_empty
from payment_service.adapters.stripe.views import (
    account_balances_of,
    balance_entry_of,
    payout_of,
)
from payment_service.domain.payouts import AccountBalance, PayoutSnapshot
from payment_service.domain.ports.stripe import BalanceEntry
from payment_service.domain.processor_errors import misconfigured

if TYPE_CHECKING:  # They take long to import.
    from stripe import params as sent

#: For how long the answer "payouts are manual" is reused.
_MANUAL_CACHE_SECONDS: Final = 600.0


class Balance(StripeResource):
    """Reads balances and payouts. An empty account id means the platform itself."""

    #: The time by the monotonic clock until which the platform's payouts are taken to be manual.
    _manual_until = 0.0

    async def payout(self, stripe_account_id: str, payout_id: str) -> PayoutSnapshot | None:
        """Returns the payout with its balance transactions.

        Returns None if it does not exist or the account has revoked our access.
        """
        path = path_to("v1", "payouts", payout_id)
        params: sent.PayoutRetrieveParams = {
            "expand": ["balance_transaction", "failure_balance_transaction"]
        }
        payout = await self._read_of_account(lambda: self._get(path, params, stripe_account_id))
        return None if payout is None else payout_of(payout)

    async def account_balance(self, stripe_account_id: str) -> Sequence[AccountBalance] | None:
        """Returns the amounts by currency, or None if the account has revoked our access."""
        balance = await self._read_of_account(
            lambda: self._get("/v1/balance", account=stripe_account_id)
        )
        return None if balance is None else account_balances_of(balance)

    async def own_account_id(self) -> str:
        """Returns the id of the platform's account, to which the secret key belongs."""
        own = await self._calls.read(lambda: self._get("/v1/account"))
        if own is None:
            raise misconfigured("resource_missing")
        return text(own, "id")

    async def has_manual_payouts(self) -> bool:
        """Returns whether the platform's payouts are manual. A yes is reused for ten minutes."""
        if time.monotonic() < self._manual_until:
            return True
        own = await self._calls.read(lambda: self._get("/v1/account"))
        payouts = part(part(own, "settings"), "payouts")
        manual = text_or_empty(part(payouts, "schedule"), "interval") == "manual"
        if manual:
            self._manual_until = time.monotonic() + _MANUAL_CACHE_SECONDS
        return manual

    async def balance_entries(
        self, stripe_account_id: str, since: datetime
    ) -> Sequence[BalanceEntry] | None:
        """Returns the balance transactions created at or after ``since``, newest first.

        Returns None if the account has revoked our access.
        """
        params: sent.BalanceTransactionListParams = {
            "created": {"gte": int(since.timestamp())},
            "limit": 100,
            "expand": ["data.source"],
        }
        found = await self._unless_revoked(
            self._calls.read_all(
                lambda after: self._get(
                    "/v1/balance_transactions", {**params, **after}, stripe_account_id
                )
            )
        )
        return None if found is None else [balance_entry_of(line) for line in found]

    async def balance_entry(self, stripe_account_id: str, line_id: str) -> BalanceEntry | None:
        """Returns this balance transaction of the account, however old it is, or None."""
        path = path_to("v1", "balance_transactions", line_id)
        params: sent.BalanceTransactionRetrieveParams = {"expand": ["source"]}
        found = await self._read_of_account(lambda: self._get(path, params, stripe_account_id))
        return None if found is None else balance_entry_of(found)
