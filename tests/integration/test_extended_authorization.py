"""Longer authorizations: asked for only where the platform says that Stripe grants them."""

from __future__ import annotations

from datetime import timedelta

from payment_service.domain.ports.policy import Policy
from tests.integration.conftest import StartWorld
from tests.support.errors import refusal
from tests.support.steps.payments import PLATFORM
from tests.support.world import IN_ESCROW, World

ASKED = {"extended_authorization": True}


async def test_nothing_optional_is_asked_for_by_default(world: World) -> None:
    assert not Policy.__dataclass_fields__["extended_authorization"].default
    held = await world.escrowed()
    intent = await world.stripe.api("GET", f"/payment_intents/{held.payment_intent_id}")
    assert "request_extended_authorization" not in intent["payment_method_options"]["card"]


async def test_only_a_card_hold_asks_for_a_longer_authorization(start_world: StartWorld) -> None:
    world = await start_world(policy=ASKED)
    await world.stripe.control("POST", "/settings", {"extended_authorization_eligible": True})
    expert = await world.expert()
    initiated = await world.initiate(expert)
    await world.confirm(initiated, "pm_card_extended_authorization")
    held = await world.in_state(initiated.payment.payment_id, IN_ESCROW)
    lasts = held.escrow_expire_time.ToDatetime() - held.create_time.ToDatetime()
    assert lasts > timedelta(days=29)
    platform = await world.escrowed(expert, escrow_mode=PLATFORM)
    intent = await world.stripe.api("GET", f"/payment_intents/{platform.payment_intent_id}")
    assert "request_extended_authorization" not in intent["payment_method_options"]["card"]


async def test_an_account_that_is_not_eligible_is_refused_by_stripe(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy=ASKED)
    expert = await world.expert()
    refused = await refusal(world.payments.InitiatePayment(world.initiation(expert)))
    assert refused.reason == "REFUSED_BY_PROCESSOR"
    # Stripe gives no code: what it said is for operators, and never in an answer.
    assert "eligible" not in f"{refused}"
    [(last_error,)] = world.sql("SELECT last_error FROM operations WHERE kind = 'create_intent'")
    assert "not eligible for the requested card features" in last_error
