"""A payment's transfers pay back what the payment left as debt, and nothing else, once.

An expert may owe for several payments at the same time. The tests call the job themselves, so that
they decide between which two steps of the others it comes.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, cast

from payment_service.application.app import App
from payment_service.application.jobs.collect_debts import collect_from
from payment_service.domain.ports.stripe import StripePort
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.requests import refund_request
from tests.support.running import replica
from tests.support.steps.dashboard import days_pass, keep_at_stripe
from tests.support.steps.debts import debt_of
from tests.support.steps.disputes import contest, decide
from tests.support.steps.faults import fail_stripe
from tests.support.steps.operators import abandon, parked
from tests.support.steps.payments import PLATFORM
from tests.support.world import CAPTURED, Payment, World, until

#: Of 172.54 the expert has 155.29. A refund of 54.43 takes 48.99 back, and a loss of 81.52 another
#: 73.37.
_AMOUNT, _REFUND, _REFUNDED, _LOSS, _LOST = 17_254, 5_443, 4_899, 8_152, 7_337
#: What the expert owes for another payment, and no job may take.
_ABANDONED = 9_000


async def debtor_of_two(start_world: StartWorld, **hold: Any) -> tuple[World, Payment]:
    """An expert who was paid, and then owes 90.00 for another payment by an abandoned reversal."""
    world = await start_world()
    await keep_at_stripe(world)
    await world.expert("debtor")
    paid = await world.captured("debtor", _AMOUNT, **hold)
    other = await world.captured("debtor", 10_000, **hold)
    await fail_stripe(world, "/reversals$", 401)
    reply = await world.bytes_of("RefundPayment", refund_request(other.payment_id))
    assert reply.code == "UNAVAILABLE"
    await abandon(world, await parked(world, other.payment_id))
    assert await debt_of(world, "debtor") == _ABANDONED
    return world, paid


async def without_background(world: World) -> App:
    """Ends all background work: from here on the test does it."""
    await world.settle_down()
    assert world.service is not None
    await world.service.stop()
    await world.service.start(loops=False)
    await world.channel.channel_ready()
    return world.service.app


async def taken_of(world: World, payment: Payment) -> list[int]:
    effects = await world.stripe.effects("reversed", payment.payment_intent_id)
    return [effect["amount"] for effect in effects]


async def lose(world: World, payment: Payment) -> None:
    """The client's bank takes more of the payment, and keeps it."""
    dispute_id = await contest(world, payment, amount=_LOSS)
    await decide(world, dispute_id, "lose")

    async def taken_back() -> bool:
        shown = await world.get(payment.payment_id)
        return shown.state == CAPTURED and shown.lost_amount.minor_units == _LOSS

    await until(taken_back, "a loss whose part the expert has paid")
    await world.settle_down()


async def test_what_a_reversal_takes_back_is_not_collected_as_well(
    start_world: StartWorld,
) -> None:
    """The reversal's answer is lost. Until it is known, its amount is no debt of this payment."""
    world, paid = await debtor_of_two(start_world)
    app = await without_background(world)
    await world.stripe.fault("/reversals$", "status", status=503)
    refund = refund_request(paid.payment_id, _REFUND)
    assert (await world.bytes_of("RefundPayment", refund)).code == "UNAVAILABLE"

    await collect_from(app, "debtor")

    assert await taken_of(world, paid) == []
    assert world.service is not None
    world.service.start_loops()
    assert (await world.until_answered("RefundPayment", refund)).code == "OK"
    await lose(world, paid)
    assert await taken_of(world, paid) == [_REFUNDED, _LOST]
    assert await debt_of(world, "debtor") == _ABANDONED
    await check_books(world)


class Slow:
    """Stripe, whose answer about an account's balance comes only when the test says so."""

    def __init__(self, stripe: StripePort) -> None:
        self._stripe = stripe
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stripe, name)

    async def account_balance(self, account_id: str) -> Any:
        found = await self._stripe.account_balance(account_id)
        self.asked.set()
        await self.go_on.wait()
        return found


async def test_a_round_that_is_overtaken_collects_nothing_twice(start_world: StartWorld) -> None:
    """Between its look and its collection another replica has collected the very same."""
    world, paid = await debtor_of_two(start_world, escrow_mode=PLATFORM)
    await world.refund(paid.payment_id, _REFUND)
    assert await debt_of(world, "debtor") == _ABANDONED + _REFUNDED
    app = await without_background(world)
    await days_pass(world)
    slow = Slow(app.stripe)
    overtaken = dataclasses.replace(app, stripe=cast("StripePort", slow))
    first = asyncio.create_task(collect_from(overtaken, "debtor"))
    await slow.asked.wait()
    async with replica(world, loops=False) as other:
        assert other.service is not None
        await collect_from(other.service.app, "debtor")
    assert await taken_of(world, paid) == [_REFUNDED]

    slow.go_on.set()
    await first

    assert await taken_of(world, paid) == [_REFUNDED]
    assert await debt_of(world, "debtor") == _ABANDONED
    assert world.service is not None
    world.service.start_loops()
    await lose(world, paid)
    assert await taken_of(world, paid) == [_REFUNDED, _LOST]
    await check_books(world)
