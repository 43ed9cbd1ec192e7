"""Connected accounts by Accounts v1, and the links that Stripe makes for their owners.

Stripe creates v1 accounts only for platforms that have switched that on. What exists is read by v1
for every platform, whichever version created it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from payment_service.adapters.stripe.account_outcomes import outcome_of_creation
from payment_service.adapters.stripe.client import StripeResource, path_to
from payment_service.adapters.stripe.fields import Json, metadata_of, text
from payment_service.adapters.stripe.views import account_of, found_account_of, searched_since
from payment_service.domain.experts import Account
from payment_service.domain.ports.records import WebhookEvent
from payment_service.domain.ports.stripe import FoundAccount, NewAccount, Outcome

if TYPE_CHECKING:  # They take long to import.
    from stripe import params as sent


class Accounts(StripeResource):
    """Creates and reads connected accounts."""

    async def create_account(self, key: str, new: NewAccount) -> Outcome[Account]:
        """Creates an Express account."""
        params: sent.AccountCreateParams = {
            # An Express account in Stripe's present terms: the platform is liable for losses and
            # pays the fees, and Stripe collects the requirements.
            "controller": {
                "losses": {"payments": "application"},
                "fees": {"payer": "application"},
                "requirement_collection": "stripe",
                "stripe_dashboard": {"type": "express"},
            },
            "country": new.country,
            "email": new.email,
            "business_type": new.business_type.value,
            "business_profile": {"name": new.name},
            "capabilities": {
                "card_payments": {"requested": True},
                "transfers": {"requested": True},
            },
            "metadata": dict(new.metadata),
        }
        return await self._calls.mutation(
            # Another key than v2's: Stripe refuses one key at two endpoints.
            lambda: self._post("/v1/accounts", params, f"{key}-v1"),
            account_of,
            outcome_of_creation,
        )

    async def account(self, stripe_account_id: str) -> Account | None:
        """Returns the account, or None if it does not exist or has revoked our access."""
        account = await self._shown_account(stripe_account_id)
        return None if account is None else account_of(account)

    async def found_account(self, stripe_account_id: str) -> FoundAccount | None:
        """Returns the account with its metadata, or None as :meth:`account` does."""
        account = await self._shown_account(stripe_account_id)
        return None if account is None else found_account_of(account)

    async def accounts_since(self, since: datetime) -> Sequence[FoundAccount]:
        """Returns the accounts that were created since then, the oldest first."""
        accounts = await self._listed_by_time({"gte": int(since.timestamp())})
        return [found_account_of(account) for account in reversed(accounts)]

    async def find_account(self, operation_id: str, created: datetime) -> Account | None:
        """Returns the account that the operation of this time created, or None.

        Accounts cannot be listed by metadata, so those that were created since about that time are
        listed.
        """
        for account in await self._listed_by_time({"gte": searched_since(created)}):
            if metadata_of(account).get("operation_id") == operation_id:
                return account_of(account)
        return None

    async def _shown_account(self, stripe_account_id: str) -> Json | None:
        path = path_to("v1", "accounts", stripe_account_id)
        return await self._read_of_account(lambda: self._get(path))

    async def _listed_by_time(self, created: sent.AccountListParamsCreated) -> list[Json]:
        params: sent.AccountListParams = {"created": created, "limit": 100}
        return await self._calls.read_all(
            lambda after: self._get("/v1/accounts", {**params, **after})
        )

    async def onboarding_link(
        self, stripe_account_id: str, refresh_url: str, return_url: str
    ) -> str | None:
        """Returns the URL of a new onboarding page. It works once and for five minutes.

        This is not a stored operation: an additional link does no harm. Returns None if the account
        does not exist or has revoked our access.
        """
        params: sent.AccountLinkCreateParams = {
            "account": stripe_account_id,
            "type": "account_onboarding",
            "refresh_url": refresh_url,
            "return_url": return_url,
            "collection_options": {
                "fields": "eventually_due",
                # What Stripe has announced for later can be given at once.
                "future_requirements": "include",
            },
        }
        link = await self._read_of_account(lambda: self._post("/v1/account_links", params))
        return None if link is None else text(link, "url")

    async def dashboard_link(self, stripe_account_id: str) -> str | None:
        """Returns a URL that logs the expert in to their Express dashboard.

        Returns None if the account does not exist or has revoked our access.
        """
        path = path_to("v1", "accounts", stripe_account_id, "login_links")
        link = await self._read_of_account(lambda: self._post(path, {}))
        return None if link is None else text(link, "url")

    async def thin_events(self, since: datetime) -> Sequence[WebhookEvent]:
        """Returns no events: the accounts of v1 report by the events of their own lists."""
        return ()
