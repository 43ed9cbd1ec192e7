"""Deliveries: signed, in order, retried, and mistreated on request."""

import asyncio
import json
import time

import pytest
import stripe

from stripe_simulator import WebhookTarget
from tests.simulator.conftest import (
    CONNECT_SECRETS,
    PLATFORM_SECRETS,
    Receiver,
    StartWorld,
    World,
    settle,
)

HOLD = [
    "payment_intent.created",
    "charge.succeeded",
    "payment_intent.amount_capturable_updated",
]


async def test_signed_for_both_endpoints(hooked: World, receiver: Receiver) -> None:
    expert = await hooked.expert()
    await hooked.destination_charge(expert)
    await settle(hooked)
    assert receiver.types("platform") == [
        *HOLD,
        "transfer.created",
        "application_fee.created",
        "charge.captured",
        "payment_intent.succeeded",
    ]
    assert receiver.types("connect")[-1] == "payment.created"
    for endpoint, body, signature in receiver.deliveries:
        secrets = PLATFORM_SECRETS if endpoint == "platform" else CONNECT_SECRETS
        assert signature.count("v1=") == len(secrets)
        for secret in secrets:
            event = stripe.Webhook.construct_event(body, signature, secret)
            assert ("account" in event) is (endpoint == "connect")
            assert event.livemode is False
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.Webhook.construct_event(body, signature, "whsec_other")


async def test_an_endpoint_gets_what_it_is_registered_for(
    hooked: World, receiver: Receiver
) -> None:
    chosen = "payment_intent.succeeded,payout.paid,transfer.created"
    await hooked.control("POST", "/settings", {"webhook_events": chosen})
    await hooked.destination_charge(await hooked.expert())
    await settle(hooked)
    assert receiver.types("platform") == ["transfer.created", "payment_intent.succeeded"]
    assert receiver.types("connect") == []
    # Stripe's list has all of them, and none of them waits for an endpoint.
    listed = await hooked.client.v1.events.list_async(params={"types": ["charge.captured"]})
    assert [event.pending_webhooks for event in listed.data] == [0]


async def test_a_disabled_endpoint_gets_nothing(hooked: World, receiver: Receiver) -> None:
    await hooked.control("POST", "/settings", {"webhook_status": "disabled"})
    await hooked.intent()
    await settle(hooked)
    assert receiver.types("platform") == []


async def test_retried_until_accepted(hooked: World, receiver: Receiver) -> None:
    receiver.statuses = [500, 404, 302]
    await hooked.control(
        "POST", "/webhooks/rules", {"action": "drop", "type": "^(?!payment_intent.created)"}
    )
    intent = await hooked.intent()
    await settle(hooked)
    assert receiver.types("platform") == ["payment_intent.created"] * 4
    bodies = {json.loads(body)["id"] for _, body, _ in receiver.deliveries}
    assert len(bodies) == 1
    state = await hooked.control("GET", "/webhooks")
    assert state["deliveries"][0]["attempts"] == 4
    assert state["deliveries"][0]["state"] == "delivered"
    page = await hooked.client.v1.events.list_async(params={"delivery_success": True})
    assert [event.data.object["id"] for event in page.data] == [intent.id]
    assert page.data[0].pending_webhooks == 0


async def test_abandoned_after_the_last_attempt(hooked: World, receiver: Receiver) -> None:
    await hooked.control("POST", "/webhooks", {"max_attempts": 2})
    receiver.statuses = [500] * 10
    await hooked.intent()
    await settle(hooked)
    assert len(receiver.deliveries) == 2
    page = await hooked.client.v1.events.list_async(params={"delivery_success": False})
    assert page.data[0].pending_webhooks == 1
    receiver.statuses = []
    await hooked.control("POST", f"/events/{page.data[0].id}/redeliver")
    await settle(hooked)
    assert len(receiver.deliveries) == 3


async def test_drop_duplicate_and_delay(hooked: World, receiver: Receiver) -> None:
    await hooked.control(
        "POST",
        "/webhooks/rules",
        {
            "rules": [
                {"action": "drop", "type": "^charge.succeeded$", "times": 1},
                {"action": "duplicate", "type": "amount_capturable_updated", "copies": 2},
                {"action": "delay", "type": "payment_intent.created", "delay_ms": 300},
            ]
        },
    )
    await hooked.paid()
    await settle(hooked)
    assert receiver.types("platform") == [HOLD[2], HOLD[2], HOLD[2], HOLD[0]]
    counts = (await hooked.control("GET", "/webhooks"))["counts"]
    assert counts == {"dropped": 1, "delivered": 2}
    await hooked.control("DELETE", "/webhooks/rules")
    receiver.deliveries.clear()
    await hooked.paid()
    await settle(hooked)
    assert receiver.types("platform") == HOLD


async def test_reordered(hooked: World, receiver: Receiver) -> None:
    await hooked.control("POST", "/webhooks/rules", {"action": "reorder", "window": 6})
    for _ in range(2):
        await hooked.paid()
    await settle(hooked)
    assert sorted(receiver.types("platform")) == sorted(HOLD * 2)
    assert receiver.types("platform") != HOLD * 2


async def test_forged_copy_comes_along(hooked: World, receiver: Receiver) -> None:
    await hooked.control("POST", "/webhooks/rules", {"action": "forge", "times": 1})
    await hooked.intent()
    await settle(hooked)
    for _ in range(100):
        if len(receiver.deliveries) == 2:
            break
        await asyncio.sleep(0.01)
    valid = 0
    for _, body, signature in receiver.deliveries:
        try:
            stripe.Webhook.construct_event(body, signature, PLATFORM_SECRETS[0])
        except stripe.SignatureVerificationError:
            continue
        valid += 1
    assert (len(receiver.deliveries), valid) == (2, 1)


async def test_pause_and_resume(hooked: World, receiver: Receiver) -> None:
    await hooked.control("POST", "/webhooks", {"paused": True})
    await hooked.intent()
    await asyncio.sleep(0.05)
    assert receiver.deliveries == []
    await hooked.control("POST", "/webhooks", {"paused": False})
    await settle(hooked)
    assert len(receiver.deliveries) == 1


async def test_endpoints_set_at_run_time(world: World, receiver: Receiver) -> None:
    targets = [
        {"scope": "platform", "url": f"{receiver.url}/here", "secrets": ["whsec_a", "whsec_b"]}
    ]
    await world.control("POST", "/webhooks", {"targets": targets})
    await world.intent()
    await settle(world)
    assert receiver.types("here") == ["payment_intent.created"]


async def test_signature_is_in_real_time_however_the_clock_stands(
    hooked: World, receiver: Receiver
) -> None:
    await hooked.control("POST", "/clock", {"advance_seconds": 30 * 86_400})
    await hooked.intent()
    await settle(hooked)
    _, body, signature = receiver.deliveries[0]
    assert abs(int(signature.split(",")[0].removeprefix("t=")) - time.time()) < 60
    assert json.loads(body)["created"] > time.time() + 29 * 86_400


async def test_answers_do_not_wait_for_an_unavailable_endpoint(start_world: StartWorld) -> None:
    world = await start_world(
        webhooks=(WebhookTarget("platform", "http://127.0.0.1:9/none", ("whsec_x",)),)
    )
    assert (await world.paid()).status == "requires_capture"
    await asyncio.sleep(0.05)
    state = await world.control("GET", "/webhooks")
    assert state["counts"] == {"pending": 3}
