"""Connected accounts by Accounts v2, which Stripe asks of every new platform.

An account is the same object in both versions, so one that v1 created is read here too. What v2
does not know (yet), v1 is asked about: only then an account counts as gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import stripe
import structlog

from payment_service.adapters.stripe.account_outcomes import outcome_of_creation
from payment_service.adapters.stripe.accounts import Accounts
from payment_service.adapters.stripe.client import path_to
from payment_service.adapters.stripe.fields import Json, items, metadata_of, text, text_or_empty
from payment_service.adapters.stripe.views_v2 import (
    account_of_v2,
    found_account_of_v2,
    is_closed,
)
from payment_service.domain.experts import Account
from payment_service.domain.ports.records import WebhookEvent
from payment_service.domain.ports.stripe import FoundAccount, NewAccount, Outcome
from payment_service.domain.webhook_event import THIN_ACCOUNT_EVENTS, MalformedEvent, envelope_of

if TYPE_CHECKING:  # They take long to import.
    from stripe.params.v2 import core as sent

log = structlog.get_logger(__name__)

#: Everything else of an account is null in the answer, whatever its value.
_INCLUDE: Final[
    list[
        Literal[
            "configuration.merchant",
            "configuration.recipient",
            "future_requirements",
            "requirements",
        ]
    ]
] = ["configuration.merchant", "configuration.recipient", "future_requirements", "requirements"]

#: Stripe's codes for an account or a platform that only the endpoints of v1 serve.
_ONLY_V1: Final = frozenset(
    {
        "account_not_yet_compatible_with_v2",
        "v1_account_instead_of_v2_account",
        "configs_must_match_to_use_account_links",
        "accounts_v2_access_blocked",
        "non_connect_platform_accounts_v2_access_blocked",
    }
)


def _unknown_to_v2(error: BaseException) -> bool:
    """Returns whether v2 does not show the account; v1 may."""
    if not isinstance(error, stripe.StripeError):
        return False
    return error.http_status in (403, 404) or (error.code or "") in _ONLY_V1


class AccountsV2(Accounts):
    """Creates and reads connected accounts by v2; their dashboard links are v1's."""

    async def create_account(self, key: str, new: NewAccount) -> Outcome[Account]:
        """Creates an Express account that can receive transfers: a recipient.

        The platform is the merchant of every charge, so the expert needs no other configuration.
        """
        params: sent.AccountCreateParams = {
            "contact_email": new.email,
            "display_name": new.name,
            "dashboard": "express",
            "identity": {
                "country": new.country.lower(),
                "entity_type": new.business_type.value,
            },
            "configuration": {
                "recipient": {
                    "capabilities": {"stripe_balance": {"stripe_transfers": {"requested": True}}}
                }
            },
            # Express leaves no choice: the platform pays the fees and is liable for losses.
            "defaults": {
                "responsibilities": {
                    "fees_collector": "application",
                    "losses_collector": "application",
                }
            },
            "metadata": dict(new.metadata),
            "include": [*_INCLUDE],
        }
        return await self._calls.mutation(
            lambda: self._post("/v2/core/accounts", params, key),
            account_of_v2,
            outcome_of_creation,
        )

    async def account(self, stripe_account_id: str) -> Account | None:
        """Returns the account, or None if it does not exist, is closed or has revoked our access.

        An account that v1 created is known to v2 only after some minutes.
        """
        account = await self._retrieved(stripe_account_id)
        if account is None:
            return await super().account(stripe_account_id)
        return None if is_closed(account) else account_of_v2(account)

    async def found_account(self, stripe_account_id: str) -> FoundAccount | None:
        """Returns the account with its metadata, or None as :meth:`account` does."""
        account = await self._retrieved(stripe_account_id)
        if account is None:
            return await super().found_account(stripe_account_id)
        return None if is_closed(account) else found_account_of_v2(account)

    async def accounts_since(self, since: datetime) -> Sequence[FoundAccount]:
        """Returns the accounts that were created since then, by v2 or by v1, the oldest first.

        v2 lists accounts in no order of time that is promised, so all of them are looked through.
        """
        listed = await self._listed_accounts()
        recent = [
            text(one, "id")
            for one in listed
            if datetime.fromisoformat(text(one, "created")) >= since
        ]
        found = {one.account.stripe_account_id: one for one in await super().accounts_since(since)}
        for account_id in recent:
            account = await self.found_account(account_id)
            if account is not None:
                found[account_id] = account
        return sorted(found.values(), key=lambda one: one.create_time)

    async def _retrieved(self, stripe_account_id: str) -> Json | None:
        """Returns the account as v2 shows it, or None if v2 does not."""
        path = path_to("v2", "core", "accounts", stripe_account_id)
        params: sent.AccountRetrieveParams = {"include": [*_INCLUDE]}
        return await self._calls.read(lambda: self._get(path, params), _unknown_to_v2)

    async def _listed_accounts(self) -> list[Json]:
        return await self._read_pages_v2(
            "/v2/core/accounts", {"applied_configurations": ["recipient"]}
        )

    async def find_account(self, operation_id: str, created: datetime) -> Account | None:
        """Returns the account that the operation of this time created, or None.

        All accounts are looked through. That is rare: v2 keeps a key for 30 days, and gives what
        was created under it again.
        """
        for account in await self._listed_accounts():
            if metadata_of(account).get("operation_id") == operation_id:
                return await self.account(text(account, "id"))
        return await super().find_account(operation_id, created)

    async def onboarding_link(
        self, stripe_account_id: str, refresh_url: str, return_url: str
    ) -> str | None:
        """Returns the URL of a new onboarding page. It works once and for five minutes.

        Returns None if the account does not exist or has revoked our access.
        """
        params: sent.AccountLinkCreateParams = {
            "account": stripe_account_id,
            "use_case": {
                "type": "account_onboarding",
                "account_onboarding": {
                    "collection_options": {
                        "fields": "eventually_due",
                        "future_requirements": "include",
                    },
                    "refresh_url": refresh_url,
                    "return_url": return_url,
                },
            },
        }
        read = self._calls.read(
            lambda: self._post("/v2/core/account_links", params), _unknown_to_v2
        )
        link = await self._unless_revoked(read)
        if link is None:
            return await super().onboarding_link(stripe_account_id, refresh_url, return_url)
        return text(link, "url")

    async def thin_events(self, since: datetime) -> Sequence[WebhookEvent]:
        """Returns the thin events of all accounts since a time, oldest first."""
        listed = await self._read_pages_v2(
            "/v2/core/events",
            {
                "created": {"gte": since.strftime("%Y-%m-%dT%H:%M:%S.000Z")},
                "types": sorted(THIN_ACCOUNT_EVENTS),
            },
        )
        found = []
        for event in reversed(listed):
            try:
                found.append(envelope_of("connect", event))
            except MalformedEvent as malformed:
                log.warning("malformed_event", fault=str(malformed))
        return sorted(found, key=lambda event: event.create_time)

    async def _read_pages_v2(self, path: str, params: dict[str, object]) -> list[Json]:
        """Returns the items of all pages of a list of v2."""
        found: list[Json] = []
        url, query = path, {"limit": 100, **params}
        while url:
            page = await self._calls.read(partial(self._get, url, query))
            found += items(page)
            # It carries the parameters.
            url, query = text_or_empty(page, "next_page_url"), {}
        return found
