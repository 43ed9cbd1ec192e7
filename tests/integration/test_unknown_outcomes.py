"""Stripe may or may not have acted: the caller's answer says so, and it converges to one effect.

Webhooks are held back, so that only recovery can find out. Every operation that the service
knows is under way at once, each with its own fault, in each test.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from marketplace.payments.v1 import experts_pb2, payments_pb2
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.errors import Refused, refusal
from tests.support.flights import effects_of, flights
from tests.support.requests import capture_request, money, refund_request
from tests.support.running import replica
from tests.support.world import CAPTURED, World, until

#: (action, when, more): everything that is neither Stripe's yes nor Stripe's no.
FAULTS: list[tuple[str, str, dict[str, Any]]] = [
    ("status", "after", {"status": 500}),  # Stored: the same key gets the same 500 for a day.
    ("status", "before", {"status": 500}),  # Stored too, and nothing was done.
    ("status", "after", {"status": 503}),
    ("status", "before", {"status": 503}),
    ("status", "before", {"status": 409, "code": "idempotency_key_in_use"}),
    ("reset", "after", {}),
    ("reset", "before", {}),
    ("hang", "after", {"delay_ms": 3_000}),
    ("malformed", "after", {}),
    ("truncated", "after", {}),
]


@pytest.mark.parametrize(
    ("action", "when", "more"),
    FAULTS,
    ids=[f"{more.get('status', '')}{action}-{when}" for action, when, more in FAULTS],
)
async def test_an_unknown_outcome_converges_to_one_effect(
    start_world: StartWorld,
    action: str,
    when: str,
    more: dict[str, Any],
) -> None:
    # Long enough for the ordinary calls of a busy machine, unless the timeout is the matter.
    seconds = 1.0 if action == "hang" else 10.0
    world = await start_world(stripe_timeout=seconds, policy={"claim_wait": 0.2})
    under_way = await flights(world)
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    for flight in under_way:
        await world.stripe.fault(flight.path, action, when, match=flight.match, **more)
    replies = await asyncio.gather(*(world.bytes_of(f.method, f.request) for f in under_way))
    for reply in replies:
        assert isinstance(reply.refused, Refused), reply
        assert (reply.code, reply.refused.reason) == ("UNAVAILABLE", "OUTCOME_UNKNOWN")
    assert await world.stripe.fired() == len(under_way)
    await world.settle_down()
    for flight in under_way:
        answer = await world.bytes_of(flight.method, flight.request)
        assert answer.code == "OK", answer
        message = payments_pb2.GetPaymentResponse.FromString(answer.body)
        payment = message.payment  # The payment is field 1 of every answer.
        assert payment.state == flight.state
        assert await effects_of(world, payment.payment_intent_id) == flight.effects
    await check_books(world)
    await world.stripe.control("POST", "/webhooks", {"paused": False})
    await check_books(world)
    assert not await world.discrepancies()


async def test_stripes_key_is_the_same_for_every_try_and_new_only_after_a_replayed_error(
    world: World,
) -> None:
    first, second = await asyncio.gather(world.escrowed(), world.escrowed())
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    path = f"/payment_intents/{first.payment_intent_id}/capture"
    await world.stripe.fault(f"{path}$", "status", times=3, status=503)
    request = capture_request(first.payment_id)
    assert (await refusal(world.payments.CapturePayment(request))).reason == "OUTCOME_UNKNOWN"
    await world.in_state(first.payment_id, CAPTURED)
    tries = await world.stripe.requests(path)
    assert len(tries) == 4
    assert len({one["idempotency_key"] for one in tries}) == 1
    assert len({str(sorted(one["parameters"].items())) for one in tries}) == 1

    path = f"/payment_intents/{second.payment_intent_id}/capture"
    await world.stripe.fault(f"{path}$", "status", times=1, status=500)
    request = capture_request(second.payment_id)
    assert (await refusal(world.payments.CapturePayment(request))).reason == "OUTCOME_UNKNOWN"
    await world.in_state(second.payment_id, CAPTURED)
    tries = await world.stripe.requests(path)
    assert [one["status"] for one in tries] == [500, 500, 200]
    assert [one["replayed"] for one in tries] == [False, True, False]
    keys = [one["idempotency_key"] for one in tries]
    assert keys[0] == keys[1] != keys[2]
    assert keys[2].removesuffix("-2") == keys[0].removesuffix("-1")
    await check_books(world)


async def test_a_caller_who_asks_again_does_not_cut_the_pause_before_a_new_key(
    start_world: StartWorld,
) -> None:
    """Stripe's list may lag: a read right after a stored 500 could miss a refund that was made."""
    world = await start_world(policy={"arrival_seconds": 4.0})
    payment = await world.captured()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await world.stripe.fault("/refunds$", "status", times=1, status=500)
    request = refund_request(payment.payment_id)

    async def tries() -> list[Any]:
        return await world.stripe.requests("/refunds")

    async def replayed() -> bool:
        return bool((await tries())[-1]["replayed"])

    assert (await refusal(world.payments.RefundPayment(request))).reason == "OUTCOME_UNKNOWN"
    await until(replayed, "the stored error, once more")
    # Called again at once, and after the server's own timeout: only recovery's clock counts.
    reply = await world.until_answered("RefundPayment", request)
    assert reply.code == "OK"
    sent = await tries()
    assert [one["status"] for one in sent] == [500, 500, 200]
    assert sent[2]["time"] - sent[1]["time"] >= 3
    await check_books(world)


