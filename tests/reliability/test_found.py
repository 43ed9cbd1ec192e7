"""Faults that the model and the crash tests found, each as the smallest test that shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from marketplace.payments.v1 import payments_pb2
from tests.support.books import check_books
from tests.support.running import running_world
from tests.support.world import REFUNDING


def test_a_refund_is_answered_although_an_earlier_refund_fails(
    new_database: Callable[[], str],
) -> None:
    """The refund takes nothing from the expert, so it has one leg; the bounce brings an operation
    forth in the same moment, which must not be taken for the second one."""

    async def run() -> None:
        async with running_world(new_database()) as world:
            payment = await world.captured()
            await world.refund(payment.payment_id, 5)
            await world.settle_down()
            await world.pause_webhooks()
            [(refund_id,)] = world.sql("SELECT movement_id FROM movements WHERE kind = 'refund'")
            await world.stripe.control("POST", f"/refunds/{refund_id}/fail")
            # Of 99.95 the last cent is the commission's alone.
            answer = await world.refund(payment.payment_id, 1)
            assert answer.refunded_amount.minor_units == 6
            assert (answer.state, answer.waiting_for) == (
                REFUNDING,
                payments_pb2.WAITING_FOR_OPERATOR,
            )
            # The new client payable blocks nothing.
            answer = await world.refund(payment.payment_id, 1)
            assert answer.refunded_amount.minor_units == 7
            assert (answer.state, answer.waiting_for) == (
                REFUNDING,
                payments_pb2.WAITING_FOR_OPERATOR,
            )
            await check_books(world)

    asyncio.run(run())
