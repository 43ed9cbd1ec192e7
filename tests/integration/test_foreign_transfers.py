"""Transfers under the payment's label that are not the payment's: reported and left alone."""

from __future__ import annotations

import pytest

from tests.support.books import balance
from tests.support.kinds import kind_of
from tests.support.steps.dashboard import keep_at_stripe, transfer_out_of_band
from tests.support.steps.operators import discrepancy_kinds, run
from tests.support.steps.payments import PLATFORM, amounts_at_stripe
from tests.support.world import REFUNDED, World, until


@pytest.mark.parametrize("to", ["a helper", "the expert, in another currency"])
@pytest.mark.parametrize("first", [False, True], ids=["after the capture", "before it"])
async def test_a_refund_takes_back_from_the_expert_and_from_nobody_else(
    world: World, to: str, *, first: bool
) -> None:
    await keep_at_stripe(world)
    await world.stripe.control("POST", "/settings", {"reversal_balance": "total"})
    topup = {"amount": 5_000, "currency": "eur", "type": "topup"}
    await world.stripe.control("POST", "/balance", topup)
    helper = await world.expert()
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)

    async def send() -> None:
        if to == "a helper":
            await transfer_out_of_band(world, payment, 1_800, to=helper)
        else:
            await transfer_out_of_band(world, payment, 1_800, currency="eur")

        async def told() -> bool:
            return "foreign_transfer" in await discrepancy_kinds(world, payment)

        await until(told, "the foreign transfer reported")

    if first:
        await send()
    await world.capture(payment.payment_id, 8_000)
    if not first:
        await send()
    # It is told once, and it neither parks nor changes anything.
    await run(world, payment.payment_id)
    assert (await world.refund(payment.payment_id, 10_000)).state == REFUNDED
    assert await amounts_at_stripe(world, "reversed", payment) == [7_200]
    assert balance(world, f"expert_debt:{payment.expert_id}") == 0
    assert balance(world, "losses") == 0
    kinds = [kind_of(found) for found in await world.discrepancies(payment.payment_id)]
    assert kinds == ["foreign_transfer"]
    found = (await run(world)).discrepancies
    assert "foreign_transfer" not in {kind_of(one) for one in found}
    assert not [one for one in found if kind_of(one) == "invariant_violated"]
