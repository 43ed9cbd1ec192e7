"""What a walk does at Stripe, with Stripe's own package: it pays by card and reads the books."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import stripe

_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class BalanceLine:
    """One of Stripe's balance transactions: the net amount that it moved on its account."""

    line_id: str
    kind: str
    net: int
    currency: str
    #: Its source: a charge, a transfer, a payout; empty if Stripe names none.
    source_id: str = ""


@dataclass(frozen=True, slots=True)
class CardAnswer:
    """The outcome of an attempt to pay."""

    #: The intent's status afterwards; `declined` if the card was declined.
    status: str
    #: Stripe's code, and its sentence for the payer, if it was declined.
    decline_code: str = ""
    sentence: str = ""


class StripeSide:
    """One platform account, at Stripe or at the simulator."""

    def __init__(
        self, secret_key: str, *, publishable_key: str = "", api_base: str | None = None
    ) -> None:
        """With a publishable key, cards are confirmed with the client secret, as a browser does.

        Without one they are confirmed by the secret key, which Stripe allows for its test cards.
        """
        self._books = _client(secret_key, api_base)
        self._browser = _client(publishable_key, api_base) if publishable_key else None

    def pay(self, intent_id: str, client_secret: str, payment_method: str) -> CardAnswer:
        """Confirms an intent with one of Stripe's test cards."""
        params: dict[str, Any] = {"payment_method": payment_method}
        client = self._books
        if self._browser is not None:
            client = self._browser
            params["client_secret"] = client_secret
        try:
            intent = client.v1.payment_intents.confirm(intent_id, cast("Any", params))
        except stripe.CardError as declined:
            code = declined.error.decline_code if declined.error is not None else None
            return CardAnswer(
                "declined", str(code or declined.code or ""), declined.user_message or ""
            )
        return CardAnswer(str(intent.status))

    def lines(self, account: str = "", since: int = 0) -> list[BalanceLine]:
        """Returns the balance transactions of the platform, or of a connected account."""
        found = self._books.v1.balance_transactions.list(
            {"limit": 100, "created": {"gte": since}}, _as(account)
        )
        return [
            BalanceLine(line.id, line.type, line.net, line.currency.upper(), str(line.source or ""))
            for line in found.auto_paging_iter()
        ]

    def balances(self, account: str = "") -> dict[str, int]:
        """Returns the account's balance at Stripe by currency, available and pending together."""
        balance = self._books.v1.balance.retrieve(None, _as(account))
        held: dict[str, int] = {}
        for part in (*balance.available, *balance.pending):
            currency = str(part["currency"]).upper()
            held[currency] = held.get(currency, 0) + int(part["amount"])
        return {currency: total for currency, total in held.items() if total}

    def pays_out_by_hand(self) -> bool:
        """Whether the platform's payouts are manual, so that it may hold money for others."""
        settings = self._books.v1.accounts.retrieve_current().settings
        payouts = settings.payouts if settings is not None else None
        return payouts is not None and payouts.schedule.interval == "manual"

    def account(self, account: str) -> stripe.Account:
        return self._books.v1.accounts.retrieve(account)

    def events(self, account: str, since: int) -> list[Mapping[str, Any]]:
        """Returns the events of the platform, or of a connected account, oldest first."""
        found = self._books.v1.events.list({"limit": 100, "created": {"gte": since}}, _as(account))
        return [cast("Mapping[str, Any]", e.to_dict()) for e in found.auto_paging_iter()][::-1]


class SimulatorSide:
    """What only the simulator can do: move the clock, and act as a bank."""

    def __init__(self, url: str) -> None:
        self._url = url

    def advance(self, days: float) -> None:
        """Moves Stripe's clock forward: holds may end, and funds become available."""
        self._control("/clock", {"advance_seconds": days * 86_400})

    def switch(self, **switches: int | str) -> None:
        """Sets some of the simulator's switches."""
        self._control("/settings", switches)

    def pay_out(self, account: str) -> None:
        """Pays out the available balance of a connected account now."""
        self._control(f"/accounts/{account}/payout", {})

    def contest(self, charge_id: str) -> None:
        """Opens a dispute: the client's bank takes the charge back."""
        self._control(f"/charges/{charge_id}/dispute", {})

    def _control(self, path: str, given: Mapping[str, object]) -> None:
        status, text = post(f"{self._url}/_simulator{path}", json.dumps(given).encode())
        if status != http.HTTPStatus.OK:
            raise stripe.StripeError(f"the simulator refused {path}: {status} {text}")


def _client(key: str, api_base: str | None) -> stripe.StripeClient:
    if api_base is None:
        return stripe.StripeClient(key, max_network_retries=2)
    return stripe.StripeClient(
        key,
        base_addresses={"api": api_base},
        # A local server is never reached through a proxy.
        http_client=stripe.RequestsClient(proxy=cast("Any", {"http": "", "https": ""})),
        max_network_retries=2,
    )


def _as(account: str) -> Any:
    return {"stripe_account": account} if account else {}


# Local addresses are never reached through a proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def post(url: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Posts as a browser does, follows redirects, and returns the last status and text."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no web address")
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
        url, data=body, method="POST", headers=dict(headers or {})
    )
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode(errors="replace")
    except (urllib.error.URLError, http.client.HTTPException) as unreachable:
        return 0, str(unreachable)
