"""Balances, balance transactions and payouts, of the platform and of connected accounts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import stripe
from stripe import RequestOptions
from stripe.params import BalanceTransactionListParams

from payment_service.adapters.stripe.client import StripeResource
from payment_service.adapters.stripe.views import (
    account_balances_of,
    balance_entry_of,
    payout_of,
)
from payment_service.domain.payouts import AccountBalance, PayoutSnapshot
from payment_service.domain.ports.stripe import BalanceEntry
from payment_service.domain.processor_errors import misconfigured

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
        payout = await self._read_of_account(
            lambda: self._client.v1.payouts.retrieve_async(
                payout_id,
                {"expand": ["balance_transaction", "failure_balance_transaction"]},
                {"stripe_account": stripe_account_id},
            )
        )
        return None if payout is None else payout_of(payout)

    async def account_balance(self, stripe_account_id: str) -> Sequence[AccountBalance] | None:
        """Returns the amounts by currency, or None if the account has revoked our access."""
        options: RequestOptions = {"stripe_account": stripe_account_id} if stripe_account_id else {}
        balance = await self._read_of_account(
            lambda: self._client.v1.balance.retrieve_async({}, options)
        )
        return None if balance is None else account_balances_of(balance)

    async def own_account_id(self) -> str:
        """Returns the id of the platform's account, to which the secret key belongs."""
        own = await self._calls.read(self._client.v1.accounts.retrieve_current_async)
        if own is None:
            raise misconfigured("resource_missing")
        return own.id

    async def has_manual_payouts(self) -> bool:
        """Returns whether the platform's payouts are manual. A yes is reused for ten minutes."""
        if time.monotonic() < self._manual_until:
            return True
        own = await self._calls.read(self._client.v1.accounts.retrieve_current_async)
        payouts = own.settings.payouts if own is not None and own.settings else None
        manual = payouts is not None and payouts.schedule.interval == "manual"
        if manual:
            self._manual_until = time.monotonic() + _MANUAL_CACHE_SECONDS
        return manual

    async def balance_entries(
        self, stripe_account_id: str, since: datetime
    ) -> Sequence[BalanceEntry] | None:
        """Returns the balance transactions created at or after ``since``, newest first.

        Returns None if the account has revoked our access.
        """
        params: BalanceTransactionListParams = {
            "created": {"gte": int(since.timestamp())},
            "limit": 100,
            "expand": ["data.source"],
        }
        options: RequestOptions = {"stripe_account": stripe_account_id} if stripe_account_id else {}
        found: list[stripe.BalanceTransaction] | None = await self._unless_revoked(
            self._calls.read_all(
                lambda: self._client.v1.balance_transactions.list_async(params, options)
            )
        )
        if found is None:
            return None
        return [balance_entry_of(transaction) for transaction in found]

    async def has_balance_entry(self, stripe_account_id: str, line_id: str) -> bool:
        """Returns whether the account has this balance transaction, however old it is."""
        options: RequestOptions = {"stripe_account": stripe_account_id} if stripe_account_id else {}
        found = await self._read_of_account(
            lambda: self._client.v1.balance_transactions.retrieve_async(line_id, {}, options)
        )
        return found is not None
