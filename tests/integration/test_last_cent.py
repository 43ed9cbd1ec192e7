"""The last cent of a payment that is paid by milestones: all of it may be commission."""

from __future__ import annotations

from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.requests import capture_request
from tests.support.steps.payments import PLATFORM
from tests.support.world import CAPTURED, World


async def test_the_last_cent_ends_the_escrow(world: World) -> None:
    held = await world.escrowed(amount=10_015, escrow_mode=PLATFORM)
    for _ in range(3):
        await world.capture(held.payment_id, 3_338)
    last = capture_request(held.payment_id, 1, validate_only=True)
    preview = (await world.payments.CapturePayment(last)).preview
    assert [leg.amount.minor_units for leg in preview.legs] == [1]
    last.validate_only = False
    captured = (await world.payments.CapturePayment(last)).payment
    assert (captured.state, captured.held_amount.minor_units) == (CAPTURED, 0)
    assert captured.net_expert_amount.minor_units == 10_015 - 1_002
    assert len(await world.stripe.effects("transferred")) == 3
    # The same key gives the same answer, and nothing happens twice.
    assert (await world.payments.CapturePayment(last)).payment == captured
    await check_books(world)


async def test_a_final_cent_returns_the_remainder(world: World) -> None:
    held = await world.escrowed(amount=10_015, escrow_mode=PLATFORM)
    for part in (3_338, 3_338, 1_338, 2_000):
        await world.capture(held.payment_id, part)
    ended = await world.capture(held.payment_id, 1, final=True)
    assert (ended.state, ended.held_amount.minor_units) == (CAPTURED, 0)
    await check_books(world)


async def test_a_preview_refuses_what_stripe_will_not_charge(world: World) -> None:
    held = await world.escrowed(amount=10_000)
    for validate_only in (True, False):
        request = capture_request(held.payment_id, 10, final=True, validate_only=validate_only)
        refused = await refusal(world.payments.CapturePayment(request))
        assert (refused.code, list(refused.fields)) == ("INVALID_ARGUMENT", ["amount.minor_units"])
    by_hand = await world.stripe.api(
        "POST", f"/payment_intents/{held.payment_intent_id}/capture", amount_to_capture=10
    )
    assert by_hand["error"]["code"] == "amount_too_small"
