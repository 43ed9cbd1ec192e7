"""What experts owe, and a platform whose balance is too low."""

from __future__ import annotations

from typing import Any

from marketplace.payments.v1 import payments_pb2
from tests.support.books import balance
from tests.support.world import CAPTURED, Payment, World, until

SOON: dict[str, float] = {
    "funds_check_seconds": 0.3,
    "debt_check_first_seconds": 0.3,
    "debt_check_longest_seconds": 0.6,
}
#: The platform has nothing but its commissions.
POOR: dict[str, Any] = {"simulator": {"platform_funds": 0}}


async def top_up(world: World, amount: int) -> None:
    given = {"amount": amount, "currency": "usd", "type": "topup"}
    await world.stripe.control("POST", "/balance", given)


async def reversals(world: World) -> list[int]:
    return [one["amount"] for one in await world.stripe.effects("reversed")]


async def until_reversed(world: World, *amounts: int) -> None:
    async def probe() -> bool:
        return await reversals(world) == list(amounts)

    await until(probe, f"reversals of {amounts}")


async def debt_of(world: World, expert_id: str) -> int:
    return balance(world, f"expert_debt:{expert_id}")


async def pay_a_waiting_refund(world: World, paid: Payment, held: Payment) -> None:
    """A refund waits for funds, and a later capture pays for it: nothing is reversed."""
    assert world.service is not None
    answer = await world.refund(paid.payment_id, 2_500)
    assert answer.waiting_for == payments_pb2.WAITING_FOR_PROCESSOR
    assert (await world.capture(held.payment_id)).state == CAPTURED
    await top_up(world, 20_000)
    world.service.start_loops()
    await world.settle_down()
    assert await debt_of(world, paid.expert_id) == 0
    assert await reversals(world) == []


async def collected_in_vain(world: World) -> None:
    """Waits until the job has tried to collect, and pauses. Meanwhile it reserves the debt."""

    async def pauses() -> bool:
        return bool(world.sql("SELECT 1 FROM debt_checks WHERE pause > interval '0'"))

    await until(pauses, "a check of the debt that found nothing to take")
    await world.settle_down()
