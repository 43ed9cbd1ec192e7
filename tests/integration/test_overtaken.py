"""What waits to be sent, and hands at Stripe's dashboard did meanwhile: it is done once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from marketplace.payments.v1 import payments_pb2
from tests.integration.books import balance, check_books
from tests.integration.test_disputes import keep_at_stripe
from tests.integration.test_gigs import kinds
from tests.integration.test_owed import resume
from tests.integration.test_parked import parked
from tests.integration.test_taken_by_hand import days_pass, paid, reverse, stands
from tests.integration.world import (
    CAPTURED,
    CAPTURING,
    IN_ESCROW,
    REFUNDED,
    Payment,
    World,
    capture_request,
    refund_request,
    refusal,
    until,
)

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD


async def strike(world: World, path: str, status: int) -> None:
    """What the service sends fails so; what hands send does not. Of 401, once."""
    await world.stripe.fault(
        path,
        "status",
        times=1 if status == 401 else None,
        status=status,
        match={"idempotency_key": "^op_"},
    )


async def capture_in_vain(
    world: World, payment: Payment, status: int, part: int, **fields: Any
) -> payments_pb2.CapturePaymentRequest:
    """Ask for a capture whose transfer fails so; the request."""
    await strike(world, "/transfers$", status)
    request = capture_request(payment.payment_id, part, **fields)
    assert (await refusal(world.payments.CapturePayment(request))).code != "OK"
    return request


async def refund_by_hand(world: World, payment: Payment, amount: int) -> None:
    made = await world.stripe.api(
        "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=amount
    )
    assert made.get("id"), made

    async def booked() -> bool:
        return "refunded_elsewhere" in await kinds(world, payment.payment_id)

    await until(booked, "the refund by hand on the books")


async def transfer_by_hand(world: World, payment: Payment, amount: int, *, to: str = "") -> None:
    made = await world.stripe.api(
        "POST",
        "/transfers",
        amount=amount,
        currency="usd",
        destination=world.account_of(to or payment.expert_id),
        source_transaction=payment.charge_id,
        transfer_group=payment.payment_id,
    )
    assert made.get("id"), made


async def told(world: World, payment: Payment) -> list[str]:
    return sorted(one.kind for one in await world.discrepancies(payment.payment_id))


async def sent(world: World, kind: str, payment: Payment) -> list[int]:
    """The amounts of what really happened at Stripe."""
    return [
        int(one["amount"]) for one in await world.stripe.effects(kind, payment.payment_intent_id)
    ]


async def answer(world: World, method: str, request: Any) -> str:
    """What the caller is told in the end, and whoever asks with the same key again."""
    first = await world.patiently(method, request)
    assert await world.bytes_of(method, request) == first
    if first.code == "OK":
        return "OK"
    return (await refusal(getattr(world.payments, method)(request))).reason


# 429: Stripe has seen nothing. 503: nobody knows. 401: parked at once.


@pytest.mark.parametrize(
    ("status", "captured"), [(429, False), (429, True), (503, True), (401, False)]
)
async def test_a_refund_is_not_made_beside_the_one_by_hand(
    world: World, status: int, captured: bool
) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    if captured:
        await world.capture(payment.payment_id)
    await strike(world, "/refunds$", status)
    request = refund_request(payment.payment_id, 4_000)
    assert (await refusal(world.payments.RefundPayment(request))).code != "OK"
    await refund_by_hand(world, payment, 4_000)
    await world.stripe.clear_faults()
    assert await answer(world, "RefundPayment", request) == "WRONG_STATE"
    after = await world.in_state(payment.payment_id, CAPTURED if captured else IN_ESCROW)
    assert after.held_amount.minor_units + after.net_amount.minor_units == 6_000
    assert await sent(world, "refunded", payment) == [4_000]
    # Whoever wants another one asks anew.
    await world.refund(payment.payment_id, 1_000)
    assert await sent(world, "refunded", payment) == [4_000, 1_000]
    await check_books(world)


@pytest.mark.parametrize(
    ("status", "part", "left"),
    [(429, 4_000, 0), (503, 4_000, 0), (401, 4_000, 0), (401, 1_000, 3_000)],
)
async def test_the_rest_of_a_capture_is_given_back_once(
    world: World, status: int, part: int, left: int
) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await strike(world, "/refunds$", status)
    request = capture_request(payment.payment_id, 6_000, final=True)
    assert (await refusal(world.payments.CapturePayment(request))).code != "OK"
    await refund_by_hand(world, payment, part)
    await world.stripe.clear_faults()
    # The expert is paid, and its caller is told so.
    assert await answer(world, "CapturePayment", request) == "OK"
    after = await world.get(payment.payment_id)
    assert (after.held_amount.minor_units, after.captured_amount.minor_units) == (left, 6_000)
    assert after.net_expert_amount.minor_units == 5_400
    assert await sent(world, "refunded", payment) == [part]
    assert ("rest_not_returned" in await told(world, payment)) is bool(left)
    await check_books(world)


@pytest.mark.parametrize("status", [429, 503, 401])
async def test_no_expert_is_paid_what_the_client_was_given_by_hand(
    world: World, status: int
) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    request = await capture_in_vain(world, payment, status, 8_000)
    await refund_by_hand(world, payment, 10_000)
    await world.stripe.clear_faults()
    assert await answer(world, "CapturePayment", request) == "WRONG_STATE"
    assert (await world.in_state(payment.payment_id, REFUNDED)).captured_amount.minor_units == 0
    assert await sent(world, "transferred", payment) == []
    await check_books(world)


@pytest.mark.parametrize("status", [503, 401])
async def test_a_refund_by_hand_that_fits_beside_a_capture_does_not_concern_it(
    world: World, status: int
) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    request = await capture_in_vain(world, payment, status, 8_000)
    await refund_by_hand(world, payment, 2_000)
    await world.stripe.clear_faults()
    if status == 401:
        await resume(world, await parked(world, payment.payment_id))
    assert await answer(world, "CapturePayment", request) == "OK"
    assert await sent(world, "transferred", payment) == [7_200]
    await check_books(world)


@pytest.mark.parametrize("status", [429, 401])
async def test_a_reversal_by_hand_takes_the_place_of_ours(world: World, status: int) -> None:
    payment = await paid(world)
    await days_pass(world)
    await strike(world, "/reversals$", status)
    request = refund_request(payment.payment_id)
    assert (await refusal(world.payments.RefundPayment(request))).code != "OK"
    await reverse(world, payment, 4_000)
    await world.stripe.clear_faults()
    assert await answer(world, "RefundPayment", request) == "OK"
    assert (await world.get(payment.payment_id)).state == REFUNDED
    # What hands left of it is owed, and kept back of what the expert earns next.
    assert stands(world, payment) == (5_000, 0)
    assert balance(world, f"expert_funds:{payment.expert_id}") == -5_000
    await check_books(world)


async def test_the_very_transfer_that_is_parked_made_by_hand_is_taken_for_it(world: World) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    request = await capture_in_vain(world, payment, 401, 8_000, final=True)
    await parked(world, payment.payment_id)
    await transfer_by_hand(world, payment, 7_200)
    assert await answer(world, "CapturePayment", request) == "OK"
    after = await world.in_state(payment.payment_id, CAPTURED)
    assert after.captured_amount.minor_units == 8_000
    assert after.net_commission.minor_units == 800
    assert await sent(world, "transferred", payment) == [7_200]
    assert await sent(world, "refunded", payment) == [2_000]
    assert await told(world, payment) == ["transfer_made_elsewhere"]
    assert balance(world, "losses") == 0
    await check_books(world)


async def test_another_transfer_by_hand_leaves_it_to_an_operator(world: World) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    request = await capture_in_vain(world, payment, 503, 8_000)
    await transfer_by_hand(world, payment, 1_000)
    operation_id = await parked(world, payment.payment_id)
    await world.stripe.clear_faults()
    await world.quiet()
    waiting = await world.get(payment.payment_id)
    assert (waiting.state, waiting.waiting_for) == (CAPTURING, "operator")
    assert await sent(world, "transferred", payment) == [1_000]
    # Told of it, the operator says that this was something else.
    await resume(world, operation_id)
    assert await answer(world, "CapturePayment", request) == "OK"
    assert await sent(world, "transferred", payment) == [1_000, 7_200]
    await check_books(world)


@pytest.mark.parametrize("status", [429, 503])
async def test_no_capture_takes_what_was_given_back_because_more_was_paid_out_before(
    world: World, status: int
) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.capture(payment.payment_id, 5_000)
    request = await capture_in_vain(world, payment, status, 4_000)
    # Of the 5,000 that are held it takes 2,000 that the capture would take.
    await refund_by_hand(world, payment, 3_000)
    await world.stripe.clear_faults()
    assert await answer(world, "CapturePayment", request) == "WRONG_STATE"
    after = await world.in_state(payment.payment_id, IN_ESCROW)
    assert (after.held_amount.minor_units, after.captured_amount.minor_units) == (2_000, 5_000)
    assert await sent(world, "transferred", payment) == [4_500]
    assert balance(world, "losses") == 0
    await check_books(world)


@pytest.mark.parametrize("amount", [1_000, 3_600])
async def test_who_resumes_a_transfer_insists_only_on_what_was_known_then(
    world: World, amount: int
) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    request = await capture_in_vain(world, payment, 401, 4_000)
    operation_id = await parked(world, payment.payment_id)
    await strike(world, "/transfers$", 429)
    await resume(world, operation_id)
    # Stripe is busy, and somebody who does not know that it was resumed does it by hand.
    await transfer_by_hand(world, payment, amount)
    assert await parked(world, payment.payment_id) == operation_id
    await world.stripe.clear_faults()
    await world.quiet()
    assert await sent(world, "transferred", payment) == [amount]
    await resume(world, operation_id)
    assert await answer(world, "CapturePayment", request) == "OK"
    assert await sent(world, "transferred", payment) == [amount, 3_600]
    await check_books(world)


async def test_nobody_insists_on_what_only_the_look_of_the_resuming_showed(world: World) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    request = await capture_in_vain(world, payment, 401, 8_000)
    operation_id = await parked(world, payment.payment_id)
    await world.quiet()
    await world.deafen()
    await transfer_by_hand(world, payment, 1_000)
    assert await told(world, payment) == []
    await resume(world, operation_id)
    assert await parked(world, payment.payment_id) == operation_id
    assert await sent(world, "transferred", payment) == [1_000]
    await resume(world, operation_id)
    assert await answer(world, "CapturePayment", request) == "OK"
    assert await sent(world, "transferred", payment) == [1_000, 7_200]
    await check_books(world)


async def test_a_transfer_to_another_account_is_not_taken_for_the_parked_one(world: World) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    other = await world.expert()
    await capture_in_vain(world, payment, 401, 8_000)
    operation_id = await parked(world, payment.payment_id)
    await transfer_by_hand(world, payment, 7_200, to=other)

    async def booked() -> bool:
        return "transfer_made_elsewhere" in await told(world, payment)

    await until(booked, "the transfer by hand on the books")
    assert await parked(world, payment.payment_id) == operation_id
    assert (await world.get(payment.payment_id)).captured_amount.minor_units == 0


async def test_the_later_legs_do_not_take_what_hands_took_during_the_first(world: World) -> None:
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
    await world.quiet()
    await world.deafen()
    ours = {"idempotency_key": "^op_"}
    await world.stripe.fault("/reversals$", "delay", "after", match=ours, delay_ms=3_000)
    refunded = asyncio.create_task(world.refund(payment.payment_id, 6_000))

    async def reversed_once() -> bool:
        return len(await world.stripe.effects("reversed")) == 1

    await until(reversed_once, "the first leg at Stripe")
    made = await world.stripe.api("POST", f"/transfers/{first}/reversals", amount=900)
    assert made.get("id"), made
    await refunded
    effects = await world.stripe.effects("reversed")
    assert [int(one["amount"]) for one in effects] == [4_500, 900]
    assert stands(world, payment) == (0, 0)
    await check_books(world)
