"""A transfer that is reversed at Stripe's dashboard, and what its expert owes: it is paid once."""

from __future__ import annotations

import asyncio

import pytest

from marketplace.payments.v1 import payments_pb2
from marketplace.payments.v1.payments_pb2 import Payment
from tests.integration.books import balance, check_books
from tests.integration.test_disputes import contest, decide, dispute_where, keep_at_stripe
from tests.integration.test_gigs import kinds
from tests.integration.test_owed import resume
from tests.integration.test_parked import parked
from tests.integration.world import (
    CAPTURED,
    REFUNDED,
    World,
    capture_request,
    refund_request,
    refusal,
    until,
)

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD


async def paid(world: World) -> Payment:
    """A gig of 100 dollars, of which the expert was sent 90."""
    await keep_at_stripe(world)
    return await world.captured(await world.expert(), 10_000, escrow_mode=PLATFORM)


async def owing(world: World) -> Payment:
    """It was given back while Stripe could take nothing from the expert, which it can now."""
    payment = await paid(world)
    await world.refund(payment.payment_id)
    await days_pass(world)
    assert stands(world, payment) == (9_000, 0)
    return payment


async def days_pass(world: World) -> None:
    """What was pending at Stripe becomes available."""
    await world.stripe.advance(3 * 24 * 3600)


async def reverse(world: World, payment: Payment, amount: int) -> None:
    """As an operator does at the dashboard; until it is on the books."""
    before = (await kinds(world, payment.payment_id)).count("reversed_elsewhere")
    [(transfer,)] = world.sql(
        "SELECT movement_id FROM movements WHERE kind = 'transfer' AND payment_id = %s",
        payment.payment_id,
    )
    made = await world.stripe.api("POST", f"/transfers/{transfer}/reversals", amount=amount)
    assert made.get("id"), made

    async def booked() -> bool:
        return (await kinds(world, payment.payment_id)).count("reversed_elsewhere") > before

    await until(booked, "the reversal by hand on the books")


def stands(world: World, payment: Payment) -> tuple[int, int]:
    """What the expert owes, and what the platform bears."""
    return balance(world, f"expert_debt:{payment.expert_id}"), balance(world, "losses")


async def kept_back(world: World, payment: Payment, amount: int) -> int:
    """Of the expert's part of another gig."""
    other = await world.captured(payment.expert_id, amount, escrow_mode=PLATFORM)
    await check_books(world)
    sent = await world.stripe.effects("transferred", other.payment_intent_id)
    return other.net_expert_amount.minor_units - sum(int(one["amount"]) for one in sent)


# ---- it was owed before ----


async def test_it_pays_what_was_owed_for_the_payment(world: World) -> None:
    payment = await owing(world)
    await reverse(world, payment, 9_000)
    assert stands(world, payment) == (0, 0)
    [told] = await world.discrepancies()
    assert told.kind == "reversal_made_elsewhere"
    assert told.detail.endswith(" of 9000, 9000 of it as owed")
    assert await kept_back(world, payment, 10_000) == 0
    assert balance(world, f"expert_funds:{payment.expert_id}") == -9_000


async def test_a_part_of_it_pays_a_part_and_the_next_capture_keeps_back_the_rest(
    world: World,
) -> None:
    payment = await owing(world)
    await reverse(world, payment, 4_000)
    assert stands(world, payment) == (5_000, 0)
    await reverse(world, payment, 1_000)
    assert stands(world, payment) == (4_000, 0)
    assert await kept_back(world, payment, 10_000) == 4_000
    assert stands(world, payment) == (0, 0)
    assert await kept_back(world, payment, 10_000) == 0


async def test_what_was_kept_back_already_is_the_platforms_until_somebody_decides(
    world: World,
) -> None:
    payment = await owing(world)
    assert await kept_back(world, payment, 4_000) == 3_599
    await reverse(world, payment, 9_000)
    assert stands(world, payment) == (0, -3_599)
    await check_books(world)


async def test_it_pays_nothing_that_is_owed_for_another_payment(world: World) -> None:
    payment = await paid(world)
    other = await world.captured(payment.expert_id, 5_000, escrow_mode=PLATFORM)
    await days_pass(world)
    await world.stripe.fault("/reversals$", "status", status=400, code="balance_insufficient")
    await world.refund(other.payment_id)
    await world.stripe.clear_faults()
    assert stands(world, payment) == (4_500, 0)
    await reverse(world, payment, 2_000)
    assert stands(world, payment) == (4_500, -2_000)
    await check_books(world)


