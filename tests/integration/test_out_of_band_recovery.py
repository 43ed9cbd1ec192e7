"""A transfer that is reversed at Stripe's dashboard: in `losses`, until an operator settles it."""

from __future__ import annotations

import asyncio

import pytest

from marketplace.payments.v1 import payments_pb2
from marketplace.payments.v1.payments_pb2 import Payment
from payment_service.application.jobs import collect_debts
from tests.support.books import balance, check_books
from tests.support.kinds import kind_of
from tests.support.steps.dashboard import captured_payment, days_pass, reverse
from tests.support.steps.disputes import contest, decide, dispute_where
from tests.support.steps.operators import write_off
from tests.support.steps.payments import balances_of, kept_back
from tests.support.world import REFUNDED, World

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The debts of these tests are kept back by captures, or written off: none is collected."""
    monkeypatch.setattr(collect_debts, "_BATCH", 0)


async def owing(world: World) -> Payment:
    """It was given back while Stripe could take nothing from the expert, which it can now."""
    payment = await captured_payment(world)
    await world.refund(payment.payment_id)
    await days_pass(world)
    assert balances_of(world, payment) == (9_000, 0)
    return payment


# ---- the debt existed before ----


async def test_an_out_of_band_reversal_is_the_platforms_until_the_debt_is_written_off(
    world: World,
) -> None:
    payment = await owing(world)
    await reverse(world, payment, 4_000)
    assert balances_of(world, payment) == (9_000, -4_000)
    [discrepancy] = await world.discrepancies()
    assert kind_of(discrepancy) == "out_of_band_reversal"
    assert discrepancy.detail.endswith(" of 4000")
    await write_off(world, payment, 4_000)
    assert balances_of(world, payment) == (5_000, 0)
    assert await kept_back(world, payment, 10_000) == 5_000
    assert await kept_back(world, payment, 10_000) == 0
    assert balances_of(world, payment) == (0, 0)


async def test_a_reversal_beyond_the_open_debt_is_the_platforms_until_an_operator_decides(
    world: World,
) -> None:
    payment = await owing(world)
    assert await kept_back(world, payment, 4_000) == 3_599
    await reverse(world, payment, 9_000)
    assert balances_of(world, payment) == (9_000 - 3_599, -9_000)
    await check_books(world)


async def test_a_capture_and_a_reversal_out_of_band_at_once_leave_the_books_right(
    world: World,
) -> None:
    payment = await owing(world)
    other = await world.escrowed(payment.expert_id, 20_000, escrow_mode=PLATFORM)
    await asyncio.gather(reverse(world, payment, 9_000), world.capture(other.payment_id))
    await check_books(world)
    assert balances_of(world, payment) == (0, -9_000)


@pytest.mark.parametrize("out_of_band", [9_000, 4_000])
async def test_a_lost_dispute_reverses_the_remainder_of_the_transfer(
    world: World, out_of_band: int
) -> None:
    payment = await captured_payment(world)
    await days_pass(world)
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id)
    await reverse(world, payment, out_of_band)
    assert balances_of(world, payment) == (0, -out_of_band)
    await decide(world, dispute_id, "lose")
    await world.in_state(payment.payment_id, REFUNDED)
    await check_books(world)
    assert balances_of(world, payment) == (out_of_band, -out_of_band)
    await write_off(world, payment, out_of_band)
    assert balances_of(world, payment) == (0, 0)
    assert balance(world, f"expert_funds:{payment.expert_id}") == 0


async def test_a_refund_out_of_band_with_its_reversal_cancels_out(world: World) -> None:
    payment = await captured_payment(world)
    await days_pass(world)
    await world.stripe.api(
        "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=5_000
    )
    await reverse(world, payment, 4_500)
    await check_books(world)
    assert balances_of(world, payment) == (0, 0)
    await world.refund(payment.payment_id)
    await check_books(world)
    assert balances_of(world, payment) == (0, 0)
    assert balance(world, f"expert_funds:{payment.expert_id}") == 0
