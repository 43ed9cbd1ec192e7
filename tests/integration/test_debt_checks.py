"""When an expert's debt is collected next: after the lease, the pause, or at once."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest

from payment_service.application.app import App
from payment_service.application.jobs.collect_debts import collect_debts
from payment_service.domain.payouts import AccountBalance
from payment_service.domain.ports.stripe import StripePort
from tests.integration.conftest import StartWorld
from tests.support.requests import refund_request
from tests.support.steps.debts import debt_of, until_reversed
from tests.support.steps.payments import PLATFORM
from tests.support.world import World

_AVAILABLE = "pm_card_bypassPending"


async def debtor(start_world: StartWorld) -> tuple[World, App]:
    """An expert who owes 90.00 and has 45.00; nobody collects but the test."""
    world = await start_world()
    await world.expert("debtor")
    paid = await world.captured("debtor", card=_AVAILABLE, escrow_mode=PLATFORM)
    account = world.account_of("debtor")
    await world.stripe.api("POST", "/payouts", account=account, amount=4_500, currency="usd")
    await world.settle_down()
    assert world.service is not None
    await world.service.stop()
    await world.service.start(loops=False)
    await world.channel.channel_ready()
    assert (await world.bytes_of("RefundPayment", refund_request(paid.payment_id))).code == "OK"
    assert await debt_of(world, "debtor") == 9_000
    return world, world.service.app


class AtBalance:
    """Stripe, where something happens when an account's balance is read."""

    def __init__(self, stripe: StripePort, happens: Callable[[], Awaitable[None]]) -> None:
        self._stripe, self._happens = stripe, happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stripe, name)

    async def account_balance(self, account_id: str) -> Sequence[AccountBalance] | None:
        await self._happens()
        return await self._stripe.account_balance(account_id)


def when_balance_is_read(app: App, happens: Callable[[], Awaitable[None]]) -> App:
    return dataclasses.replace(app, stripe=cast("StripePort", AtBalance(app.stripe, happens)))


def seconds_until_check(world: World) -> float:
    [(seconds,)] = world.sql("SELECT extract(epoch FROM next_time - now())::float FROM debt_checks")
    return float(seconds)


async def test_while_the_books_may_be_older_than_stripe_no_check_is_used_up(
    start_world: StartWorld,
) -> None:
    """Nothing is known of the account then, so the pause does not grow."""
    world, app = await debtor(start_world)
    world.sql("UPDATE event_cursors SET seen_until = now() - interval '2 minutes'")
    assert await collect_debts(app) == 0
    assert seconds_until_check(world) <= 0
    world.sql("UPDATE event_cursors SET seen_until = now()")
    assert await collect_debts(app) == 1
    await until_reversed(world, 4_500)


async def test_after_a_collector_died_the_debt_is_collected_after_its_lease(
    start_world: StartWorld,
) -> None:
    world, app = await debtor(start_world)

    async def dies() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await collect_debts(when_balance_is_read(app, dies))

    assert await debt_of(world, "debtor") == 9_000
    assert 0 < seconds_until_check(world) <= app.policy.lease
    world.sql("UPDATE debt_checks SET next_time = now()")
    assert await collect_debts(app) == 1
    await until_reversed(world, 4_500)


async def test_a_check_that_failed_is_repeated_soon(start_world: StartWorld) -> None:
    world, app = await debtor(start_world)

    async def fails() -> None:
        raise OSError

    assert await collect_debts(when_balance_is_read(app, fails)) == 1

    assert await debt_of(world, "debtor") == 9_000
    assert 0 < seconds_until_check(world) <= app.policy.lease


async def test_while_the_account_has_nothing_the_pause_doubles(start_world: StartWorld) -> None:
    world, app = await debtor(start_world)
    pauses = []
    for _ in range(3):
        world.sql("UPDATE debt_checks SET next_time = now()")
        assert await collect_debts(app) == 1
        pauses.append(round(seconds_until_check(world) / app.policy.debt_check_first_seconds))
    assert pauses == [1, 2, 4]
    assert await debt_of(world, "debtor") == 4_500


async def test_money_that_comes_during_a_collection_is_collected_at_once(
    start_world: StartWorld,
) -> None:
    """What the job has read may be older than the money, so it must not pause."""
    world, app = await debtor(start_world)

    async def money_comes() -> None:
        world.sql("UPDATE debt_checks SET pause = interval '0', next_time = now()")

    assert await collect_debts(when_balance_is_read(app, money_comes)) >= 1
    assert seconds_until_check(world) <= 0