async def test_what_a_capture_is_just_keeping_back_is_not_paid_by_hand_as_well(
    world: World,
) -> None:
    payment = await owing(world)
    other = await world.escrowed(payment.expert_id, 10_000, escrow_mode=PLATFORM)
    await world.stripe.fault("/transfers$", "status", "before", times=None, status=503)
    request = capture_request(other.payment_id)
    assert (await refusal(world.payments.CapturePayment(request))).code == "UNAVAILABLE"
    await reverse(world, payment, 9_000)
    # The capture is about to keep back all of it but the cent that nobody can net.
    assert stands(world, payment) == (8_999, -8_999)
    await world.stripe.clear_faults()
    await world.in_state(other.payment_id, CAPTURED)
    assert stands(world, payment) == (0, -8_999)
    await check_books(world)


async def test_a_capture_and_a_hand_at_once_agree_on_who_was_first(world: World) -> None:
    payment = await owing(world)
    other = await world.escrowed(payment.expert_id, 20_000, escrow_mode=PLATFORM)
    await asyncio.gather(reverse(world, payment, 9_000), world.capture(other.payment_id))
    await check_books(world)
    debt, losses = stands(world, payment)
    [(netted,)] = world.sql(
        "SELECT coalesce(-sum(minor_units), 0)::bigint FROM postings WHERE kind = 'debt_netted'"
    )
    # The capture keeps all of it back, or nothing; the hand then pays nothing of it, or all.
    assert (debt, losses) == (0, -netted)
    assert netted in (0, 9_000)


# ---- it is owed only later ----


@pytest.mark.parametrize("by_hand", [9_000, 4_000])
async def test_it_pays_what_a_lost_dispute_makes_the_expert_owe(world: World, by_hand: int) -> None:
    payment = await paid(world)
    await days_pass(world)
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id)
    await reverse(world, payment, by_hand)
    assert stands(world, payment) == (0, -by_hand)
    await decide(world, dispute_id, "lose")
    await world.in_state(payment.payment_id, REFUNDED)
    await check_books(world)
    assert stands(world, payment) == (0, 0)
    assert await kept_back(world, payment, 10_000) == 0


async def test_a_dispute_of_a_part_takes_nothing_beside_it(world: World) -> None:
    payment = await paid(world)
    await days_pass(world)
    dispute_id = await contest(world, payment, amount=5_000)
    await dispute_where(world, dispute_id)
    await reverse(world, payment, 4_500)
    await decide(world, dispute_id, "lose")
    await until(lambda: lost(world, payment), "the loss")
    await check_books(world)
    assert stands(world, payment) == (0, 0)
    assert balance(world, f"expert_funds:{payment.expert_id}") == -4_500


async def test_it_pays_what_a_refund_makes_the_expert_owe(world: World) -> None:
    payment = await paid(world)
    await days_pass(world)
    await reverse(world, payment, 6_000)
    await world.refund(payment.payment_id, 5_000)
    await check_books(world)
    assert stands(world, payment) == (0, -1_500)
    await world.refund(payment.payment_id, 5_000)
    await check_books(world)
    assert stands(world, payment) == (0, 0)
    assert balance(world, f"expert_funds:{payment.expert_id}") == 0


async def test_our_own_reversal_that_waits_gives_way_to_it(world: World) -> None:
    payment = await paid(world)
    await days_pass(world)
    await world.stripe.fault("/reversals$", "status", status=401)
    request = refund_request(payment.payment_id)
    assert (await refusal(world.payments.RefundPayment(request))).code == "UNAVAILABLE"
    operation_id = await parked(world, payment.payment_id)
    await reverse(world, payment, 4_000)
    await world.in_state(payment.payment_id, REFUNDED)
    assert (await refusal(resume(world, operation_id))).reason == "WRONG_STATE"
    await check_books(world)
    # What hands left of it is owed: it is kept back, or taken by hand too.
    assert stands(world, payment) == (5_000, 0)
    await reverse(world, payment, 5_000)
    await check_books(world)
    assert stands(world, payment) == (0, 0)


async def test_a_refund_by_hand_with_its_reversal_pays_nothing_else(world: World) -> None:
    payment = await paid(world)
    await days_pass(world)
    await world.stripe.api(
        "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=5_000
    )
    await reverse(world, payment, 4_500)
    await check_books(world)
    assert stands(world, payment) == (0, 0)
    await world.refund(payment.payment_id)
    await check_books(world)
    assert stands(world, payment) == (0, 0)
    assert balance(world, f"expert_funds:{payment.expert_id}") == 0


async def lost(world: World, payment: Payment) -> bool:
    return "dispute_lost" in await kinds(world, payment.payment_id)
