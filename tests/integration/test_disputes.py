"""Disputes: what freezes, what is taken and from whom, and what is said to the client's bank."""

from __future__ import annotations

from typing import Any

import pytest

from marketplace.payments.v1 import disputes_pb2, payments_pb2
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.ports.records import Cause
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.kinds import kind_of
from tests.support.requests import capture_request, refund_request
from tests.support.steps.dashboard import keep_at_stripe
from tests.support.steps.disputes import (
    CHARGEBACK,
    CLOSED,
    LOST,
    OPEN,
    WON,
    contest,
    decide,
    dispute_where,
    frozen,
    settled,
)
from tests.support.steps.payments import event_kinds
from tests.support.world import CAPTURED, IN_ESCROW, REFUNDED, World, until

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD
INQUIRY = disputes_pb2.DISPUTE_STAGE_INQUIRY
#: Stripe's fee for a chargeback, at the simulator.
FEE = 1_500


# ---- freezes ----


async def test_an_inquiry_freezes_capture_alone_until_it_is_closed(world: World) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    dispute_id = await contest(world, held, inquiry=True)
    shown = await dispute_where(world, dispute_id)
    assert (shown.stage, shown.outcome, shown.withdrawn_amount.minor_units) == (INQUIRY, OPEN, 0)
    refused = await refusal(world.payments.CapturePayment(capture_request(held.payment_id)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PAYMENT_DISPUTED")
    assert refused.facts["dispute_id"] == dispute_id
    assert refused.facts["stage"] == "INQUIRY"
    assert (await world.refund(held.payment_id, 1_000)).held_amount.minor_units == 9_000
    await decide(world, dispute_id, "close_warning")
    await settled(world, held.payment_id, dispute_id, CLOSED)
    assert (await world.capture(held.payment_id)).state == CAPTURED
    await check_books(world)
    assert balance(world, "dispute_fee") == 0
    assert not await world.discrepancies()


async def test_a_full_refund_ends_an_inquiry(world: World) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    dispute_id = await contest(world, held, inquiry=True)
    await dispute_where(world, dispute_id)
    assert (await world.refund(held.payment_id)).state == REFUNDED
    await settled(world, held.payment_id, dispute_id, CLOSED)
    assert not await world.discrepancies()


async def test_an_inquiry_that_is_escalated_takes_the_money_and_freezes_refunds(
    world: World,
) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    dispute_id = await contest(world, held, inquiry=True)
    await dispute_where(world, dispute_id)
    await decide(world, dispute_id, "escalate")
    shown = await dispute_where(world, dispute_id, lambda dispute: dispute.stage == CHARGEBACK)
    assert (shown.withdrawn_amount.minor_units, shown.fee.minor_units) == (10_000, FEE)
    for call in (
        world.payments.CapturePayment(capture_request(held.payment_id)),
        world.payments.RefundPayment(refund_request(held.payment_id)),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PAYMENT_DISPUTED")
        assert refused.facts["stage"] == "CHARGEBACK"
    await check_books(world)
    assert balance(world, f"dispute_hold:{held.payment_id}") == 10_000
    assert [kind for kind in await event_kinds(world, held.payment_id) if "dispute" in kind] == [
        "dispute_opened",
        "dispute_escalated",
        "dispute_funds_withdrawn",
    ]


# ---- won and lost ----


async def test_a_won_dispute_returns_the_money_and_unfreezes_the_payment(world: World) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    dispute_id = await contest(world, held)
    await dispute_where(world, dispute_id)
    await decide(world, dispute_id, "win")
    await settled(world, held.payment_id, dispute_id, WON)
    assert balance(world, f"dispute_hold:{held.payment_id}") == 0
    assert balance(world, "dispute_fee") == FEE
    assert (await world.capture(held.payment_id, 4_000)).state == IN_ESCROW
    assert (await world.refund(held.payment_id)).state == CAPTURED
    await check_books(world)
    assert not await world.discrepancies()


async def test_a_fee_that_stripe_gives_back_is_on_the_books(world: World) -> None:
    await world.stripe.control("POST", "/settings", {"dispute_fee_returned": True})
    payment = await world.captured(amount=10_000)
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id)
    await decide(world, dispute_id, "win")
    await settled(world, payment.payment_id, dispute_id, WON)
    assert balance(world, "dispute_fee") == 0


async def test_a_dispute_lost_in_escrow_takes_what_is_held_and_nothing_of_the_expert(
    world: World,
) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    dispute_id = await contest(world, held)
    await dispute_where(world, dispute_id)
    await decide(world, dispute_id, "lose")
    payment = await settled(world, held.payment_id, dispute_id, LOST)
    assert payment.state == REFUNDED
    assert payment.held_amount.minor_units == 0
    assert payment.lost_amount.minor_units == payment.lost_held_amount.minor_units == 10_000
    assert balance(world, f"expert_debt:{expert}") == 0
    assert balance(world, "losses") == 0
    assert not await world.discrepancies()


@pytest.mark.parametrize(
    ("amount", "currency", "rate"),
    [(10_000, "USD", 1_000), (1_001, "JPY", 1_000), (10_050, "KWD", 1_250)],
)
@pytest.mark.parametrize("mode", [{}, {"escrow_mode": PLATFORM}], ids=["destination", "platform"])
async def test_a_dispute_lost_after_capture_is_taken_back_from_the_expert(
    start_world: StartWorld, amount: int, currency: str, rate: int, mode: dict[str, Any]
) -> None:
    names = ("USD", "JPY", "KWD")
    world = await start_world(
        platform_settlement_currencies=names,
        simulator={"settlement_currencies": tuple(name.lower() for name in names)},
    )
    await keep_at_stripe(world)
    expert = await world.expert(commission_basis_points=rate)
    payment = await world.captured(expert, amount, currency, **mode)
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id)
    # Funds that are pending cannot be reversed out of a transfer that was made on its own.
    await world.stripe.advance(3 * 24 * 3600)
    await decide(world, dispute_id, "lose")
    payment = await settled(world, payment.payment_id, dispute_id, LOST)
    assert payment.state == REFUNDED
    assert (payment.net_amount.minor_units, payment.net_commission.minor_units) == (0, 0)
    assert payment.lost_amount.minor_units == amount
    assert payment.refunded_amount.minor_units == payment.lost_held_amount.minor_units == 0
    for account in (f"stripe:connected:{expert}", f"expert_debt:{expert}", "commission", "losses"):
        assert balance(world, account, currency) == 0
    assert balance(world, "dispute_fee", currency) == FEE
    assert not await world.discrepancies()


async def test_a_refused_reversal_after_a_loss_is_the_experts_debt(
    world: World,
) -> None:
    expert = await world.expert()
    payment = await world.captured(expert, 10_000)
    await world.stripe.control(
        "POST",
        "/balance",
        {
            "account": world.account_of(expert),
            "amount": -9_000,
            "currency": "usd",
            "type": "payout",
        },
    )
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id)
    await decide(world, dispute_id, "lose")
    payment = await settled(world, payment.payment_id, dispute_id, LOST)
    assert payment.state == REFUNDED
    assert balance(world, f"expert_debt:{expert}") == 9_000
    assert balance(world, "commission") == 0
    # The next capture keeps it back.
    following = await world.captured(expert, 20_000)
    assert following.state == CAPTURED
    assert balance(world, f"expert_debt:{expert}") == 0
    await check_books(world)


