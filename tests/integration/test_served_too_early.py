"""A replica serves an old database before anybody has run the recovery: nothing is moved twice.

Stripe's events since the backup are applied one by one, and what is done meanwhile is planned on
books that do not know all yet.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from dev.postgres import EmbeddedPostgres
from payment_service.application.execution.executor import sync_and_execute
from payment_service.application.jobs.collect_debts import collect_from
from payment_service.application.jobs.recover_operations import RECOVERY
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.errors import Refusal
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.requests import capture_request, refund_request
from tests.support.restore import Backup, back_up
from tests.support.steps.dashboard import days_pass, keep_at_stripe
from tests.support.steps.debts import POOR, SOON, debt_of, pay_a_waiting_refund, reversals
from tests.support.steps.operators import abandon
from tests.support.steps.payments import PLATFORM
from tests.support.world import CAPTURED, Payment, World, until


async def owes_nothing(world: World, paid: Payment) -> bool:
    return await debt_of(world, paid.expert_id) == 0


async def ten_minutes_ago(start_world: StartWorld, **settings: Any) -> World:
    """A world whose Stripe has the clock of a backup that is ten minutes old."""
    world = await start_world(policy={**SOON, "poll_seconds": 0.3}, **settings)
    assert world.simulator is not None
    world.simulator.simulation.clock.load({"offset": -600.0, "frozen": None, "latest": 0.0})
    await keep_at_stripe(world)
    return world


async def restored_too_early(backup: Backup, world: World) -> None:
    """The backup of ten minutes ago comes back, and a replica serves before the recovery."""
    await backup.restore(world)
    await world.stripe.advance(600)
    world.sql("UPDATE event_cursors SET seen_until = now() - interval '11 minutes'")


async def kept_back(start_world: StartWorld, postgres: EmbeddedPostgres) -> tuple[World, Payment]:
    """A refund waited for funds, a later capture has paid for it, and the backup knows neither."""
    world = await ten_minutes_ago(start_world, **POOR)
    assert world.service is not None
    await world.stripe.control("POST", "/settings", {"refund_on_low_balance": "refused"})
    paid = await world.captured(await world.expert(), 10_000)
    held = await world.escrowed(paid.expert_id, 10_000)
    await world.settle_down()
    backup = await back_up(postgres, world)
    await pay_a_waiting_refund(world, paid, held)
    await restored_too_early(backup, world)
    return world, paid


@pytest.mark.parametrize("first", ["collection", "capture"])
async def test_a_replica_that_serves_too_early_takes_no_debt_that_was_kept_back(
    start_world: StartWorld, postgres: EmbeddedPostgres, first: str
) -> None:
    """The backup knows the debt, and not the capture that has kept it back."""
    world = await ten_minutes_ago(start_world)
    paid = await world.captured(await world.expert(), 10_000, escrow_mode=PLATFORM)
    held = await world.escrowed(paid.expert_id, 20_000, escrow_mode=PLATFORM)
    other = await world.escrowed(paid.expert_id, 20_000, escrow_mode=PLATFORM)
    await world.until_answered("RefundPayment", refund_request(paid.payment_id))
    await world.settle_down()
    assert await debt_of(world, paid.expert_id) == 9_000
    backup = await back_up(postgres, world)
    assert (await world.capture(held.payment_id)).state == CAPTURED
    assert await debt_of(world, paid.expert_id) == 0
    await restored_too_early(backup, world)
    assert world.service is not None
    await days_pass(world)
    if first == "collection":
        await collect_from(world.service.app, paid.expert_id)
    else:
        assert (await world.capture(other.payment_id)).state == CAPTURED
    world.service.start_loops()
    await world.settle_down()
    await until(lambda: owes_nothing(world, paid), "the debt is paid on the books")
    await world.settle_down()
    assert await reversals(world) == []
    sent = [one["amount"] for one in await world.stripe.effects("transferred")]
    assert sent == [9_000, 9_000] + ([18_000] if first == "capture" else [])
    await check_books(world)


async def test_a_replica_that_serves_too_early_takes_nothing_back_that_was_kept_back(
    start_world: StartWorld, postgres: EmbeddedPostgres
) -> None:
    """Nobody has run the recovery, and the refund is read before the capture that has paid it."""
    world, paid = await kept_back(start_world, postgres)
    assert world.service is not None
    with contextlib.suppress(Refusal):
        await sync_and_execute(world.service.app, paid.payment_id, RECOVERY)
    assert await debt_of(world, paid.expert_id) == 2_250
    assert await reversals(world) == []
    world.service.start_loops()

    async def parked() -> bool:
        return bool(world.sql("SELECT FROM operations WHERE state = 'PARKED'"))

    await until(parked, "the reversal is parked")
    await world.settle_down()
    assert await reversals(world) == []
    [(why,)] = world.sql("SELECT last_error FROM operations WHERE state = 'PARKED'")
    assert why == "not at Stripe; recovered beside it: of 2250 the expert owes 0"
    await check_books(world)


async def test_a_replica_that_serves_too_early_applies_what_happened_in_any_order(
    start_world: StartWorld, postgres: EmbeddedPostgres
) -> None:
    """The events of both payments come at once, and the capture may be read first."""
    world, paid = await kept_back(start_world, postgres)
    assert world.service is not None
    held = world.sql("SELECT payment_id FROM payments WHERE state = 'IN_ESCROW'")[0][0]
    await sync_payment(world.service.app, held, RECOVERY)
    with contextlib.suppress(Refusal):
        await sync_and_execute(world.service.app, paid.payment_id, RECOVERY)
    assert await reversals(world) == []
    world.service.start_loops()
    await world.settle_down()
    assert await reversals(world) == []
    assert await debt_of(world, paid.expert_id) == 0
    await check_books(world)


async def test_a_new_capture_is_not_sent_beside_one_that_is_lost(
    start_world: StartWorld, postgres: EmbeddedPostgres
) -> None:
    """Both fit into the charge, so Stripe would pay the expert more than was agreed."""
    world = await ten_minutes_ago(start_world)
    held = await world.escrowed(await world.expert(), 10_000, escrow_mode=PLATFORM)
    await world.settle_down()
    backup = await back_up(postgres, world)
    assert (await world.capture(held.payment_id, 1_000)).captured_amount.minor_units == 1_000
    await restored_too_early(backup, world)
    reply = await world.bytes_of("CapturePayment", capture_request(held.payment_id))
    assert reply.code == "UNAVAILABLE"
    assert world.service is not None
    world.service.start_loops()
    await world.settle_down()
    assert [one["amount"] for one in await world.stripe.effects("transferred")] == [900]
    [(operation_id, why)] = world.sql(
        "SELECT operation_id, last_error FROM operations WHERE state = 'PARKED'"
    )
    assert why.startswith("not at Stripe; moved out of band meanwhile: transfer tr_")
    await abandon(world, operation_id)
    await sync_payment(world.service.app, held.payment_id, RECOVERY)
    await world.settle_down()
    assert (await world.get(held.payment_id)).captured_amount.minor_units == 1_000
    assert not await world.discrepancies()
    await check_books(world)
