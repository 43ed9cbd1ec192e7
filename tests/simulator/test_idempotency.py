"""Stripe's idempotency keys, row by row of what its documents say."""

import asyncio
from typing import Any

import pytest
import stripe

from tests.simulator.conftest import World, struck

CREATE = "amount=2000&currency=usd&allowed_payment_method_types[]=card"


async def post(
    world: World, path: str, data: str, key: str, **headers: str
) -> tuple[int, Any, Any]:
    return await world.curl("POST", path, data, Idempotency_Key=key, **headers)


async def test_same_request_gets_the_same_bytes(world: World) -> None:
    _, first, headers = await post(world, "/v1/payment_intents", CREATE, "k1")
    assert "Idempotent-Replayed" not in headers
    assert headers["Original-Request"] == headers["Request-Id"]
    # The order of the parameters is no difference.
    shuffled = "&".join(reversed(CREATE.split("&")))
    _, second, again = await post(world, "/v1/payment_intents", shuffled, "k1")
    assert second == first
    assert again["Idempotent-Replayed"] == "true"
    assert again["Original-Request"] == headers["Request-Id"] != again["Request-Id"]
    assert len(await world.effects("intent_created")) == 1


async def test_other_parameters_or_another_endpoint_are_refused(world: World) -> None:
    await post(world, "/v1/payment_intents", CREATE, "k1")
    other = CREATE.replace("2000", "2001")
    for path, data in (("/v1/payment_intents", other), ("/v1/accounts", CREATE)):
        status, body, _ = await post(world, path, data, "k1")
        assert (status, body["error"]["type"]) == (400, "idempotency_error")
    with pytest.raises(stripe.IdempotencyError):
        await world.client.v1.payment_intents.create_async(
            params={"amount": 2_001, "currency": "usd"}, options={"idempotency_key": "k1"}
        )


async def test_refusals_of_the_endpoint_are_replayed(world: World) -> None:
    held = await world.paid()
    path = f"/v1/payment_intents/{held.id}/capture"
    too_much = "amount_to_capture=99999"
    status, first, _ = await post(world, path, too_much, "k1")
    assert status == 400
    await post(world, path, "", "k2")
    status, second, headers = await post(world, path, too_much, "k1")
    assert (status, second, headers["Idempotent-Replayed"]) == (400, first, "true")

    intent = await world.intent()
    confirm = f"/v1/payment_intents/{intent.id}/confirm"
    declined = "payment_method=pm_card_visa_chargeDeclined"
    status, first, _ = await post(world, confirm, declined, "k3")
    assert status == 402
    status, second, headers = await post(world, confirm, declined, "k3")
    assert (status, second, headers["Idempotent-Replayed"]) == (402, first, "true")
    assert len(await world.effects("declined")) == 1


async def test_what_comes_before_the_endpoint_is_not_stored(world: World) -> None:
    path = "/v1/payment_intents"
    for bad in ("amount=2000", CREATE + "&colour=red", CREATE.replace("2000", "x")):
        status, _, _ = await post(world, path, bad, "k1")
        assert status == 400
    status, _, _ = await post(world, path, CREATE, "k1", Authorization="Bearer sk_wrong")
    assert status == 401
    status, _, headers = await post(world, path, CREATE, "k1")
    assert (status, headers.get("Idempotent-Replayed")) == (200, None)


async def test_keys_belong_to_an_account_and_to_a_day(world: World) -> None:
    _, first, _ = await post(world, "/v1/payment_intents", CREATE, "k1")
    await world.control("POST", "/clock", {"advance_seconds": 23 * 3600})
    _, second, _ = await post(world, "/v1/payment_intents", CREATE, "k1")
    assert second["id"] == first["id"]
    await world.control("POST", "/clock", {"advance_seconds": 3601})
    _, third, headers = await post(world, "/v1/payment_intents", CREATE, "k1")
    assert third["id"] != first["id"]
    assert "Idempotent-Replayed" not in headers
    status, body, _ = await post(world, "/v1/payment_intents", CREATE, "k" * 256)
    assert (status, body["error"]["type"]) == (400, "idempotency_error")


async def test_same_key_while_the_first_still_runs(world: World) -> None:
    rule = {"match": {"path": "/payment_intents$"}, "action": "delay", "delay_ms": 600, "times": 1}
    await world.control("POST", "/faults", rule)
    first = asyncio.create_task(post(world, "/v1/payment_intents", CREATE, "k1"))
    await struck(world)
    status, body, headers = await post(world, "/v1/payment_intents", CREATE, "k1")
    assert (status, body["error"]["code"]) == (409, "idempotency_key_in_use")
    assert headers["Stripe-Should-Retry"] == "true"
    status, body, _ = await first
    assert status == 200
    _, again, _ = await post(world, "/v1/payment_intents", CREATE, "k1")
    assert again == body


async def test_get_ignores_keys(world: World) -> None:
    await world.intent()
    for _ in range(2):
        _, _, headers = await world.curl("GET", "/v1/payment_intents", Idempotency_Key="k1")
        assert "Idempotent-Replayed" not in headers
