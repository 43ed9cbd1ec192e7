"""With which payment methods an intent can be paid, as since 2026-09-30.endive."""

from typing import Any

import pytest
import stripe

from tests.simulator.conftest import World

CREATE = "amount=2000&currency=usd"


async def test_the_old_parameter_is_refused(world: World) -> None:
    intent = await world.intent()
    old = "payment_method_types[]=card"
    for path, data in (
        ("", f"{CREATE}&{old}"),
        (f"/{intent.id}", old),
        (f"/{intent.id}/confirm", f"{old}&payment_method=pm_card_visa"),
    ):
        status, body, _ = await world.curl("POST", f"/v1/payment_intents{path}", data)
        assert status == 400
        assert body["error"]["code"] == "payment_method_types_no_longer_supported"
        assert body["error"]["param"] == "payment_method_types"


async def test_an_older_version_of_the_api_takes_it(world: World) -> None:
    version = {"Stripe_Version": "2026-08-26.dahlia"}
    status, body, _ = await world.curl(
        "POST", "/v1/payment_intents", f"{CREATE}&payment_method_types[]=card", **version
    )
    assert (status, body["payment_method_types"]) == (200, ["card"])
    assert body["allowed_payment_method_types"] is None
    status, body, _ = await world.curl(
        "POST", "/v1/payment_intents", f"{CREATE}&payment_method_types[]=sepa_debit", **version
    )
    assert (status, body["error"]["code"]) == (400, "payment_intent_invalid_parameter")


async def test_what_does_not_fit_is_filtered_silently(world: World) -> None:
    intent = await world.intent(allowed_payment_method_types=["sepa_debit", "card"])
    assert intent.allowed_payment_method_types == ["sepa_debit", "card"]
    assert intent.payment_method_types == ["card"]
    assert intent.automatic_payment_methods is None
    changed = await world.client.v1.payment_intents.update_async(
        intent.id, params={"allowed_payment_method_types": ["klarna"]}
    )
    assert changed.payment_method_types == []
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await world.intent(allowed_payment_method_types=["a_type_of_tomorrow"])
    assert caught.value.http_status == 400


async def test_by_default_the_dashboard_decides(world: World) -> None:
    status, body, _ = await world.curl("POST", "/v1/payment_intents", CREATE)
    assert status == 200
    assert body["payment_method_types"] == ["card"]
    assert body["allowed_payment_method_types"] is None
    assert body["automatic_payment_methods"] == {"allow_redirects": "always", "enabled": True}
    await world.control("POST", "/settings", {"card_payments_enabled": False})
    status, body, _ = await world.curl("POST", "/v1/payment_intents", CREATE)
    assert status == 400


async def test_a_card_cannot_pay_what_offers_no_cards(world: World) -> None:
    await world.control("POST", "/settings", {"card_payments_enabled": False})
    intent = await world.intent()
    assert (intent.status, intent.payment_method_types) == ("requires_payment_method", [])
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await world.client.v1.payment_intents.confirm_async(
            intent.id, params={"payment_method": "pm_card_visa"}
        )
    assert caught.value.code == "payment_intent_incompatible_payment_method"


@pytest.mark.parametrize(
    "other",
    [
        {"automatic_payment_methods": {"enabled": True}},
        {"excluded_payment_method_types": ["klarna"]},
        {"payment_method_configuration": "pmc_1"},
    ],
    ids=lambda other: next(iter(other)),
)
async def test_only_one_parameter_chooses(world: World, other: Any) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        await world.intent(allowed_payment_method_types=["card"], **other)
