"""The same as `test_targets.py`, for money that is short and for what a restore repeats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event

from dev.postgres import EmbeddedPostgres
from marketplace.payments.v1 import payments_pb2
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.domain.ports.database import Transaction
from tests.support.books import balance
from tests.support.requests import capture_request
from tests.support.restore import back_up
from tests.support.running import running_world
from tests.support.steps.dashboard import days_pass, keep_at_stripe, transfer_out_of_band
from tests.support.world import CAPTURED, CAPTURING, REFUNDED, REFUNDING, World, until

PLATFORM: dict[str, Any] = {"escrow_mode": payments_pb2.ESCROW_MODE_PLATFORM_HOLD}
SOON = {
    "funds_check_seconds": 0.3,
    "debt_check_first_seconds": 0.3,
    "debt_check_longest_seconds": 0.6,
    "waiting_account_seconds": 0.5,
}


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """A service that looks often, for experts whose payouts are manual."""
    async with running_world(database_url, policy=SOON) as running:
        await keep_at_stripe(running)
        yield running


async def _debtor(world: World) -> str:
    """Owes 90.00 that is pending at Stripe, so that nothing can be taken back yet."""
    expert = await world.expert()
    paid = await world.captured(expert, 10_000, **PLATFORM)
    assert (await world.refund(paid.payment_id)).state == REFUNDED
    assert balance(world, f"expert_debt:{expert}") == 9_000
    return expert


async def _open_collection(world: World, expert: str) -> None:
    """Makes what the expert owes available, and has Stripe take its time with the reversal."""
    await world.stripe.fault("/reversals$", "delay", delay_ms=1_000)
    await days_pass(world)

    async def begun() -> bool:
        return bool(_collections(world, expert, "STARTED"))

    await until(begun, "a collection under way")


def _collections(world: World, expert: str, state: str) -> list[Any]:
    return list(
        world.sql(
            "SELECT 1 FROM operations WHERE kind = 'collect_debt' AND expert_id = %s "
            "AND state = %s",
            expert,
            state,
        )
    )


async def test_a_debt_is_collected_or_kept_back_and_not_both(world: World) -> None:
    """A capture meets a collection that is under way: that part of the debt is reserved."""
    expert = await _debtor(world)
    held = await world.escrowed(expert, 20_000, **PLATFORM)
    await _open_collection(world, expert)
    await world.capture(held.payment_id)
    await world.settle_down()
    assert balance(world, f"expert_debt:{expert}") == 0


async def test_a_debt_and_what_reserves_it_are_read_at_once(world: World) -> None:
    """A collection is booked between two statements: the debt is neither there nor reserved."""
    expert = await _debtor(world)
    await _open_collection(world, expert)
    loop = asyncio.get_running_loop()

    async def booked() -> bool:
        return bool(_collections(world, expert, "SUCCEEDED"))

    def wait(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "postings" in statement:
            until_booked = until(booked, "the collection on the books")
            asyncio.run_coroutine_threadsafe(until_booked, loop).result(10)

    def read(tx: Transaction) -> int:
        assert isinstance(tx, SqlTransaction)
        event.listen(tx.connection, "after_cursor_execute", wait)
        return tx.expert_debt(expert, "USD")

    assert world.service is not None
    assert await world.service.app.database.transact(read) == 0


async def test_a_debt_is_collected_when_the_account_has_it(world: World) -> None:
    expert = await _debtor(world)
    await days_pass(world)

    async def collected() -> bool:
        return balance(world, f"expert_debt:{expert}") == 0

    await until(collected, "the debt collected")


async def test_a_refund_without_funds_is_paid_by_the_expert(database_url: str) -> None:
    """The platform has only commissions: what it takes back from the expert pays the refund."""
    async with running_world(database_url, policy=SOON, simulator={"platform_funds": 0}) as world:
        await keep_at_stripe(world)
        expert = await world.expert()
        # Its commission, beside Stripe's fees, covers what the refund lacks.
        other = await world.captured(expert, 40_000, **PLATFORM)
        paid = await world.captured(expert, 10_000, **PLATFORM)
        refunded = await world.refund(paid.payment_id)
        assert refunded.state == REFUNDING
        assert refunded.pending_refund_amount.minor_units == 10_000
        await days_pass(world)
        await world.in_state(paid.payment_id, REFUNDED)
        assert (await world.get(other.payment_id)).state == CAPTURED


async def test_a_waiting_capture_goes_on_without_any_event(world: World) -> None:
    await world.stripe.control("POST", "/settings", {"account_event_form": "none"})
    expert = await world.expert()
    held = await world.escrowed(expert, **PLATFORM)
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/restrict")
    assert (await world.capture(held.payment_id)).state == CAPTURING
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    await world.in_state(held.payment_id, CAPTURED)


async def test_a_foreign_transfer_is_nobodys_payment(world: World) -> None:
    """Somebody else was sent 18.00 under the payment's label: it is not taken back for a refund."""
    await world.stripe.control("POST", "/settings", {"reversal_balance": "total"})
    helper = await world.expert()
    payment = await world.escrowed(amount=10_000, **PLATFORM)
    await world.capture(payment.payment_id, 8_000)
    await transfer_out_of_band(world, payment, 1_800, to=helper)
    assert (await world.refund(payment.payment_id, 10_000)).state == REFUNDED
    assert [one["amount"] for one in await world.stripe.effects("reversed")] == [7_200]


async def test_further_lines_of_a_converted_dispute_are_valued_together(world: World) -> None:
    """100.00 INR are 1.20 USD: two cents that come back are 1.67 INR, and not 83 paise each."""
    payment = await world.captured(amount=10_000, currency="INR")
    path = f"/charges/{payment.charge_id}/dispute"
    dispute = (await world.stripe.control("POST", path, {}))["id"]
    for _ in range(2):
        await world.stripe.control("POST", f"/disputes/{dispute}/adjust", {"amount": 1})

    async def reinstated() -> bool:
        found = world.sql("SELECT reinstated FROM disputes WHERE dispute_id = %s", dispute)
        return found == [(167,)]

    await until(reinstated, "two cents that came back")


async def test_a_restored_database_repeats_nothing(
    database_url: str, postgres: EmbeddedPostgres
) -> None:
    """The repeated call has the id of the operation that the database has lost."""
    async with running_world(database_url, loops=True) as world:
        held = await world.escrowed(**PLATFORM)
        backup = await back_up(postgres, world)
        call = capture_request(held.payment_id, 4_000)
        first = await world.bytes_of("CapturePayment", call)
        await backup.restore(world)
        again = await world.bytes_of("CapturePayment", call)
        assert (first.code, again.code) == ("OK", "OK")
        assert [one["amount"] for one in await world.stripe.effects("transferred")] == [3_600]
