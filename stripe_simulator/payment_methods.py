"""Payment methods: cards, by test token or by number.

A token such as `pm_card_visa` makes a new payment method each time it is used, as at Stripe.
"""

from __future__ import annotations

import datetime
from typing import Any

from stripe_simulator import cards
from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.ids import scrambled
from stripe_simulator.simulation import Call, Simulation
from stripe_simulator.store import Row

EMPTY_ADDRESS = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))


def resolve(
    simulation: Simulation, account: str, id_: str | None, data: dict[str, Any] | None
) -> Row | None:
    """The payment method that a request names, by id or test token, or describes."""
    if id_ is not None:
        card = cards.BY_TOKEN.get(id_)
        if card is not None:
            return _insert(simulation, account, card, {}, None)
        row = simulation.store.get("payment_method", id_)
        if row is None or row["_account"] != account:
            raise no_such("PaymentMethod", id_, "payment_method")
        return row
    if data is not None:
        return create_from_data(simulation, account, data)
    return None


def card_of(method: Row) -> cards.Card:
    return cards.BY_NUMBER[method["_number"]]


def create_from_data(simulation: Simulation, account: str, data: dict[str, Any]) -> Row:
    """From `payment_method_data` or the parameters of POST /v1/payment_methods."""
    given = data.get("card") or {}
    billing = data.get("billing_details") or {}
    if "token" in given:
        card = cards.BY_TOKEN.get(given["token"].replace("tok_", "pm_card_", 1))
        if card is None:
            raise no_such("token", given["token"], "card[token]")
        return _insert(simulation, account, card, given, billing)
    number = "".join(given.get("number", "").split())
    if not cards.luhn_valid(number) or not 12 <= len(number) <= 19:
        raise _card_error("incorrect_number", "Your card number is incorrect.", "number")
    card = cards.BY_NUMBER.get(number)
    if card is None:
        raise _card_error(
            "card_declined",
            "Your card was declined. Your request was in test mode, but used a non test card. For "
            "a list of valid test cards, visit: https://stripe.com/docs/testing.",
            "number",
            "test_mode_live_card",
        )
    today = datetime.datetime.fromtimestamp(simulation.now(), datetime.UTC)
    year = given.get("exp_year", today.year + 4)
    year += 2000 if year < 100 else 0
    if not 1 <= given.get("exp_month", 12) <= 12:
        raise _card_error(
            "invalid_expiry_month", "Your card's expiration month is invalid.", "exp_month"
        )
    if (year, given.get("exp_month", 12)) < (today.year, today.month) or year > today.year + 50:
        raise _card_error(
            "invalid_expiry_year", "Your card's expiration year is invalid.", "exp_year"
        )
    return _insert(simulation, account, card, {**given, "exp_year": year}, billing)


def _card_error(code: str, message: str, param: str, decline_code: str | None = None) -> ApiError:
    return ApiError(
        402, message, kind="card_error", code=code, param=param, decline_code=decline_code
    )


def _insert(
    simulation: Simulation,
    account: str,
    card: cards.Card,
    given: dict[str, Any],
    billing: dict[str, Any] | None,
) -> Row:
    year = datetime.datetime.fromtimestamp(simulation.now(), datetime.UTC).year + 4
    billing = billing or {}
    return simulation.store.insert(
        "payment_method",
        {
            "id": simulation.new_id("pm_1"),
            "object": "payment_method",
            "allow_redisplay": "unspecified",
            "billing_details": {
                "address": {**EMPTY_ADDRESS, **(billing.get("address") or {})},
                "email": billing.get("email"),
                "name": billing.get("name"),
                "phone": billing.get("phone"),
                "tax_id": None,
            },
            "card": {
                "brand": card.brand,
                "checks": _checks(card),
                "country": card.country,
                "display_brand": card.brand,
                "exp_month": given.get("exp_month", 12),
                "exp_year": given.get("exp_year", year),
                "fingerprint": scrambled(card.number, 16),
                "funding": "debit" if "debit" in card.says else "credit",
                "generated_from": None,
                "last4": card.last4,
                "networks": {"available": [card.brand], "preferred": None},
                "regulated_status": "unregulated",
                "three_d_secure_usage": {"supported": True},
                "wallet": None,
            },
            "created": simulation.now(),
            "customer": None,
            "customer_account": None,
            "livemode": False,
            "metadata": {},
            "type": "card",
            "_account": account,
            "_number": card.number,
        },
    )


def _checks(card: cards.Card) -> dict[str, str | None]:
    wrong = card.decline is not None and card.decline[0] == "incorrect_cvc"
    return {
        "address_line1_check": None,
        "address_postal_code_check": None,
        "cvc_check": "fail" if wrong else "pass",
    }


def create(call: Call) -> Row:
    """POST /v1/payment_methods, also with a publishable key, as Stripe.js does."""
    row = create_from_data(call.simulation, call.account, call.params)
    metadata = call.get("metadata") or {}
    return call.simulation.store.change("payment_method", row["id"], metadata=metadata)


def retrieve(call: Call) -> Row:
    return call.object("payment_method", "payment_method", "PaymentMethod")