@pytest.mark.parametrize(
    ("action", "when", "more"),
    [
        ("status", "after", {"status": 500}),
        ("status", "before", {"status": 500}),
        ("reset", "after", {}),
        ("status", "before", {"status": 503}),
    ],
    ids=["500-after", "500-before", "reset-after", "503-before"],
)
async def test_an_account_of_unknown_outcome_is_made_once(
    world: World, action: str, when: str, more: dict[str, Any]
) -> None:
    await world.stripe.fault("/accounts$", action, when, **more)
    request = experts_pb2.CreateExpertAccountRequest(
        expert_id="ann", name="Ann", email="ann@example.com"
    )
    refused = await refusal(world.experts.CreateExpertAccount(request))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "OUTCOME_UNKNOWN")

    async def created() -> experts_pb2.Expert | None:
        expert = (
            await world.experts.GetExpert(experts_pb2.GetExpertRequest(expert_id="ann"))
        ).expert
        return expert if expert.stripe_account_id else None

    expert = await until(created, "the account")
    answer = await world.experts.CreateExpertAccount(request)
    assert answer.expert.stripe_account_id == expert.stripe_account_id
    assert answer.onboarding_url.startswith("http")
    assert len(await world.stripe.effects("account_created")) == 1


async def test_a_webhook_may_settle_what_the_call_could_not(world: World) -> None:
    """The answer is lost, the event comes: the same key then gets the answer at once."""
    held = await world.escrowed()
    await world.stripe.fault("/capture$", "reset", "after")
    request = capture_request(held.payment_id)
    refused = await refusal(world.payments.CapturePayment(request))
    assert refused.reason == "OUTCOME_UNKNOWN"
    answer = await world.until_answered("CapturePayment", request)
    assert answer.code == "OK"
    assert await world.stripe.requests("/capture") != []
    assert len(await world.stripe.effects("captured")) == 1
    await check_books(world)


async def test_a_read_of_stripe_that_fails_does_not_lose_the_operation(world: World) -> None:
    """The refund is done, and Stripe cannot be read after it."""
    payment = await world.captured()
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await world.stripe.fault(
        "/payment_intents/pi_[^/]*$", "status", times=3, status=503, match={"method": "GET"}
    )
    request = refund_request(payment.payment_id, amount=money(1_000))
    refused = await refusal(world.payments.RefundPayment(request))
    assert refused.code == "UNAVAILABLE"
    assert (await world.until_answered("RefundPayment", request)).code == "OK"
    assert len(await world.stripe.effects("refunded")) == 1
    assert len(await world.stripe.effects("reversed")) == 1
    await check_books(world)


async def test_stripe_unavailable_is_reported_nothing_is_sent_and_the_key_works_later(
    world: World,
) -> None:
    held = await world.escrowed()
    request = capture_request(held.payment_id)
    async with replica(world, stripe_api_base="http://127.0.0.1:9", loops=False) as cut_off:
        refused = await refusal(cut_off.payments.CapturePayment(request))
        assert (refused.code, refused.reason) == ("UNAVAILABLE", "PROCESSOR_UNAVAILABLE")
        assert (await cut_off.get(held.payment_id)).state != CAPTURED  # Reads go on.
    assert (await world.until_answered("CapturePayment", request)).code == "OK"
    assert len(await world.stripe.requests("/capture")) == 1
    await check_books(world)


async def test_payments_that_stripe_cannot_show_stop_no_others(world: World) -> None:
    """Their failures in a row say nothing about Stripe: the platform's balance can be read."""
    expert = await world.expert()
    for _ in range(4):
        broken = await world.escrowed(expert)
        path = f"/payment_intents/{broken.payment_intent_id}"
        for method in ("GET", "POST"):
            match = {"method": method}
            await world.stripe.fault(path, "status", times=None, status=503, match=match)
        refused = await refusal(world.payments.CapturePayment(capture_request(broken.payment_id)))
        assert refused.code == "UNAVAILABLE"
    assert world.service is not None
    stripe = world.service.app.stripe

    async def failed_often() -> bool:
        return await world.stripe.fired() >= 30

    await until(failed_often, "thirty failures")
    for _ in range(3):
        assert not stripe.is_unavailable
        assert (await world.captured(expert)).state == CAPTURED
