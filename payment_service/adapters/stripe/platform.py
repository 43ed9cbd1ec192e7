"""What Stripe shows of the platform itself, for `doctor`, and the round trip of a webhook."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import stripe

from payment_service.adapters.stripe.client import StripeResource
from payment_service.domain.platform_check import (
    CARDS,
    CONNECT,
    ENDPOINTS,
    THIN_ENDPOINT,
    Endpoint,
    PlatformFacts,
)

_ROUND_TRIP = "doctor: webhook round trip"


class NoAnswer(Exception):
    """Stripe does not answer, or refuses the key. The text is Stripe's own, for the operator."""


class Platform(StripeResource):
    """Reads the platform's own account. Answers are read as JSON: the SDK has no types for some."""

    async def platform_facts(self, *, accounts_v2: bool) -> PlatformFacts:
        """Returns what Stripe shows. Raises :class:`NoAnswer` if it shows not even the account.

        ``accounts_v2`` says which API must list the connected accounts.
        """
        account, skew = await self._account_and_skew()
        balance = await self._shown("/v1/balance")
        unread: list[tuple[str, str]] = []

        async def part(subject: str, path: str, **params: Any) -> list[dict[str, Any]]:
            try:
                return list((await self._shown(path, **params))["data"])
            except NoAnswer as said:
                unread.append((subject, str(said)))
                return []

        thin: list[dict[str, Any]] = []
        if accounts_v2:
            await part(CONNECT, "/v2/core/accounts", limit=1)
            include = {"include": ["webhook_endpoint.url"]}
            thin = await part(THIN_ENDPOINT, "/v2/core/event_destinations", limit=100, **include)
        else:
            await part(CONNECT, "/v1/accounts", limit=1)
        endpoints = await part(ENDPOINTS, "/v1/webhook_endpoints", limit=100)
        configurations = await part(CARDS, "/v1/payment_method_configurations", limit=100)
        return PlatformFacts(
            account_id=account["id"],
            livemode=bool(balance["livemode"]),
            country=account.get("country") or "",
            charges_enabled=bool(account.get("charges_enabled")),
            card_payments=(account.get("capabilities") or {}).get("card_payments", ""),
            settlement_currencies=_currencies(account, balance),
            payout_interval=_payout_interval(account),
            clock_skew=skew,
            endpoints=[
                Endpoint(
                    url=one["url"],
                    status=one["status"],
                    api_version=one.get("api_version") or "",
                    events=one["enabled_events"],
                )
                for one in endpoints
            ],
            thin_endpoints=[_thin_endpoint_of(one) for one in thin if _is_thin(one)],
            cards_offered=_offers_cards(configurations),
            unread=tuple(unread),
        )

    async def cause_event(self, currency: str, minor_units: int) -> str:
        """Creates a payment intent that nobody pays, cancels it, and returns the event's id.

        Raises :class:`NoAnswer`.
        """
        intent = await self._shown(
            "/v1/payment_intents",
            "post",
            amount=minor_units,
            currency=currency.lower(),
            description=_ROUND_TRIP,
            allowed_payment_method_types=["card"],
        )
        await self._shown(f"/v1/payment_intents/{intent['id']}/cancel", "post")
        events = await self._shown("/v1/events", type="payment_intent.canceled", limit=100)
        for event in events["data"]:
            if event["data"]["object"]["id"] == intent["id"]:
                return str(event["id"])
        raise NoAnswer("Stripe lists no event for the payment intent that was canceled")

    async def _account_and_skew(self) -> tuple[dict[str, Any], float]:
        """Returns our own account, and by how many seconds our clock is ahead of Stripe's."""
        sent = time.time()
        response = await self._answer("/v1/account", "get", {})
        middle = (sent + time.time()) / 2
        date = {name.lower(): value for name, value in response.headers.items()}.get("date")
        if not date:
            return dict(response.data), 0.0
        stripes = parsedate_to_datetime(date).replace(tzinfo=UTC)
        # Stripe's header has whole seconds.
        return dict(response.data), (
            datetime.fromtimestamp(middle, UTC) - stripes
        ).total_seconds() - 0.5

    async def _shown(self, path: str, method: str = "get", **params: Any) -> dict[str, Any]:
        return dict((await self._answer(path, method, params)).data)

    async def _answer(self, path: str, method: str, params: Mapping[str, Any]) -> Any:
        try:
            return await self._client.raw_request_async(method, path, **params)
        except stripe.StripeError as error:
            raise NoAnswer(_said(error)) from None
        except Exception as error:  # noqa: BLE001 - the connection has failed, in whatever way
            raise NoAnswer(f"no answer ({type(error).__name__})") from None


def _is_thin(destination: Mapping[str, Any]) -> bool:
    return destination.get("event_payload") == "thin" and bool(destination.get("webhook_endpoint"))


def _thin_endpoint_of(destination: Mapping[str, Any]) -> Endpoint:
    return Endpoint(
        url=destination["webhook_endpoint"].get("url") or "",
        status=destination["status"],
        api_version="",
        events=destination["enabled_events"],
    )


def _said(error: stripe.StripeError) -> str:
    status = f"{error.http_status}: " if error.http_status else ""
    return f"{status}{error.user_message or type(error).__name__}"


def _currencies(account: Mapping[str, Any], balance: Mapping[str, Any]) -> frozenset[str]:
    found = {account.get("default_currency") or ""}
    found |= {bank["currency"] for bank in (account.get("external_accounts") or {}).get("data", ())}
    for part in ("available", "pending"):
        found |= {amount["currency"] for amount in balance.get(part) or ()}
    return frozenset(currency.upper() for currency in found if currency)


def _payout_interval(account: Mapping[str, Any]) -> str:
    payouts = (account.get("settings") or {}).get("payouts") or {}
    return str((payouts.get("schedule") or {}).get("interval") or "")


def _offers_cards(configurations: list[dict[str, Any]]) -> bool:
    """Whether the platform's own default configuration has cards on."""
    own = [one for one in configurations if one.get("is_default") and not one.get("application")]
    return any(
        ((one.get("card") or {}).get("display_preference") or {}).get("value") == "on"
        for one in own
    )
