"""Cards may be off in the platform's settings at Stripe, which Stripe does not call an error."""

from __future__ import annotations

from typing import Any

import structlog.testing

from marketplace.payments.v1 import payments_pb2
from payment_service.application.jobs.apply_webhooks import apply_waiting
from payment_service.domain.processor_errors import CARDS_NOT_ENABLED
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.stripe import ingestion, new_event
from tests.support.world import World

_CANCELED = payments_pb2.PAYMENT_STATE_CANCELED


async def _cards(world: World, enabled: bool) -> None:
    await world.stripe.control("POST", "/settings", {"card_payments_enabled": enabled})


async def test_an_intent_that_no_card_can_pay_is_a_refusal(world: World) -> None:
    expert = await world.expert()
    await _cards(world, enabled=False)
    request = world.initiation(expert)
    with structlog.testing.capture_logs() as logged:
        refused = await refusal(world.payments.InitiatePayment(request))
    alarms = [line for line in logged if line["event"] == "stripe_misconfigured"]
    assert [(line["log_level"], line["code"]) for line in alarms] == [("error", CARDS_NOT_ENABLED)]
    for _ in range(2):
        refused = await refusal(world.payments.InitiatePayment(request))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "REFUSED_BY_PROCESSOR")
        assert refused.facts["stripe_code"] == CARDS_NOT_ENABLED
    payment = await world.get(refused.facts["payment_id"])
    assert payment.state == _CANCELED
    assert "not enabled in the platform's settings" in payment.last_failure.message
    await world.settle_down()
    assert (await world.get(payment.payment_id)).payment_intent_id == ""
    await _cards(world, enabled=True)
    assert (await world.initiate(expert)).client_secret
    await check_books(world)


async def test_its_event_does_not_bring_it_back(start_world: StartWorld) -> None:
    """The answer is lost, and the event comes before the service asks again."""
    world = await start_world(loops=False)
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    expert = await world.expert()
    await _cards(world, enabled=False)
    await world.stripe.fault("/payment_intents$", "reset", "after")
    request = world.initiation(expert)
    assert (await refusal(world.payments.InitiatePayment(request))).reason == "OUTCOME_UNKNOWN"
    [effect] = await world.stripe.effects("intent_created")
    intent: Any = await world.stripe.api("GET", f"/payment_intents/{effect['object']}")
    event = new_event("payment_intent.payment_failed", intent)
    await world.webhooks.IngestEvent(ingestion(event))
    assert world.service is not None
    await apply_waiting(world.service.app)
    refused = await refusal(world.payments.InitiatePayment(request))
    assert refused.facts["stripe_code"] == CARDS_NOT_ENABLED
    payment = await world.get(effect["metadata"]["payment_id"])
    assert (payment.state, payment.payment_intent_id) == (_CANCELED, "")
