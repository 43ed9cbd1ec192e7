"""Each fact at Stripe comes to the books by the events that endpoints are registered for.

The lists are not polled here, so a fact whose only event is not registered would never come.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dev.registered_events import REGISTERED_EVENTS
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.steps.dashboard import (
    bounce,
    captured_payment,
    days_pass,
    refund_out_of_band,
    reverse,
    transfer_out_of_band,
)
from tests.support.steps.disputes import LOST, WON, contest, decide, dispute_where, frozen
from tests.support.steps.payments import PLATFORM, event_kinds
from tests.support.world import CANCELED, CAPTURED, EXPIRED, IN_ESCROW, Payment, World, until

DAY = 24 * 3600
RARELY = 10 * DAY


async def _booked(world: World, payment: Payment, kind: str) -> None:
    async def probe() -> bool:
        return kind in await event_kinds(world, payment.payment_id)

    await until(probe, f"{kind} of {payment.payment_id}")


async def declined_and_then_paid(world: World) -> None:
    initiated = await world.initiate(await world.expert())
    await world.confirm(initiated, "pm_card_visa_chargeDeclined")

    async def failed() -> bool:
        return (await world.get(initiated.payment.payment_id)).HasField("last_failure")

    await until(failed, "the failed attempt")
    await world.confirm(initiated)
    await world.in_state(initiated.payment.payment_id, IN_ESCROW)


async def expired(world: World) -> None:
    held = await world.escrowed()
    await world.stripe.advance(8 * DAY)
    await world.in_state(held.payment_id, EXPIRED)


async def canceled_at_the_dashboard(world: World) -> None:
    held = await world.escrowed()
    await world.stripe.api("POST", f"/payment_intents/{held.payment_intent_id}/cancel")
    await world.in_state(held.payment_id, CANCELED)


async def captured_at_the_dashboard(world: World) -> None:
    held = await world.escrowed()
    await world.stripe.api("POST", f"/payment_intents/{held.payment_intent_id}/capture")
    await world.in_state(held.payment_id, CAPTURED)


async def refunded_at_the_dashboard_and_sent_back_by_the_bank(world: World) -> None:
    held = await world.escrowed(escrow_mode=PLATFORM)
    await refund_out_of_band(world, held, 2_000)
    await bounce(world, held.payment_id)


async def transferred_at_the_dashboard(world: World) -> None:
    held = await world.escrowed(escrow_mode=PLATFORM)
    await transfer_out_of_band(world, held, 1_500)
    await _booked(world, held, "transferred_out_of_band")


async def reversed_at_the_dashboard(world: World) -> None:
    payment = await captured_payment(world)
    await days_pass(world)
    await reverse(world, payment, 500)


async def commission_given_back_at_the_dashboard(world: World) -> None:
    payment = await world.captured()
    fee = (await world.stripe.api("GET", f"/charges/{payment.charge_id}"))["application_fee"]
    await world.stripe.api("POST", f"/application_fees/{fee}/refunds", amount=100)

    async def found() -> bool:
        return bool(await world.discrepancies(payment.payment_id))

    await until(found, "the refund of the commission")


def disputed(word: str, outcome: int) -> Callable[[World], Awaitable[None]]:
    async def fact(world: World) -> None:
        payment = await world.captured()
        dispute_id = await contest(world, payment)
        await dispute_where(world, dispute_id)
        await decide(world, dispute_id, word)
        await dispute_where(world, dispute_id, lambda one: one.outcome == outcome)

    return fact


async def inquired_and_escalated(world: World) -> None:
    payment = await world.captured()
    dispute_id = await contest(world, payment, inquiry=True)
    await _frozen(world, payment, "INQUIRY")
    await decide(world, dispute_id, "escalate")
    await _frozen(world, payment, "CHARGEBACK")


async def _frozen(world: World, payment: Payment, freeze: str) -> None:
    async def probe() -> bool:
        return await frozen(world, payment.payment_id) == freeze

    await until(probe, f"the freeze {freeze}")


async def warned_of_fraud(world: World) -> None:
    held = await world.escrowed()
    await world.stripe.control("POST", f"/charges/{held.charge_id}/early_fraud_warning", {})
    await _frozen(world, held, "FRAUD_WARNING")


async def reviewed(world: World) -> None:
    held = await world.escrowed()
    made = await world.stripe.control("POST", f"/charges/{held.charge_id}/review")
    await _frozen(world, held, "REVIEW")
    await world.stripe.control("POST", f"/reviews/{made['id']}/approve")
    await _frozen(world, held, "NONE")


@pytest.mark.parametrize(
    "fact",
    [
        declined_and_then_paid,
        expired,
        canceled_at_the_dashboard,
        captured_at_the_dashboard,
        refunded_at_the_dashboard_and_sent_back_by_the_bank,
        transferred_at_the_dashboard,
        reversed_at_the_dashboard,
        commission_given_back_at_the_dashboard,
        pytest.param(disputed("win", WON), id="a dispute that is won"),
        pytest.param(disputed("lose", LOST), id="a dispute that is lost"),
        inquired_and_escalated,
        warned_of_fraud,
        reviewed,
    ],
    ids=lambda fact: fact.__name__.replace("_", " "),
)
async def test_a_fact_comes_by_a_registered_event(
    start_world: StartWorld, fact: Callable[[World], Awaitable[Any]]
) -> None:
    rarely = ("poll_seconds", "account_poll_seconds", "payout_poll_seconds", "quiet_seconds")
    world = await start_world(
        simulator={"webhook_events": ",".join(REGISTERED_EVENTS)},
        policy={**dict.fromkeys(rarely, float(RARELY)), "reconcile_seconds": float(RARELY)},
    )
    await fact(world)
    await world.settle_down()
    await check_books(world)
    # Nothing came that is not acted upon, and nothing of a payment was read from a list. The lists
    # are read once, at the start.
    assert world.sql("SELECT type FROM webhook_events WHERE verdict = 'not_acted_upon'") == []
    listed = "SELECT type FROM webhook_events WHERE payload_sha256 = '' AND endpoint = 'platform'"
    assert world.sql(listed) == []
