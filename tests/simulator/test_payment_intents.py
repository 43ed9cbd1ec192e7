"""PaymentIntents: their states, their events, and what is refused."""

from typing import Any

import pytest
import stripe

from stripe_simulator.cards import CARDS
from tests.simulator.conftest import World


async def test_hold_and_capture(world: World) -> None:
    intent = await world.intent(metadata={"gig": "7"}, description="A gig")
    assert intent.status == "requires_payment_method"
    held = await world.client.v1.payment_intents.confirm_async(
        intent.id, params={"payment_method": "pm_card_visa", "expand": ["latest_charge"]}
    )
    assert held.status == "requires_capture"
    assert (held.amount_capturable, held.amount_received) == (10_000, 0)
    charge: Any = held.latest_charge
    assert (charge.paid, charge.captured, charge.balance_transaction) == (True, False, None)
    assert charge.metadata.to_dict() == {"gig": "7"}
    card = charge.payment_method_details.card
    assert card.capture_before == charge.created + 7 * 86_400

    done = await world.client.v1.payment_intents.capture_async(
        intent.id, params={"expand": ["latest_charge.balance_transaction"]}
    )
    assert (done.status, done.amount_capturable, done.amount_received) == ("succeeded", 0, 10_000)
    charge = done.latest_charge
    assert (charge.balance_transaction.fee, charge.balance_transaction.net) == (320, 9_680)
    assert await world.event_types() == [
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.amount_capturable_updated",
        "charge.captured",
        "payment_intent.succeeded",
    ]
    kinds = [effect["kind"] for effect in await world.effects()]
    assert kinds == ["intent_created", "authorized", "captured"]


async def test_partial_capture_releases_the_remainder_and_replaces_the_fee(world: World) -> None:
    expert = await world.expert()
    held = await world.paid(application_fee_amount=1_000, transfer_data={"destination": expert})
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await world.client.v1.payment_intents.capture_async(
            held.id, params={"amount_to_capture": 6_000, "application_fee_amount": 6_001}
        )
    assert caught.value.param == "application_fee_amount"
    done = await world.client.v1.payment_intents.capture_async(
        held.id,
        params={
            "amount_to_capture": 6_000,
            "application_fee_amount": 600,
            "expand": ["latest_charge.transfer", "latest_charge.application_fee"],
        },
    )
    assert (done.amount, done.amount_received) == (10_000, 6_000)
    charge: Any = done.latest_charge
    assert (charge.amount_captured, charge.amount_refunded) == (6_000, 0)
    assert charge.refunded is False
    assert (charge.transfer.amount, charge.application_fee.amount) == (6_000, 600)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"amount_to_capture": 10_001}, "amount_too_large"),
        ({"amount_to_capture": 0}, "parameter_invalid_integer"),
        ({"amount_to_capture": -1}, "parameter_invalid_integer"),
    ],
)
async def test_refused_captures(world: World, params: Any, code: str) -> None:
    held = await world.paid()
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await world.client.v1.payment_intents.capture_async(held.id, params=params)
    assert caught.value.code == code


async def test_wrong_states_are_refused_with_the_intent(world: World) -> None:
    intents = world.client.v1.payment_intents
    intent = await world.intent()
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await intents.capture_async(intent.id)
    assert caught.value.code == "payment_intent_unexpected_state"
    error: Any = caught.value.error
    assert error.payment_intent.id == intent.id
    with pytest.raises(stripe.InvalidRequestError):
        await intents.confirm_async(intent.id)
    held = await world.paid()
    await intents.capture_async(held.id)
    for again in (intents.capture_async, intents.cancel_async, intents.confirm_async):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await again(held.id)
        assert caught.value.code == "payment_intent_unexpected_state"
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await intents.update_async(held.id, params={"amount": 5_000})
    assert caught.value.code == "payment_intent_unexpected_state"


async def test_cancel_of_a_hold_is_no_refund(world: World) -> None:
    held = await world.paid()
    canceled = await world.client.v1.payment_intents.cancel_async(
        held.id,
        params={"cancellation_reason": "requested_by_customer", "expand": ["latest_charge"]},
    )
    assert (canceled.status, canceled.amount_capturable) == ("canceled", 0)
    assert canceled.canceled_at is not None
    charge: Any = canceled.latest_charge
    assert (charge.captured, charge.refunded, charge.amount_refunded) == (False, False, 0)
    assert "charge.refunded" not in await world.event_types()
    assert (await world.event_types())[-1] == "payment_intent.canceled"
    assert (await world.client.v1.refunds.list_async()).data == []
    assert await world.lines() == []


