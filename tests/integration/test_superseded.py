"""What waits to be sent while something was moved out of band: an operator ends it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from marketplace.payments.v1 import experts_pb2, payments_pb2
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.requests import capture_request, refund_request
from tests.support.steps.dashboard import (
    captured_payment,
    days_pass,
    keep_at_stripe,
    refund_out_of_band,
    reverse,
    transfer_out_of_band,
)
from tests.support.steps.faults import fail_stripe
from tests.support.steps.operators import abandon, discrepancy_kinds, not_sent, parked, resume
from tests.support.steps.payments import amounts_at_stripe, answer, balances_of, waiting_capture
from tests.support.world import CAPTURED, CAPTURING, IN_ESCROW, REFUNDED, Payment, World, until

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD


async def capture_in_vain(
    world: World, payment: Payment, status: int, part: int, **fields: Any
) -> payments_pb2.CapturePaymentRequest:
    """Ask for a capture whose transfer fails so; the request."""
    await fail_stripe(world, "/transfers$", status)
    request = capture_request(payment.payment_id, part, **fields)
    assert (await refusal(world.payments.CapturePayment(request))).code != "OK"
    return request


# 429: Stripe has seen nothing. 503: the outcome is unknown. 401: parked at once.


@pytest.mark.parametrize(
    ("status", "captured"), [(429, False), (429, True), (503, True), (401, False)]
)
async def test_a_refund_is_not_made_beside_one_out_of_band(
    world: World, status: int, captured: bool
) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    if captured:
        await world.capture(payment.payment_id)
    await fail_stripe(world, "/refunds$", status)
    request = refund_request(payment.payment_id, 4_000)
    assert (await refusal(world.payments.RefundPayment(request))).code != "OK"
    await refund_out_of_band(world, payment, 4_000)
    await world.stripe.clear_faults()
    operation_id = await not_sent(world, payment, "refund")
    await world.settle_down()
    assert await amounts_at_stripe(world, "refunded", payment) == [4_000]
    await abandon(world, operation_id)
    assert await answer(world, "RefundPayment", request) == "ABANDONED_BY_OPERATOR"
    after = await world.in_state(payment.payment_id, CAPTURED if captured else IN_ESCROW)
    assert after.held_amount.minor_units + after.net_amount.minor_units == 6_000
    assert await amounts_at_stripe(world, "refunded", payment) == [4_000]
    # A caller that wants another one calls again.
    await world.refund(payment.payment_id, 1_000)
    assert await amounts_at_stripe(world, "refunded", payment) == [4_000, 1_000]
    await check_books(world)


@pytest.mark.parametrize("final_capture", [False, True])
async def test_what_stripe_was_too_busy_for_is_not_sent_after_a_refund_out_of_band(
    start_world: StartWorld, final_capture: bool
) -> None:
    """The pause before it is sent again, without another read, is long enough to book a refund.

    Sent all the same, the remainder of a capture would be taken back from the expert.
    """
    world = await start_world(policy={"unsent_pause_seconds": (10.0,)})
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await fail_stripe(world, "/refunds$", 429)
    if final_capture:
        capture = capture_request(payment.payment_id, 6_000, final=True)
        asked = asyncio.create_task(refusal(world.payments.CapturePayment(capture)))
    else:
        refund = refund_request(payment.payment_id, 4_000)
        asked = asyncio.create_task(refusal(world.payments.RefundPayment(refund)))

    async def sent_once() -> bool:
        return await world.stripe.fired() > 0

    await until(sent_once, "the request for which Stripe is too busy")
    await refund_out_of_band(world, payment, 4_000)
    await world.stripe.clear_faults()
    assert (await asked).code != "OK"
    operation_id = await not_sent(world, payment, "refund")
    assert await amounts_at_stripe(world, "refunded", payment) == [4_000]
    await abandon(world, operation_id)
    after = await world.get(payment.payment_id)
    assert (after.held_amount.minor_units, after.net_expert_amount.minor_units) == (
        (0, 5_400) if final_capture else (6_000, 0)
    )
    await check_books(world)


async def test_a_refund_that_an_operator_resumes_comes_on_top(world: World) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await fail_stripe(world, "/refunds$", 401)
    request = refund_request(payment.payment_id, 4_000)
    assert (await refusal(world.payments.RefundPayment(request))).code == "UNAVAILABLE"
    await refund_out_of_band(world, payment, 1_000)
    await resume(world, await not_sent(world, payment, "refund"))
    assert await answer(world, "RefundPayment", request) == "OK"
    assert await amounts_at_stripe(world, "refunded", payment) == [1_000, 4_000]
    assert (await world.get(payment.payment_id)).held_amount.minor_units == 5_000
    await check_books(world)


@pytest.mark.parametrize(
    ("status", "part", "left"), [(429, 4_000, 0), (503, 4_000, 0), (401, 1_000, 3_000)]
)
async def test_the_remainder_of_a_capture_is_refunded_once(
    world: World, status: int, part: int, left: int
) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await fail_stripe(world, "/refunds$", status)
    request = capture_request(payment.payment_id, 6_000, final=True)
    assert (await refusal(world.payments.CapturePayment(request))).code != "OK"
    await refund_out_of_band(world, payment, part)
    await world.stripe.clear_faults()
    operation_id = await not_sent(world, payment, "refund")
    # More than what is held would be taken from the expert.
    refused = await refusal(resume(world, operation_id))
    assert (refused.reason, refused.facts["available"]) == ("AMOUNT_TOO_LARGE", str(left))
    await abandon(world, operation_id)
    # The expert is paid, and its caller's answer says so.
    assert await answer(world, "CapturePayment", request) == "OK"
    after = await world.get(payment.payment_id)
    assert (after.held_amount.minor_units, after.captured_amount.minor_units) == (left, 6_000)
    assert after.net_expert_amount.minor_units == 5_400
    assert await amounts_at_stripe(world, "refunded", payment) == [part]
    assert ("remainder_not_returned" in await discrepancy_kinds(world, payment)) is bool(left)
    await check_books(world)


@pytest.mark.parametrize("status", [429, 503, 401])
async def test_no_expert_is_paid_what_was_refunded_out_of_band(world: World, status: int) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    request = await capture_in_vain(world, payment, status, 8_000)
    made = await world.stripe.api(
        "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=10_000
    )
    assert made.get("id"), made
    await world.stripe.clear_faults()
    operation_id = await not_sent(world, payment, "refund")

    async def booked() -> bool:
        return (await world.get(payment.payment_id)).held_amount.minor_units == 0

    await until(booked, "the refund out of band on the books")
    refused = await refusal(resume(world, operation_id))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "AMOUNT_TOO_LARGE")
    await abandon(world, operation_id)
    assert await answer(world, "CapturePayment", request) == "ABANDONED_BY_OPERATOR"
    assert (await world.in_state(payment.payment_id, REFUNDED)).captured_amount.minor_units == 0
    assert await amounts_at_stripe(world, "transferred", payment) == []
    await check_books(world)


@pytest.mark.parametrize("status", [503, 401])
async def test_a_capture_is_resumed_beside_an_out_of_band_refund_that_leaves_enough(
    world: World, status: int
) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    request = await capture_in_vain(world, payment, status, 8_000)
    await refund_out_of_band(world, payment, 2_000)
    await world.stripe.clear_faults()
    await resume(world, await not_sent(world, payment, "refund"))
    assert await answer(world, "CapturePayment", request) == "OK"
    assert await amounts_at_stripe(world, "transferred", payment) == [7_200]
    await check_books(world)


@pytest.mark.parametrize(("status", "resumed"), [(429, False), (401, False), (401, True)])
async def test_a_reversal_is_not_made_beside_one_out_of_band(
    world: World, status: int, resumed: bool
) -> None:
    payment = await captured_payment(world)
    await days_pass(world)
    await fail_stripe(world, "/reversals$", status)
    request = refund_request(payment.payment_id)
    assert (await refusal(world.payments.RefundPayment(request))).code != "OK"
    await reverse(world, payment, 4_000)
    await world.stripe.clear_faults()
    operation_id = await not_sent(world, payment, "reversal")
    # Resumed, it asks for more than there is left of the transfer, and Stripe refuses that.
    await (resume(world, operation_id) if resumed else abandon(world, operation_id))
    assert await answer(world, "RefundPayment", request) == "OK"
    assert (await world.get(payment.payment_id)).state == REFUNDED
    # The debt stands until the operator writes off what was taken out of band.
    assert balances_of(world, payment) == (9_000, -4_000)
    assert balance(world, f"expert_funds:{payment.expert_id}") == -5_000
    await check_books(world)


@pytest.mark.parametrize("status", [401, 503])
@pytest.mark.parametrize("amount", [1_000, 3_600])
async def test_an_out_of_band_transfer_parks_ours_for_an_operator(
    world: World, status: int, amount: int
) -> None:
    """Also one of exactly its amount: only a person knows what was meant."""
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    request = await capture_in_vain(world, payment, status, 4_000)
    await transfer_out_of_band(world, payment, amount)
    operation_id = await not_sent(world, payment, "transfer")
    await world.stripe.clear_faults()
    await world.settle_down()
    assert (await world.get(payment.payment_id)).state == CAPTURING
    assert await amounts_at_stripe(world, "transferred", payment) == [amount]
    assert balance(world, "losses") == amount
    await resume(world, operation_id)
    assert await answer(world, "CapturePayment", request) == "OK"
    assert await amounts_at_stripe(world, "transferred", payment) == [amount, 3_600]
    await check_books(world)


async def test_an_out_of_band_change_after_the_resume_parks_it_again(world: World) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    request = await capture_in_vain(world, payment, 401, 4_000)
    operation_id = await parked(world, payment.payment_id)
    await fail_stripe(world, "/transfers$", 429)
    await resume(world, operation_id)
    # Stripe is busy, and somebody who does not know that it was resumed does it at the dashboard.
    await transfer_out_of_band(world, payment, 1_000)
    assert await not_sent(world, payment, "transfer") == operation_id
    await world.stripe.clear_faults()
    await world.settle_down()
    assert await amounts_at_stripe(world, "transferred", payment) == [1_000]
    await resume(world, operation_id)
    assert await answer(world, "CapturePayment", request) == "OK"
    assert await amounts_at_stripe(world, "transferred", payment) == [1_000, 3_600]
    await check_books(world)


async def test_nothing_is_resumed_if_its_sync_shows_an_out_of_band_change(world: World) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    request = await capture_in_vain(world, payment, 401, 8_000)
    operation_id = await parked(world, payment.payment_id)
    await world.settle_down()
    await world.pause_webhooks()
    await transfer_out_of_band(world, payment, 1_000)
    assert await discrepancy_kinds(world, payment) == []
    refused = await refusal(resume(world, operation_id))
    assert (refused.code, refused.reason) == ("ABORTED", "CONCURRENT_CHANGE")
    assert await not_sent(world, payment, "transfer") == operation_id
    assert await amounts_at_stripe(world, "transferred", payment) == [1_000]
    await resume(world, operation_id)
    assert await answer(world, "CapturePayment", request) == "OK"
    assert await amounts_at_stripe(world, "transferred", payment) == [1_000, 7_200]
    await check_books(world)


async def test_the_later_legs_wait_for_an_operator_after_an_out_of_band_reversal(
    world: World,
) -> None:
    await keep_at_stripe(world)
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    for part in (5_000, 5_000):
        await world.capture(payment.payment_id, part)
    await days_pass(world)
    first, _second = (
        row[0]
        for row in world.sql(
            "SELECT movement_id FROM movements WHERE kind = 'transfer' AND payment_id = %s "
            "ORDER BY time",
            payment.payment_id,
        )
    )
    # The newest transfer is reversed whole; the other 900 are taken while that is on its way.
    await world.settle_down()
    await world.pause_webhooks()
    ours = {"idempotency_key": "^op_"}
    await world.stripe.fault("/reversals$", "delay", "after", match=ours, delay_ms=3_000)
    request = refund_request(payment.payment_id, 6_000)
    refunded = asyncio.create_task(refusal(world.payments.RefundPayment(request)))

    async def reversed_once() -> bool:
        return len(await world.stripe.effects("reversed")) == 1

    await until(reversed_once, "the first leg at Stripe")
    made = await world.stripe.api("POST", f"/transfers/{first}/reversals", amount=900)
    assert made.get("id"), made
    assert (await refunded).code == "UNAVAILABLE"
    operation_id = await not_sent(world, payment, "reversal")
    effects = await world.stripe.effects("reversed")
    assert [int(one["amount"]) for one in effects] == [4_500, 900]
    await abandon(world, operation_id)
    assert await answer(world, "RefundPayment", request) == "OK"
    assert balances_of(world, payment) == (900, -900)
    await check_books(world)


async def test_a_superseded_waiting_capture_is_not_retried_automatically(
    world: World,
) -> None:
    payment, account = await waiting_capture(world, 2_000, 3_000)
    await refund_out_of_band(world, payment, 1_000)
    operation_id = await not_sent(world, payment, "refund")
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    await world.expert_status(payment.expert_id, experts_pb2.EXPERT_STATUS_READY)
    await asyncio.sleep(2.5)  # Two rounds of the loop that resumes waiting captures.
    assert await amounts_at_stripe(world, "transferred", payment) == []
    await resume(world, operation_id)
    after = await world.in_state(payment.payment_id, IN_ESCROW)
    assert after.captured_amount.minor_units == 3_000
    await check_books(world)


@pytest.mark.parametrize(("amount", "held", "net"), [(1_000, 5_000, 4_000), (8_000, 0, 2_000)])
async def test_a_request_already_sent_ends_as_done(
    world: World, amount: int, held: int, net: int
) -> None:
    """Also where the refund would take what the transfer is sending: it is booked afterwards."""
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    ours = {"idempotency_key": "^op_"}
    await world.stripe.fault("/transfers$", "delay", "after", match=ours, delay_ms=3_000)
    captured = asyncio.create_task(world.capture(payment.payment_id, 4_000))

    async def transferred() -> bool:
        return bool(await world.stripe.effects("transferred", payment.payment_intent_id))

    await until(transferred, "the transfer at Stripe")
    made = await world.stripe.api(
        "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=amount
    )
    assert made.get("id"), made
    assert (await captured).captured_amount.minor_units == 4_000

    async def booked() -> bool:
        return "out_of_band_refund" in await discrepancy_kinds(world, payment)

    await until(booked, "the refund out of band on the books")
    after = await world.in_state(payment.payment_id, IN_ESCROW if held else CAPTURED)
    assert (after.held_amount.minor_units, after.net_amount.minor_units) == (held, net)
    assert await amounts_at_stripe(world, "transferred", payment) == [3_600]
    assert not world.sql("SELECT 1 FROM operations WHERE state = 'PARKED'")
    await check_books(world)
