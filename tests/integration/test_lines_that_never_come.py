"""Stripe is done and shows no balance transaction: the wait ends, and what is known is booked."""

from __future__ import annotations

from typing import Any

from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.requests import capture_request, refund_request
from tests.support.steps.operators import abandon, discrepancy_kinds, open_kinds, parked, run
from tests.support.steps.payments import PLATFORM
from tests.support.world import CAPTURED, World, until

IMPATIENT: dict[str, Any] = {"line_patience": 2.0, "balance_transaction_pause_seconds": ()}


async def never_arrive(world: World) -> None:
    await world.stripe.control("POST", "/settings", {"transfers_arrive": False})


async def test_a_transfer_that_is_never_credited_ends_the_capture(start_world: StartWorld) -> None:
    world = await start_world(policy=IMPATIENT)
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await never_arrive(world)
    request = capture_request(payment.payment_id)
    refused = await refusal(world.payments.CapturePayment(request))
    assert refused.reason == "OUTCOME_UNKNOWN"
    reply = await world.until_answered("CapturePayment", request)
    assert reply.code == "OK"
    assert (await world.get(payment.payment_id)).state == CAPTURED
    assert await discrepancy_kinds(world, payment) == ["line_never_came"]
    # 9,000 have left the platform and never arrived: they stand in `fx`.
    assert balance(world, f"stripe:connected:{payment.expert_id}") == 0
    assert balance(world, f"expert_funds:{payment.expert_id}") == -9_000
    assert balance(world, "fx") == 9_000
    await check_books(world)
    assert await open_kinds(world) == ["line_never_came"]
    await run(world)
    assert await open_kinds(world) == ["line_never_came"]


async def test_a_capture_that_stripe_splits_ends_without_its_lines(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy=IMPATIENT)
    payment = await world.escrowed(amount=10_000)
    await never_arrive(world)
    request = capture_request(payment.payment_id)
    await refusal(world.payments.CapturePayment(request))
    assert (await world.until_answered("CapturePayment", request)).code == "OK"
    assert (await world.get(payment.payment_id)).state == CAPTURED
    assert await discrepancy_kinds(world, payment) == ["line_never_came"]
    await check_books(world)


async def test_an_operator_need_not_wait_for_a_line(start_world: StartWorld) -> None:
    world = await start_world(policy={"tries_before_parking": 1, "patience": 1})
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await never_arrive(world)
    request = capture_request(payment.payment_id)
    await refusal(world.payments.CapturePayment(request))
    operation_id = await parked(world, payment.payment_id)
    # A request of it may be on its way for a minute after the last try.
    world.sql("UPDATE operations SET unsure_until = now() WHERE unsure_until IS NOT NULL")
    await abandon(world, operation_id)
    assert world.sql("SELECT state FROM operations WHERE kind = 'transfer'") == [("SUCCEEDED",)]
    assert (await world.get(payment.payment_id)).state == CAPTURED
    assert (await world.until_answered("CapturePayment", request)).code == "OK"
    assert await discrepancy_kinds(world, payment) == ["line_never_came"]
    await check_books(world)


async def test_refunds_that_convert_to_nothing_end(start_world: StartWorld) -> None:
    """37 paise are 0 cents: Stripe has no balance transaction of it."""
    world = await start_world(policy=IMPATIENT)
    payment = await world.captured(amount=1_000_000, currency="INR")
    made = await world.stripe.api(
        "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=37
    )
    assert (made["status"], made["balance_transaction"]) == ("succeeded", None)

    async def booked() -> bool:
        shown = await world.get(payment.payment_id)
        return bool(shown.refunded_amount.minor_units == 37)

    await until(booked, "the refund by hand on the books")
    request = refund_request(payment.payment_id, 37)
    assert (await refusal(world.payments.RefundPayment(request))).reason == "OUTCOME_UNKNOWN"
    assert (await world.until_answered("RefundPayment", request)).code == "OK"
    assert (await world.get(payment.payment_id)).refunded_amount.minor_units == 74
    await check_books(world)
    kinds = await discrepancy_kinds(world, payment)
    assert kinds == ["line_never_came", "line_never_came", "out_of_band_refund"]
    before = await open_kinds(world)
    await run(world)
    assert await open_kinds(world) == before