@pytest.mark.parametrize("card", [card for card in CARDS if card.decline], ids=lambda c: c.says)
async def test_declines(world: World, card: Any) -> None:
    assert card.decline is not None
    code, decline_code, message = card.decline
    intent = await world.intent()
    confirm: Any = {"payment_method": card.tokens[0]}
    if card.three_d_secure:
        waiting = await world.client.v1.payment_intents.confirm_async(intent.id, params=confirm)
        assert waiting.status == "requires_action"
        await world.control("POST", f"/payment_intents/{intent.id}/authenticate", {})
    else:
        with pytest.raises(stripe.CardError) as caught:
            await world.client.v1.payment_intents.confirm_async(intent.id, params=confirm)
        error: Any = caught.value.error
        assert (caught.value.http_status, caught.value.code) == (402, code)
        assert error.decline_code == decline_code
        assert error.message == message
        assert error.payment_intent.status == "requires_payment_method"
        assert error.payment_method.card.last4 == card.last4
    intent = await world.client.v1.payment_intents.retrieve_async(
        intent.id, params={"expand": ["latest_charge"]}
    )
    assert intent.status == "requires_payment_method"
    assert intent.payment_method is None
    assert intent.last_payment_error is not None
    assert intent.last_payment_error.code == code
    charge: Any = intent.latest_charge
    assert (charge.status, charge.paid, charge.failure_code) == ("failed", False, code)
    assert (await world.event_types())[-2:] == ["charge.failed", "payment_intent.payment_failed"]

    # The same client secret may be tried again with another card.
    paid = await world.client.v1.payment_intents.confirm_async(
        intent.id, params={"payment_method": "pm_card_visa"}
    )
    assert (paid.status, paid.last_payment_error) == ("requires_capture", None)


async def test_create_with_confirm_keeps_a_declined_intent(world: World) -> None:
    with pytest.raises(stripe.CardError):
        await world.intent(confirm=True, payment_method="pm_card_visa_chargeDeclined")
    page = await world.client.v1.payment_intents.list_async()
    assert [intent.status for intent in page.data] == ["requires_payment_method"]
    paid = await world.intent(confirm=True, payment_method="pm_card_visa")
    assert paid.status == "requires_capture"


async def test_3ds_by_redirect(world: World) -> None:
    intent = await world.intent()
    waiting = await world.client.v1.payment_intents.confirm_async(
        intent.id,
        params={
            "payment_method": "pm_card_threeDSecure2Required",
            "return_url": "http://127.0.0.1:1/back?x=1",
        },
    )
    assert waiting.status == "requires_action"
    assert waiting.latest_charge is None
    action: Any = waiting.next_action
    assert action.type == "redirect_to_url"
    async with world.http.get(action.redirect_to_url.url) as page:
        assert page.status == 200
    async with world.http.post(
        action.redirect_to_url.url, data={"outcome": "approve"}, allow_redirects=False
    ) as answer:
        assert answer.status == 303
        assert answer.headers["Location"].startswith("http://127.0.0.1:1/back?x=1&payment_intent=")
        assert answer.headers["Location"].endswith("redirect_status=succeeded")
    held = await world.client.v1.payment_intents.retrieve_async(
        intent.id, params={"expand": ["latest_charge"]}
    )
    charge: Any = held.latest_charge
    assert held.status == "requires_capture"
    assert charge.payment_method_details.card.three_d_secure.result == "authenticated"


async def test_3ds_failed(world: World) -> None:
    waiting = await world.paid(card="pm_card_authenticationRequired")
    action: Any = waiting.next_action
    assert action.type == "use_stripe_sdk"
    async with world.http.post(
        action.use_stripe_sdk["stripe_js"], data={"outcome": "fail"}, allow_redirects=False
    ) as answer:
        assert answer.status == 200
    failed = await world.client.v1.payment_intents.retrieve_async(waiting.id)
    assert failed.status == "requires_payment_method"
    assert failed.last_payment_error is not None
    assert failed.last_payment_error.code == "payment_intent_authentication_failure"
    assert (await world.event_types())[-1] == "payment_intent.payment_failed"


async def test_3ds_off_session_is_refused_without_a_charge(world: World) -> None:
    intent = await world.intent()
    with pytest.raises(stripe.CardError) as caught:
        await world.client.v1.payment_intents.confirm_async(
            intent.id,
            params={"payment_method": "pm_card_authenticationRequired", "off_session": True},
        )
    assert caught.value.code == "authentication_required"
    assert (await world.client.v1.charges.list_async()).data == []


