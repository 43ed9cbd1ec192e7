"""Accounts are read by the clock: nothing depends on Stripe's events about them."""

from __future__ import annotations

from typing import Any

import pytest

from payment_service.application.jobs.check_accounts import check_accounts
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.steps.payments import PLATFORM, PROMOTE
from tests.support.world import CAPTURED, CAPTURING, World, until

MODES = pytest.mark.parametrize(
    "fields",
    [{}, {"escrow_mode": PLATFORM}, {"on_deadline": PROMOTE}],
    ids=["destination", "held", "authorized"],
)


async def silent_world(start_world: StartWorld, **policy: Any) -> World:
    """Accounts send no events, neither by webhook nor in the list of events."""
    world = await start_world(policy=policy)
    await world.stripe.control("POST", "/settings", {"account_event_form": "none"})
    return world


async def status_is(world: World, expert: str, status: str) -> None:
    """Waits until the record says so. Nobody calls GetExpert, which would ask Stripe."""

    async def probe() -> bool:
        return world.sql("SELECT status FROM experts WHERE expert_id = %s", expert) == [(status,)]

    await until(probe, f"{expert} is {status}")


async def account_events(world: World) -> list[str]:
    stored = world.sql("SELECT type FROM webhook_events")
    return [kind for (kind,) in stored if kind.startswith(("account.", "capability."))]


def make_due(world: World, *experts: str) -> None:
    world.sql(
        "UPDATE experts SET check_due_time = now() - interval '1 hour' WHERE expert_id = ANY(%s)",
        list(experts),
    )


@MODES
async def test_a_waiting_capture_goes_on_without_any_event(
    start_world: StartWorld, fields: dict[str, Any]
) -> None:
    world = await silent_world(start_world, waiting_account_seconds=0.5)
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, **fields)
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/restrict")
    assert (await world.capture(held.payment_id)).state == CAPTURING
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    await world.in_state(held.payment_id, CAPTURED)
    assert await account_events(world) == []
    await check_books(world)


async def test_an_account_that_is_not_ready_is_read_by_the_clock(start_world: StartWorld) -> None:
    world = await silent_world(start_world, unready_account_seconds=0.5)
    expert = await world.expert(ready=False)
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding")
    await status_is(world, expert, "READY")


async def test_an_account_that_is_ready_is_read_by_the_clock(start_world: StartWorld) -> None:
    world = await silent_world(start_world, ready_account_seconds=0.5)
    expert = await world.expert()
    await world.stripe.control("POST", f"/accounts/{world.account_of(expert)}/restrict")
    await status_is(world, expert, "RESTRICTED")


async def test_only_what_is_due_is_read(start_world: StartWorld) -> None:
    world = await start_world(loops=False)
    assert world.service is not None
    experts = [await world.expert() for _ in range(3)]
    app = world.service.app
    assert await check_accounts(app) == 0
    make_due(world, experts[1])
    assert await check_accounts(app) == 1
    assert await check_accounts(app) == 0


async def test_one_that_fails_stops_no_other(start_world: StartWorld) -> None:
    world = await start_world(loops=False)
    assert world.service is not None
    first, second = await world.expert(), await world.expert()
    accounts = [world.account_of(one) for one in (first, second)]
    for account in accounts:
        await world.stripe.control("POST", f"/accounts/{account}/restrict")
    rule = {"match": {"path": f"{accounts[0]}$"}, "action": "status", "status": 400}
    await world.stripe.control("POST", "/faults", rule)
    make_due(world, first, second)
    assert await check_accounts(world.service.app) == 2
    await status_is(world, first, "READY")
    await status_is(world, second, "RESTRICTED")
    # It is due again after the shortest pause, and it has not taken the second one's place.
    assert await check_accounts(world.service.app) == 0
    await world.stripe.clear_faults()
    make_due(world, first)
    await check_accounts(world.service.app)
    await status_is(world, first, "RESTRICTED")


async def test_many_ready_accounts_delay_no_capture(start_world: StartWorld) -> None:
    world = await start_world(loops=False)
    assert world.service is not None
    ready = [await world.expert() for _ in range(12)]
    late = await world.expert(ready=False)
    await world.stripe.control("POST", f"/accounts/{world.account_of(late)}/complete_onboarding")
    make_due(world, *ready)
    world.sql(
        "UPDATE experts SET check_due_time = now() - interval '1 second' WHERE expert_id = %s", late
    )
    assert await check_accounts(world.service.app) == 11
    await status_is(world, late, "READY")
