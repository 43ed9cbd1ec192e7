"""What Stripe refuses because of a change out of band is answered by the payment as it is now."""

from __future__ import annotations

import pytest

from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.requests import capture_request, refund_request
from tests.support.steps.disputes import contest, decide, disputed, evidence_request
from tests.support.steps.payments import PLATFORM
from tests.support.world import CAPTURED, IN_ESCROW, REFUNDED, Payment, World

#: No poll and no webhook tells of what happens at the dashboard.
UNTOLD = {"poll_seconds": 600.0, "account_poll_seconds": 600.0}


async def _refund_by_hand(world: World, payment: Payment, amount: int) -> None:
    """Refunds at the dashboard, and no event comes yet."""
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    made = await world.stripe.api(
        "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=amount
    )
    assert made.get("id"), made


@pytest.mark.parametrize(
    ("by_hand", "reason", "state"),
    [(10_000, "WRONG_STATE", REFUNDED), (4_000, "AMOUNT_TOO_LARGE", CAPTURED)],
)
async def test_a_refund_that_hands_have_overtaken(
    start_world: StartWorld, by_hand: int, reason: str, state: int
) -> None:
    world = await start_world(policy=UNTOLD)
    payment = await world.captured(amount=10_000)
    await _refund_by_hand(world, payment, by_hand)
    request = refund_request(payment.payment_id, 10_000)
    refused = await refusal(world.payments.RefundPayment(request))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", reason)
    if reason == "AMOUNT_TOO_LARGE":
        assert refused.facts["available"] == "6000"
    else:
        assert refused.facts["state"] == "REFUNDED"
    after = await world.get(payment.payment_id)
    assert (after.state, after.HasField("last_failure")) == (state, False)
    # It was sent to Stripe, so the answer is kept.
    assert (await refusal(world.payments.RefundPayment(request))).reason == reason
    await check_books(world)


async def test_a_capture_that_a_dispute_has_overtaken(start_world: StartWorld) -> None:
    world = await start_world(policy=UNTOLD)
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    dispute_id = await contest(world, held)
    await world.stripe.fault("/transfers$", "status", status=400)
    refused = await refusal(world.payments.CapturePayment(capture_request(held.payment_id)))
    assert (refused.reason, refused.facts["dispute_id"]) == ("PAYMENT_DISPUTED", dispute_id)
    after = await world.get(held.payment_id)
    assert (after.state, after.HasField("last_failure")) == (IN_ESCROW, False)


async def test_a_capture_that_hands_have_overtaken(start_world: StartWorld) -> None:
    """The dashboard refunds a part out of escrow, and Stripe has not enough left to transfer."""
    world = await start_world(policy=UNTOLD)
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await _refund_by_hand(world, held, 4_000)
    await world.stripe.fault("/transfers$", "status", status=400, code="balance_insufficient")
    refused = await refusal(world.payments.CapturePayment(capture_request(held.payment_id)))
    assert (refused.reason, refused.facts["available"]) == ("AMOUNT_TOO_LARGE", "6000")
    after = await world.get(held.payment_id)
    assert (after.state, after.HasField("last_failure")) == (IN_ESCROW, False)
    assert after.held_amount.minor_units == 6_000
    await check_books(world)


async def test_an_answer_to_a_dispute_that_the_bank_has_overtaken(start_world: StartWorld) -> None:
    world = await start_world(policy=UNTOLD)
    _, dispute_id = await disputed(world)
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await decide(world, dispute_id, "win")
    refused = await refusal(world.disputes.SubmitEvidence(evidence_request(dispute_id)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "DISPUTE_CLOSED")


async def test_a_refund_that_a_dispute_has_overtaken(start_world: StartWorld) -> None:
    world = await start_world(policy=UNTOLD)
    payment = await world.captured(amount=10_000)
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    dispute_id = await contest(world, payment)
    refused = await refusal(world.payments.RefundPayment(refund_request(payment.payment_id)))
    assert (refused.reason, refused.facts["dispute_id"]) == ("PAYMENT_DISPUTED", dispute_id)
    assert not (await world.get(payment.payment_id)).HasField("last_failure")