async def test_a_dispute_lost_after_a_full_refund_is_the_platforms_loss(world: World) -> None:
    payment = await world.captured(amount=10_000)
    await world.refund(payment.payment_id)
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id)
    await decide(world, dispute_id, "lose")
    payment = await settled(world, payment.payment_id, dispute_id, LOST)
    assert payment.state == REFUNDED
    assert payment.lost_amount.minor_units == 0
    assert balance(world, "losses") == 10_000


async def test_a_dispute_that_is_appealed_twice_is_lost_once_in_the_end(world: World) -> None:
    await keep_at_stripe(world)
    payment = await world.captured(amount=10_000)
    await world.stripe.advance(3 * 24 * 3600)
    await world.refund(payment.payment_id, 4_000)
    dispute_id = await contest(world, payment)
    await decide(world, dispute_id, "lose")
    after = await settled(world, payment.payment_id, dispute_id, LOST)
    expert = f"expert_debt:{payment.expert_id}"
    assert (after.lost_amount.minor_units, balance(world, "losses")) == (6_000, 4_000)
    for losses, word, outcome in ((-6_000, "win", WON), (4_000, "lose", LOST)) * 2:
        await decide(world, dispute_id, "appeal")
        shown = await dispute_where(world, dispute_id, lambda one: one.status.startswith("appeal"))
        assert shown.outcome == disputes_pb2.DISPUTE_OUTCOME_OPEN
        assert await frozen(world, payment.payment_id) == "CHARGEBACK"
        await decide(world, dispute_id, word)
        after = await settled(world, payment.payment_id, dispute_id, outcome)
        assert (balance(world, "losses"), balance(world, expert)) == (losses, 0)
        shown = await dispute_where(world, dispute_id)
        assert shown.lost_amount.minor_units == (10_000 if outcome == LOST else 0)
        assert (after.lost_amount.minor_units, after.net_amount.minor_units) == (6_000, 0)
    assert len(await world.stripe.effects("reversed")) == 2


