"""What happens at Stripe without the service: at its dashboard, at banks, by time."""

from __future__ import annotations

from typing import Any

from tests.support.steps.payments import PLATFORM, event_kinds
from tests.support.world import Payment, World, until


async def keep_at_stripe(world: World) -> None:
    """Experts whose payouts are manual: time passes, and what was theirs can be taken back."""
    await world.stripe.control("POST", "/settings", {"payout_interval": "manual"})


async def refund_out_of_band(world: World, payment: Payment, amount: int) -> None:
    made = await world.stripe.api(
        "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=amount
    )
    assert made.get("id"), made

    async def booked() -> bool:
        return "refunded_out_of_band" in await event_kinds(world, payment.payment_id)

    await until(booked, "the out-of-band refund on the books")


async def transfer_out_of_band(
    world: World, payment: Payment, amount: int, *, to: str = "", currency: str = "usd"
) -> None:
    """To the payment's expert or ``to`` another; a bonus in another currency than the charge's."""
    source: dict[str, Any] = {}
    if currency == "usd":
        source["source_transaction"] = payment.charge_id
    made = await world.stripe.api(
        "POST",
        "/transfers",
        amount=amount,
        currency=currency,
        destination=world.account_of(to or payment.expert_id),
        transfer_group=payment.payment_id,
        **source,
    )
    assert made.get("id"), made


async def bounce(world: World, payment_id: str) -> None:
    """The newest refund comes back from the client's bank; wait until the books say so."""
    refund = world.sql(
        "SELECT movement_id FROM movements WHERE payment_id = %s AND kind = 'refund' "
        "ORDER BY time DESC LIMIT 1",
        payment_id,
    )[0][0]
    await world.stripe.control("POST", f"/refunds/{refund}/fail")

    async def booked() -> bool:
        return bool(world.sql("SELECT 1 FROM movements WHERE movement_id = %s", f"{refund}:failed"))

    await until(booked, "the bounce on the books")


async def late_arrival(world: World, payment: Payment, operation_id: str) -> None:
    """Lets the request of the parked transfer reach Stripe late."""
    [(account_id,)] = world.sql(
        "SELECT payload ->> 'destination_account_id' FROM operations WHERE operation_id = %s",
        operation_id,
    )
    names: dict[str, Any] = {
        "metadata[operation_id]": operation_id,
        "metadata[payment_id]": payment.payment_id,
    }
    made = await world.stripe.api(
        "POST",
        "/transfers",
        amount=3_600,
        currency="usd",
        destination=account_id,
        source_transaction=payment.charge_id,
        transfer_group=payment.payment_id,
        **names,
    )
    assert made.get("id"), made


async def captured_payment(world: World) -> Payment:
    """A gig of 100 dollars, of which the expert was sent 90."""
    await keep_at_stripe(world)
    return await world.captured(await world.expert(), 10_000, escrow_mode=PLATFORM)


async def days_pass(world: World) -> None:
    """What was pending at Stripe becomes available."""
    await world.stripe.advance(3 * 24 * 3600)


async def reverse(world: World, payment: Payment, amount: int) -> None:
    """As an operator does at the dashboard; until it is on the books."""
    before = (await event_kinds(world, payment.payment_id)).count("reversed_out_of_band")
    [(transfer,)] = world.sql(
        "SELECT movement_id FROM movements WHERE kind = 'transfer' AND payment_id = %s",
        payment.payment_id,
    )
    made = await world.stripe.api("POST", f"/transfers/{transfer}/reversals", amount=amount)
    assert made.get("id"), made

    async def booked() -> bool:
        return (await event_kinds(world, payment.payment_id)).count("reversed_out_of_band") > before

    await until(booked, "the out-of-band reversal on the books")
