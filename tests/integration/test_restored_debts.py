"""The database is older than a collection of debt: nothing is taken from the expert twice."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from dev.postgres import EmbeddedPostgres
from payment_service.application.jobs.collect_debts import COLLECTION, collect_from
from payment_service.application.recover_after_restore import Recovered, recover_after_restore
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.errors import Refusal
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.requests import capture_request, refund_request
from tests.support.restore import Backup, back_up
from tests.support.steps.dashboard import days_pass, keep_at_stripe
from tests.support.steps.debts import (
    POOR,
    SOON,
    debt_of,
    pay_a_waiting_refund,
    reversals,
    top_up,
    until_reversed,
)
from tests.support.steps.disputes import contest, decide
from tests.support.steps.operators import abandon
from tests.support.steps.payments import PLATFORM
from tests.support.world import CAPTURED, REFUNDED, Payment, World, until


async def indebted(start_world: StartWorld) -> tuple[World, Payment]:
    """An expert who owes 90.00, which the account will have in two days."""
    world = await start_world(policy=SOON)
    await keep_at_stripe(world)
    paid = await world.captured(await world.expert(), 10_000, escrow_mode=PLATFORM)
    assert (await world.refund(paid.payment_id)).state == REFUNDED
    return world, paid


async def collected_since(backup: Backup, world: World, *amounts: int) -> None:
    """The debt is collected, and the backup without that comes back."""
    assert world.service is not None
    world.service.start_loops()
    await days_pass(world)
    await until_reversed(world, *amounts)
    await world.settle_down()
    await backup.restore(world)


@pytest.mark.parametrize("first", ["sync", "collection"])
async def test_a_lost_collection_is_not_made_again(
    start_world: StartWorld, postgres: EmbeddedPostgres, first: str
) -> None:
    world, paid = await indebted(start_world)
    backup = await back_up(postgres, world)
    await collected_since(backup, world, 9_000)
    assert world.service is not None
    assert await debt_of(world, paid.expert_id) == 9_000
    if first == "sync":
        await sync_payment(world.service.app, paid.payment_id, COLLECTION)
    # More money comes into the account, so Stripe would allow another reversal.
    await collect_from(world.service.app, paid.expert_id)
    world.service.start_loops()
    await world.settle_down()
    assert await debt_of(world, paid.expert_id) == 0
    assert await reversals(world) == [9_000]
    assert not await world.discrepancies()
    await check_books(world)


async def test_a_lost_collection_counts_with_the_amount_that_stripe_took(
    start_world: StartWorld, postgres: EmbeddedPostgres
) -> None:
    """The restored books would take another amount from the same transfer."""
    world, paid = await indebted(start_world)
    backup = await back_up(postgres, world)
    account = world.account_of(paid.expert_id)
    await days_pass(world)
    await world.stripe.api("POST", "/payouts", account=account, amount=4_500, currency="usd")
    await collected_since(backup, world, 4_500)
    assert world.service is not None
    give = {"amount": 2_000, "currency": "usd", "type": "topup", "account": account}
    await world.stripe.control("POST", "/balance", give)
    with contextlib.suppress(Refusal):
        await collect_from(world.service.app, paid.expert_id)
    world.service.start_loops()
    await world.settle_down()
    taken = sum(await reversals(world))
    assert await debt_of(world, paid.expert_id) == 9_000 - taken


async def test_what_a_recovered_refund_takes_back_waits_if_it_was_collected(
    start_world: StartWorld, postgres: EmbeddedPostgres
) -> None:
    """The refund is lost too: its reversal is not sent beside the collection that paid for it."""
    world = await start_world(policy=SOON)
    await keep_at_stripe(world)
    paid = await world.captured(await world.expert(), 10_000, escrow_mode=PLATFORM)
    backup = await back_up(postgres, world)
    call = refund_request(paid.payment_id, 3_000)
    assert (await world.bytes_of("RefundPayment", call)).code == "OK"
    await collected_since(backup, world, 2_700)
    assert world.service is not None
    world.service.start_loops()
    await world.settle_down()
    assert await reversals(world) == [2_700]
    assert await debt_of(world, paid.expert_id) == 0


async def test_a_lost_dispute_takes_nothing_back_that_was_collected(
    start_world: StartWorld, postgres: EmbeddedPostgres
) -> None:
    """The dispute was lost after the backup, and its reversal refused; then it was collected."""
    world = await start_world(policy=SOON)
    await keep_at_stripe(world)
    paid = await world.captured(await world.expert(), 10_000, escrow_mode=PLATFORM)
    held = await world.escrowed(paid.expert_id, 20_000, escrow_mode=PLATFORM)
    backup = await back_up(postgres, world, loops=True)
    await world.stripe.fault("/reversals$", "status", status=400, code="balance_insufficient")
    dispute_id = await contest(world, paid, amount=5_000)
    await decide(world, dispute_id, "lose")
    await days_pass(world)
    await until_reversed(world, 4_500)
    await world.settle_down()
    # More money comes into the account, so Stripe would allow another reversal.
    await world.bytes_of("CapturePayment", capture_request(held.payment_id))
    await days_pass(world)
    await world.settle_down()
    await backup.restore(world, loops=True)

    async def lost() -> bool:
        return (await world.get(paid.payment_id)).lost_amount.minor_units == 5_000

    await until(lost, "the lost dispute on the books")
    await world.settle_down()
    assert await debt_of(world, paid.expert_id) == 0
    assert await reversals(world) == [4_500]


@pytest.mark.parametrize("low_balance", ["pending", "refused"])
async def test_a_lost_refund_that_waited_for_funds_is_paid_once(
    start_world: StartWorld, postgres: EmbeddedPostgres, low_balance: str
) -> None:
    """The refund was accepted after the backup, and what the expert owed for it was collected."""
    world = await start_world(policy=SOON, **POOR)
    await keep_at_stripe(world)
    await world.stripe.control("POST", "/settings", {"refund_on_low_balance": low_balance})
    paid = await world.captured(amount=10_000)
    backup = await back_up(postgres, world)
    call = refund_request(paid.payment_id)
    assert (await world.bytes_of("RefundPayment", call)).code == "OK"
    assert world.service is not None
    world.service.start_loops()
    await until_reversed(world, 9_000)
    await backup.restore(world)
    assert (await world.until_answered("RefundPayment", call)).code == "OK"
    world.service.start_loops()
    await days_pass(world)
    await top_up(world, 20_000)

    async def paid_back() -> bool:
        return bool(await world.stripe.effects("refunded"))

    await until(paid_back, "the refund")
    await world.settle_down()
    assert len(await world.stripe.effects("refunded")) == 1
    assert await reversals(world) == [9_000]
    assert await debt_of(world, paid.expert_id) == 0
    await check_books(world)


async def test_a_collection_is_recovered_after_all_that_led_to_it(
    start_world: StartWorld, postgres: EmbeddedPostgres
) -> None:
    """Capture, refund and collection are lost: the collection is nobody else's reversal."""
    world = await start_world(policy=SOON)
    await keep_at_stripe(world)
    held = await world.escrowed(await world.expert(), 10_000, escrow_mode=PLATFORM)
    backup = await back_up(postgres, world)
    assert (await world.capture(held.payment_id)).state == CAPTURED
    assert (await world.refund(held.payment_id)).state == REFUNDED
    await collected_since(backup, world, 9_000)
    assert world.service is not None
    await sync_payment(world.service.app, held.payment_id, COLLECTION)
    world.service.start_loops()
    await world.in_state(held.payment_id, REFUNDED)
    await world.settle_down()
    assert await reversals(world) == [9_000]
    assert await debt_of(world, held.expert_id) == 0
    assert not await world.discrepancies()
    await check_books(world)