async def test_partial_losses_reduce_escrow_first_and_then_the_newest_transfer(
    world: World,
) -> None:
    await keep_at_stripe(world)
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    for part in (3_000, 4_000):
        await world.capture(held.payment_id, part)
    await world.refund(held.payment_id, 1_000)
    await world.stripe.advance(3 * 24 * 3600)
    # 2,000 are held, 7,000 were paid out: of 4,500 lost 2,500 come back from the newest transfer.
    first = await contest(world, held, amount=4_500)
    await dispute_where(world, first)
    await decide(world, first, "lose")
    payment = await settled(world, held.payment_id, first, LOST)
    assert payment.state == CAPTURED
    assert payment.lost_amount.minor_units == 4_500
    assert payment.lost_held_amount.minor_units == 2_000
    assert (payment.net_amount.minor_units, payment.net_commission.minor_units) == (4_500, 450)
    assert balance(world, f"stripe:connected:{expert}") == 4_050
    # Another dispute of the same charge takes the remainder, and 500 beyond it.
    second = await contest(world, held, amount=5_000)
    await dispute_where(world, second)
    await decide(world, second, "lose")
    payment = await settled(world, held.payment_id, second, LOST)
    assert (payment.state, payment.net_amount.minor_units) == (REFUNDED, 0)
    assert balance(world, f"stripe:connected:{expert}") == 0
    assert balance(world, "losses") == 500
    assert not await world.discrepancies()


