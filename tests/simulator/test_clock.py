"""The clock, and what happens when it passes a deadline."""

import asyncio
import time
from typing import Any

import pytest
import stripe

from tests.simulator.conftest import World


async def test_authorization_expires(world: World) -> None:
    held = await world.paid(metadata={"gig": "7"})
    charge: Any = await world.client.v1.charges.retrieve_async(str(held.latest_charge))
    before = charge.payment_method_details.card.capture_before
    await world.control("POST", "/clock", {"advance_seconds": 7 * 86_400 - 60})
    found = await world.client.v1.payment_intents.retrieve_async(held.id)
    assert found.status == "requires_capture"
    await world.control("POST", "/clock", {"advance_seconds": 3_600})
    found = await world.client.v1.payment_intents.retrieve_async(
        held.id, params={"expand": ["latest_charge"]}
    )
    assert (found.status, found.cancellation_reason) == ("canceled", "expired")
    assert (found.amount_capturable, found.canceled_at) == (0, before)
    charge = found.latest_charge
    assert (charge.captured, charge.refunded, charge.amount_refunded) == (False, False, 0)
    assert (await world.event_types())[-2:] == ["charge.expired", "payment_intent.canceled"]
    assert [row["payment_intent"] for row in await world.effects("expired")] == [held.id]
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await world.client.v1.payment_intents.capture_async(held.id)
    assert caught.value.code == "payment_intent_unexpected_state"


async def test_some_banks_hold_for_fewer_days(world: World) -> None:
    await world.control("POST", "/settings", {"authorization_days": 5})
    held = await world.paid()
    charge: Any = await world.client.v1.charges.retrieve_async(str(held.latest_charge))
    assert charge.payment_method_details.card.capture_before == charge.created + 5 * 86_400
    await world.control("POST", "/clock", {"advance_seconds": 5 * 86_400})
    found = await world.client.v1.payment_intents.retrieve_async(held.id)
    assert (found.status, found.cancellation_reason) == ("canceled", "expired")


async def test_captured_or_canceled_payments_do_not_expire(world: World) -> None:
    captured = await world.paid()
    await world.client.v1.payment_intents.capture_async(captured.id)
    canceled = await world.paid()
    await world.client.v1.payment_intents.cancel_async(canceled.id)
    await world.control("POST", "/clock", {"advance_seconds": 8 * 86_400})
    assert await world.effects("expired") == []


async def test_expiry_without_anybody_asking(world: World) -> None:
    """The simulator's own tick finds it, lazily or not."""
    held = await world.paid()
    world.simulator.simulation.clock.advance(8 * 86_400)
    for _ in range(40):
        if await world.effects("expired"):
            break
        await asyncio.sleep(0.05)
    row = (await world.effects("expired"))[0]
    assert row["payment_intent"] == held.id


async def test_freeze_set_and_no_way_back(world: World) -> None:
    frozen = await world.control("POST", "/clock", {"freeze": True})
    first = await world.intent()
    assert first.created == frozen["now"]
    moved = await world.control("POST", "/clock", {"set": frozen["now"] + 500})
    assert (await world.intent()).created == moved["now"] == frozen["now"] + 500
    async with world.http.post(
        f"{world.url}/_simulator/clock", json={"set": frozen["now"]}
    ) as answer:
        assert answer.status == 400
    running = await world.control("POST", "/clock", {"freeze": False})
    assert running["now"] >= moved["now"]
    assert (await world.control("GET", "/clock"))["frozen"] is False
    assert time.time() < running["now"]
