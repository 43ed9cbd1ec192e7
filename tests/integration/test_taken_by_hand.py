"""A transfer that is reversed at Stripe's dashboard: in `losses`, until an operator settles it."""

from __future__ import annotations

import asyncio

import pytest

from marketplace.payments.v1 import money_pb2, operations_pb2, payments_pb2
from marketplace.payments.v1.payments_pb2 import Payment
from tests.integration.books import balance, check_books
from tests.integration.kinds import kind_of
from tests.integration.test_disputes import contest, decide, dispute_where, keep_at_stripe
from tests.integration.test_gigs import kinds
from tests.integration.world import REFUNDED, World, new_key, until

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
    before = (await kinds(world, payment.payment_id)).count("reversed_out_of_band")
    [(transfer,)] = world.sql(
        "SELECT movement_id FROM movements WHERE kind = 'transfer' AND payment_id = %s",
        payment.payment_id,
    )
    made = await world.stripe.api("POST", f"/transfers/{transfer}/reversals", amount=amount)
    assert made.get("id"), made

    async def booked() -> bool:
        return (await kinds(world, payment.payment_id)).count("reversed_out_of_band") > before

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


async def write_off(world: World, payment: Payment, amount: int) -> None:
    """The operator settles with the expert what was taken out of band."""
    await world.operations.WriteOffExpertDebt(
        operations_pb2.WriteOffExpertDebtRequest(
            expert_id=payment.expert_id,
            currency_code="USD",
            amount=money_pb2.Money(minor_units=amount),
            reason="reversed at the dashboard",
            idempotency_key=new_key(),
        )
    )


async def test_it_is_the_platforms_until_the_debt_that_it_paid_is_written_off(
    world: World,
) -> None:
    payment = await owing(world)
    await reverse(world, payment, 4_000)
    assert stands(world, payment) == (9_000, -4_000)
    [told] = await world.discrepancies()
    assert kind_of(told) == "out_of_band_reversal"
    assert told.detail.endswith(" of 4000")
    await write_off(world, payment, 4_000)
    assert stands(world, payment) == (5_000, 0)
    assert await kept_back(world, payment, 10_000) == 5_000
    assert await kept_back(world, payment, 10_000) == 0
    assert stands(world, payment) == (0, 0)


async def test_what_was_kept_back_already_is_the_platforms_until_somebody_decides(
    world: World,
) -> None:
    payment = await owing(world)
    assert await kept_back(world, payment, 4_000) == 3_599
    await reverse(world, payment, 9_000)
    assert stands(world, payment) == (9_000 - 3_599, -9_000)
    await check_books(world)


async def test_a_capture_and_a_reversal_out_of_band_at_once_leave_the_books_right(
    world: World,
) -> None:
    payment = await owing(world)
    other = await world.escrowed(payment.expert_id, 20_000, escrow_mode=PLATFORM)
    await asyncio.gather(reverse(world, payment, 9_000), world.capture(other.payment_id))
    await check_books(world)
    assert stands(world, payment) == (0, -9_000)


@pytest.mark.parametrize("by_hand", [9_000, 4_000])
async def test_a_lost_dispute_takes_back_what_is_left_of_the_transfer(
    world: World, by_hand: int
) -> None:
    payment = await paid(world)
    await days_pass(world)
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id)
    await reverse(world, payment, by_hand)
    assert stands(world, payment) == (0, -by_hand)
    await decide(world, dispute_id, "lose")
    await world.in_state(payment.payment_id, REFUNDED)
    await check_books(world)
    assert stands(world, payment) == (by_hand, -by_hand)
    await write_off(world, payment, by_hand)
    assert stands(world, payment) == (0, 0)
    assert balance(world, f"expert_funds:{payment.expert_id}") == 0


async def test_a_refund_out_of_band_with_its_reversal_cancels_out(world: World) -> None:
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