async def test_a_partial_loss_in_escrow_leaves_the_remainder_to_be_captured(world: World) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    dispute_id = await contest(world, held, amount=4_000)
    await dispute_where(world, dispute_id)
    await decide(world, dispute_id, "lose")
    payment = await settled(world, held.payment_id, dispute_id, LOST)
    assert (payment.state, payment.held_amount.minor_units) == (IN_ESCROW, 6_000)
    # Stripe refunds nothing of a charge that was lost, and says so in its own word.
    refused = await refusal(world.payments.RefundPayment(refund_request(held.payment_id)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PAYMENT_DISPUTED")
    assert refused.facts["stripe_code"] == "charge_disputed"
    assert (await world.capture(held.payment_id)).net_commission.minor_units == 600
    await check_books(world)


async def test_a_charge_settled_in_another_currency_is_followed_over_fx(
    start_world: StartWorld,
) -> None:
    world = await start_world(simulator={"settlement_currencies": ("usd",)})
    expert = await world.expert()
    payment = await world.captured(expert, 10_010, "JPY")
    first = await contest(world, payment)
    await dispute_where(world, first)
    await decide(world, first, "win")
    await settled(world, payment.payment_id, first, WON)
    second = await contest(world, payment)
    await dispute_where(world, second)
    await decide(world, second, "lose")
    payment = await settled(world, payment.payment_id, second, LOST)
    assert payment.lost_amount.minor_units == 10_010
    assert balance(world, f"dispute_hold:{payment.payment_id}", "JPY") == 0
    assert balance(world, "commission", "JPY") == 0
    assert balance(world, "dispute_fee") == 2 * FEE


# ---- at any time, in any order ----


async def test_a_refund_that_stripe_refuses_for_an_unsynced_dispute_is_answered_by_our_plan(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy={"poll_seconds": 3600.0, "quiet_seconds": 3600.0})
    payment = await world.captured(amount=10_000)
    await world.settle_down()
    await world.pause_webhooks()
    dispute_id = await contest(world, payment)
    refused = await refusal(world.payments.RefundPayment(refund_request(payment.payment_id)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PAYMENT_DISPUTED")
    assert refused.facts["dispute_id"] == dispute_id
    assert not (await world.get(payment.payment_id)).HasField("last_failure")
    assert await frozen(world, payment.payment_id) == "CHARGEBACK"
    await check_books(world)


async def test_a_dispute_is_followed_although_no_webhook_comes(start_world: StartWorld) -> None:
    world = await start_world(policy={"poll_seconds": 0.3})
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    payment = await world.captured(amount=10_000)
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id)
    await decide(world, dispute_id, "lose")
    payment = await settled(world, payment.payment_id, dispute_id, LOST)
    assert payment.state == REFUNDED


async def test_webhooks_that_come_twice_and_in_any_order_change_nothing(world: World) -> None:
    for action in ("duplicate", "reorder"):
        await world.stripe.control(
            "POST", "/webhooks/rules", {"action": action, "type": "^charge\\.dispute\\."}
        )
    payment = await world.captured(amount=10_000)
    dispute_id = await contest(world, payment, inquiry=True)
    await decide(world, dispute_id, "escalate")
    await decide(world, dispute_id, "win")
    await settled(world, payment.payment_id, dispute_id, WON)
    for event in (await world.stripe.api("GET", "/events", limit=100))["data"]:
        if event["type"].startswith("charge.dispute."):
            await world.stripe.control("POST", f"/events/{event['id']}/redeliver")
    before = (await world.get(payment.payment_id)).version
    await check_books(world)
    assert (await world.get(payment.payment_id)).version == before
    seen = [kind for kind in await event_kinds(world, payment.payment_id) if "dispute" in kind]
    assert sorted(set(seen)) == sorted(seen)  # Each once.


async def test_a_capture_that_waits_for_the_expert_is_preempted_by_a_loss(world: World) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    account = world.account_of(expert)
    await world.stripe.control(
        "POST", f"/accounts/{account}/restrict", {"capabilities": {"transfers": "inactive"}}
    )
    waiting = await world.capture(held.payment_id)
    assert waiting.waiting_for == payments_pb2.WAITING_FOR_EXPERT
    dispute_id = await contest(world, held)
    await dispute_where(world, dispute_id)
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    await world.settle_down()
    assert not await world.stripe.effects("transferred", held.payment_intent_id)
    await decide(world, dispute_id, "lose")
    payment = await settled(world, held.payment_id, dispute_id, LOST)
    assert (payment.state, payment.lost_held_amount.minor_units) == (REFUNDED, 10_000)
    assert "capture_abandoned" in await event_kinds(world, held.payment_id)


@pytest.mark.parametrize(
    "fields",
    [{}, {"on_deadline": payments_pb2.ON_DEADLINE_PROMOTE}],
    ids=["destination", "separate"],
)
async def test_a_hold_is_disputed_only_once_it_is_captured(
    world: World, fields: dict[str, Any]
) -> None:
    held = await world.escrowed(amount=10_000, card="pm_card_createDispute", **fields)
    assert held.freeze == payments_pb2.PAYMENT_FREEZE_NONE
    payment = await world.capture(held.payment_id)
    assert payment.state == CAPTURED

    async def probe() -> bool:
        return await frozen(world, held.payment_id) == "CHARGEBACK"

    await until(probe, "the dispute of the test card")
    await check_books(world)
    assert not await world.discrepancies()


async def test_a_recovery_interrupted_by_a_crash_is_finished_by_the_background_job(
    start_world: StartWorld,
) -> None:
    """The loss and the reversal are recorded in one transaction; no process is left to send it."""
    world = await start_world(policy={"lease": 0.5})
    assert world.service is not None
    expert = await world.expert()
    payment = await world.captured(expert, 10_000)
    await world.settle_down()
    await world.service.stop()
    await world.service.start(loops=False)
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    dispute_id = await contest(world, payment)
    await decide(world, dispute_id, "lose")
    app = world.service.app
    applied = await sync_payment(app, payment.payment_id, Cause("test", "look"))
    assert applied.next_operation is not None
    assert not await world.stripe.effects("reversed")
    world.service.start_loops()
    await until(lambda: world.stripe.effects("reversed"), "the reversal")
    await world.stripe.control("POST", "/webhooks", {"paused": False})
    assert (await settled(world, payment.payment_id, dispute_id, LOST)).state == REFUNDED
    assert balance(world, f"stripe:connected:{expert}") == 0


# ---- early fraud warnings ----


@pytest.mark.parametrize("setting", ["freeze", "alert"])
async def test_a_fraud_warning_freezes_capture_if_that_is_the_policy(
    start_world: StartWorld, setting: str
) -> None:
    world = await start_world(fraud_warning=setting)
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.stripe.control("POST", f"/charges/{held.charge_id}/early_fraud_warning", {})

    async def probe() -> bool:
        return "fraud_warning" in await event_kinds(world, held.payment_id)

    await until(probe, "the fraud warning")
    if setting == "alert":
        assert (await world.capture(held.payment_id)).state == CAPTURED
    else:
        refused = await refusal(world.payments.CapturePayment(capture_request(held.payment_id)))
        assert (refused.reason, refused.facts["stage"]) == ("PAYMENT_DISPUTED", "FRAUD_WARNING")
        assert (await world.refund(held.payment_id)).state == REFUNDED
        await world.settle_down()

        async def over() -> bool:
            return await frozen(world, held.payment_id) == "NONE"

        await until(over, "nothing left to be warned of")
    await check_books(world)
    assert not await world.discrepancies()


# ---- more lines than Stripe documents ----


@pytest.mark.parametrize(
    ("amounts", "lost", "told"),
    [
        ([-7], 1_000_000, False),
        ([7], 999_417, False),
        ([6_000], 500_000, False),
        ([7, -7], 1_000_000, True),
    ],
)
async def test_further_lines_of_a_converted_dispute_are_as_much_as_they_are(
    world: World, amounts: list[int], lost: int, *, told: bool
) -> None:
    """10,000.00 INR that Stripe settles at 120.00 USD: a line of 7 cents is not the dispute."""
    payment = await world.captured(amount=1_000_000, currency="INR")
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id, lambda dispute: dispute.withdrawn_amount.minor_units > 0)
    [withdrawn] = [line for line in await world.stripe.lines() if line["source"] == dispute_id]
    assert (withdrawn["amount"], withdrawn["currency"]) == (-12_000, "usd")
    for amount in amounts:
        await world.stripe.control("POST", f"/disputes/{dispute_id}/adjust", {"amount": amount})
    await decide(world, dispute_id, "lose")
    await settled(world, payment.payment_id, dispute_id, LOST)
    assert (await world.get(payment.payment_id)).lost_amount.minor_units == lost
    kinds = {kind_of(found) for found in await world.discrepancies(payment.payment_id)}
    assert kinds == ({"dispute_lines_unexplained"} if told else set())