async def test_confirm_with_publishable_key_and_client_secret(world: World) -> None:
    intent = await world.intent(metadata={"private": "yes"})
    path = f"/v1/payment_intents/{intent.id}"
    form = (
        f"key=pk_test_simulator&client_secret={intent.client_secret}"
        "&payment_method_data[type]=card&payment_method_data[card][number]=4242424242424242"
        "&payment_method_data[card][exp_month]=12&payment_method_data[card][exp_year]=34"
        "&payment_method_data[card][cvc]=123"
    )
    status, body, _ = await world.curl("POST", f"{path}/confirm", form, key=None)
    assert (status, body["status"]) == (200, "requires_capture")
    assert "metadata" not in body
    pk = "pk_test_simulator"
    status, body, _ = await world.curl("GET", f"{path}?client_secret=wrong", key=pk)
    assert status == 400
    status, body, _ = await world.curl(
        "GET", f"{path}?client_secret={intent.client_secret}", key=pk
    )
    assert (status, body["id"]) == (200, intent.id)
    status, body, _ = await world.curl("POST", f"{path}/capture", "", key=pk)
    assert (status, body["error"]["code"]) == (401, "secret_key_required")


@pytest.mark.parametrize(
    ("number", "code"),
    [("4242424242424241", "incorrect_number"), ("4111111111111111", "card_declined")],
)
async def test_numbers_that_are_no_test_cards(world: World, number: str, code: str) -> None:
    intent = await world.intent()
    data: Any = {"type": "card", "card": {"number": number}}
    status, body, _ = await world.curl(
        "POST",
        f"/v1/payment_intents/{intent.id}/confirm",
        f"payment_method_data[type]=card&payment_method_data[card][number]={data['card']['number']}",
    )
    assert (status, body["error"]["code"]) == (402, code)


async def test_payment_method_of_its_own(world: World) -> None:
    status, method, _ = await world.curl(
        "POST",
        "/v1/payment_methods",
        "type=card&card[number]=5555555555554444&card[exp_month]=1&card[exp_year]=2040"
        "&billing_details[name]=Jenny",
        key="pk_test_simulator",
    )
    assert (status, method["card"]["brand"]) == (200, "mastercard")
    held = await world.paid(card=method["id"])
    assert held.payment_method == method["id"]
    charge = await world.client.v1.charges.retrieve_async(str(held.latest_charge))
    assert charge.billing_details.name == "Jenny"


async def test_update_and_list(world: World) -> None:
    intents = world.client.v1.payment_intents
    intent = await world.intent(metadata={"a": "1"})
    changed = await intents.update_async(
        intent.id, params={"amount": 5_000, "metadata": {"b": "2"}, "description": "Other"}
    )
    assert (changed.amount, changed.description) == (5_000, "Other")
    assert changed.metadata.to_dict() == {"a": "1", "b": "2"}
    others = [await world.intent() for _ in range(3)]
    newest_first = [others[2].id, others[1].id, others[0].id, intent.id]
    page = await intents.list_async(params={"limit": 2})
    assert [row.id for row in page.data] == newest_first[:2]
    assert page.has_more
    page = await intents.list_async(params={"limit": 2, "starting_after": others[1].id})
    assert [row.id for row in page.data] == newest_first[2:]
    assert not page.has_more
    page = await intents.list_async(params={"limit": 2, "ending_before": intent.id})
    assert [row.id for row in page.data] == newest_first[1:3]
    page = await intents.list_async(params={"created": {"lt": intent.created}})
    assert page.data == []


async def test_automatic_async_reports_success_before_the_money(world: World) -> None:
    intent = await world.client.v1.payment_intents.create_async(
        params={
            "amount": 2_000,
            "currency": "usd",
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            "confirm": True,
            "payment_method": "pm_card_visa",
        }
    )
    assert (intent.status, intent.capture_method) == ("succeeded", "automatic_async")
    events = (await world.client.v1.events.list_async()).data[::-1]
    assert [event.type for event in events] == [
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.succeeded",
        "charge.updated",
    ]
    assert events[1].data.object["balance_transaction"] is None
    assert events[3].data.object["balance_transaction"] is not None


async def test_an_ordinary_account_is_refused_the_optional_features_of_cards(world: World) -> None:
    for feature in ("extended_authorization", "incremental_authorization", "overcapture"):
        options: Any = {"card": {f"request_{feature}": "if_available"}}
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await world.paid(payment_method_options=options)
        assert "not eligible for the requested card features" in str(refused.value)
    never: Any = {"card": {"request_overcapture": "never"}}
    assert (await world.paid(payment_method_options=never)).status == "requires_capture"


async def test_extended_authorization_only_for_the_card_that_grants_it(world: World) -> None:
    await world.control("POST", "/settings", {"extended_authorization_eligible": True})
    options: Any = {"card": {"request_extended_authorization": "if_available"}}
    for card, days, status in (
        ("pm_card_extended_authorization", 30, "enabled"),
        ("pm_card_visa", 7, "disabled"),
    ):
        held = await world.paid(card=card, payment_method_options=options)
        charge: Any = await world.client.v1.charges.retrieve_async(str(held.latest_charge))
        details = charge.payment_method_details.card
        assert details.capture_before == charge.created + days * 86_400
        assert details.extended_authorization.status == status