async def test_what_a_recovered_refund_takes_back_waits_if_it_was_kept_back(
    start_world: StartWorld, postgres: EmbeddedPostgres
) -> None:
    """The refund waited for funds, and a later capture of another payment has paid for it."""
    world = await start_world(policy=SOON, **POOR)
    await keep_at_stripe(world)
    await world.stripe.control("POST", "/settings", {"refund_on_low_balance": "refused"})
    paid = await world.captured(await world.expert(), 10_000)
    held = await world.escrowed(paid.expert_id, 10_000)
    backup = await back_up(postgres, world)
    since = datetime.now(UTC) - timedelta(hours=1)
    assert world.service is not None
    await pay_a_waiting_refund(world, paid, held)
    await backup.restore(world)
    assert [line async for line in recover_after_restore(world.service.app, since, Recovered())]
    world.service.start_loops()
    await world.settle_down()
    # The expert has paid for the refund already: nothing more is taken before an operator decides.
    assert await reversals(world) == []
    [(operation_id, why)] = world.sql(
        "SELECT operation_id, last_error FROM operations WHERE state = 'PARKED'"
    )
    assert why == "not at Stripe; recovered beside it: of 2250 the expert owes 0"
    await abandon(world, operation_id)
    await world.settle_down()
    assert await debt_of(world, paid.expert_id) == 0
    assert await reversals(world) == []
    await check_books(world)
