"""The client payable after a failed refund: booked at once, and paid once, in any way."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from grpc import aio

from marketplace.payments.v1 import disputes_pb2, experts_pb2, operations_pb2, payments_pb2
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.kinds import kind_of
from tests.support.requests import capture_request, new_key
from tests.support.steps.dashboard import bounce, keep_at_stripe
from tests.support.steps.disputes import LOST, WON, contest, decide, dispute_where, settled
from tests.support.steps.operators import repaid, repayments, resume
from tests.support.steps.payments import event_kinds, owed, waiting_capture
from tests.support.world import (
    CAPTURED,
    CAPTURING,
    IN_ESCROW,
    REFUNDED,
    REFUNDING,
    Payment,
    World,
    until,
)

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD
MODES = pytest.mark.parametrize(
    "mode", [{}, {"escrow_mode": PLATFORM}], ids=["destination", "platform"]
)


# ---- behind an operation that takes its time ----


@pytest.mark.parametrize("restarted", [False, True], ids=["alive", "restarted"])
async def test_failed_refund_is_booked_while_a_capture_waits_for_its_expert(
    world: World, restarted: bool
) -> None:
    payment, account = await waiting_capture(world, 2_000, 3_000)
    await bounce(world, payment.payment_id)
    now = await world.get(payment.payment_id)
    assert (now.state, now.waiting_for) == (CAPTURING, payments_pb2.WAITING_FOR_EXPERT)
    assert owed(world, payment.payment_id) == 2_000
    assert not repayments(world, payment.payment_id)
    assert [kind_of(one) for one in await world.discrepancies()] == ["refund_failed"]
    await check_books(world)
    if restarted:
        assert world.service is not None
        await world.service.restart()
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    now = await world.in_state(payment.payment_id, REFUNDING)
    assert (now.waiting_for, now.captured_amount.minor_units) == (
        payments_pb2.WAITING_FOR_OPERATOR,
        3_000,
    )
    now = await repaid(world, payment.payment_id, IN_ESCROW)
    assert now.held_amount.minor_units == 5_000
    assert len(await world.stripe.effects("refunded")) == 2


async def test_a_refund_that_abandons_the_capture_comes_before_the_client_payable(
    world: World,
) -> None:
    payment, account = await waiting_capture(world, 2_000, 3_000)
    await asyncio.gather(bounce(world, payment.payment_id), world.refund(payment.payment_id, 8_000))
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    await check_books(world)
    now = await world.get(payment.payment_id)
    assert (now.state, now.waiting_for) == (REFUNDING, payments_pb2.WAITING_FOR_OPERATOR)
    assert owed(world, payment.payment_id) == 2_000
    await repaid(world, payment.payment_id, REFUNDED)
    assert not await world.stripe.effects("transferred")


async def test_failed_refund_is_booked_while_a_capture_is_unknown_or_refused(world: World) -> None:
    held = await world.escrowed("", 10_000, escrow_mode=PLATFORM)
    await world.refund(held.payment_id, 2_000)
    await world.stripe.fault("/transfers$", "status", "before", times=None, status=503)
    request = capture_request(held.payment_id, 3_000)
    assert (await refusal(world.payments.CapturePayment(request))).code == "UNAVAILABLE"
    await bounce(world, held.payment_id)
    assert owed(world, held.payment_id) == 2_000
    assert (await world.get(held.payment_id)).state == CAPTURING
    await world.stripe.clear_faults()
    await world.stripe.fault("/transfers$", "status", status=400, code="no_such_thing")
    await world.in_state(held.payment_id, REFUNDING)
    assert "capture_refused" in await event_kinds(world, held.payment_id)
    assert [(units, state) for _, units, state in repayments(world, held.payment_id)] == [
        (2_000, "PARKED")
    ]
    await repaid(world, held.payment_id, IN_ESCROW)


async def test_two_failed_refunds_are_both_payable_and_repaid_one_after_the_other(
    world: World,
) -> None:
    held = await world.escrowed("", 10_000, escrow_mode=PLATFORM)
    for part in (1_000, 2_000):
        await world.refund(held.payment_id, part)
    refunds = world.sql("SELECT movement_id FROM movements WHERE kind = 'refund'")
    for (refund,) in refunds:
        await world.stripe.control("POST", f"/refunds/{refund}/fail")
    await check_books(world)
    assert owed(world, held.payment_id) == 3_000
    for _ in range(2):
        parked = [one for one in repayments(world, held.payment_id) if one[2] == "PARKED"]
        if not parked:
            break
        await resume(world, parked[0][0])
        await check_books(world)
        await world.stripe.control("POST", "/webhooks/settle", {"seconds": 10})

        async def paid(operation_id: str = parked[0][0]) -> bool:
            return (operation_id, "SUCCEEDED") in {
                (one, state) for one, _, state in repayments(world, held.payment_id)
            }

        await until(paid, "the repayment")
    assert owed(world, held.payment_id) == 0
    assert (await world.get(held.payment_id)).state == IN_ESCROW
    await check_books(world)


# ---- a capture that waits, and a refund out of band ----


@pytest.mark.parametrize(("out_of_band", "left"), [(8_000, 0), (7_000, 1_000), (5_000, 3_000)])
async def test_a_waiting_capture_is_not_resumed_beside_an_unsynced_refund(
    start_world: StartWorld, out_of_band: int, left: int
) -> None:
    """No webhook reports it, and nothing is polled: the capture's retry must sync first."""
    world = await start_world(policy={"poll_seconds": 3600.0, "quiet_seconds": 3600.0})
    payment, account = await waiting_capture(world, 2_000, 3_000, idempotency_key="once")
    await world.settle_down()
    await world.pause_webhooks()
    await world.stripe.api(
        "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=out_of_band
    )
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    await world.expert_status(payment.expert_id, experts_pb2.EXPERT_STATUS_READY)

    async def waits() -> bool:
        return (
            await world.get(payment.payment_id)
        ).waiting_for == payments_pb2.WAITING_FOR_OPERATOR

    await until(waits, "the capture parked for an operator")
    now = await world.get(payment.payment_id)
    assert (now.state, now.held_amount.minor_units) == (CAPTURING, left)
    assert not await world.stripe.effects("transferred", payment.payment_intent_id)
    [(operation_id,)] = world.sql("SELECT operation_id FROM operations WHERE state = 'PARKED'")
    if left < 3_000:
        assert (await refusal(resume(world, operation_id))).reason == "AMOUNT_TOO_LARGE"
        await world.operations.AbandonOperation(
            operations_pb2.AbandonOperationRequest(operation_id=operation_id, reason="refunded")
        )
        after = await world.in_state(payment.payment_id, IN_ESCROW if left else REFUNDED)
        assert after.waiting_for == payments_pb2.WAITING_FOR_UNSPECIFIED
    else:
        await resume(world, operation_id)
        after = await world.in_state(payment.payment_id, CAPTURED)
        assert after.captured_amount.minor_units == 3_000
    # Its caller's answer stays: the capture was in progress then.
    assert await world.capture(payment.payment_id, 3_000, idempotency_key="once") == payment
    await check_books(world)


async def test_a_parked_capture_is_not_resumed_beside_an_unsynced_refund(
    start_world: StartWorld,
) -> None:
    """No webhook reports it, and nothing is polled: the resume must sync first."""
    world = await start_world(policy={"poll_seconds": 3600.0, "quiet_seconds": 3600.0})
    held = await world.escrowed("", 10_000, escrow_mode=PLATFORM)
    await world.settle_down()
    await world.stripe.fault("/transfers$", "status", status=401)
    await refusal(world.payments.CapturePayment(capture_request(held.payment_id, 4_000)))
    [(operation_id,)] = world.sql("SELECT operation_id FROM operations WHERE state = 'PARKED'")
    # While Stripe refuses us the cause remains: nothing is resumed, and the operator gets an error.
    await world.stripe.fault("/payment_intents/", "status", status=401, match={"method": "GET"})
    assert (await refusal(resume(world, operation_id))).reason == "PROCESSOR_MISCONFIGURED"
    await world.stripe.clear_faults()
    await world.pause_webhooks()
    await world.stripe.api("POST", "/refunds", payment_intent=held.payment_intent_id, amount=8_000)
    assert (await refusal(resume(world, operation_id))).reason == "CONCURRENT_CHANGE"
    assert (await world.get(held.payment_id)).held_amount.minor_units == 2_000
    assert (await refusal(resume(world, operation_id))).reason == "AMOUNT_TOO_LARGE"
    assert not await world.stripe.effects("transferred", held.payment_intent_id)
    await check_books(world)


# ---- a dispute on the same charge ----


async def owing(world: World, mode: dict[str, Any]) -> Payment:
    """A refund of 4,000 of 10,000 failed: it is client payable, and nothing is pending."""
    await keep_at_stripe(world)
    payment = await world.captured(amount=10_000, **mode)
    await world.stripe.advance(3 * 24 * 3600)
    await world.refund(payment.payment_id, 4_000)
    await bounce(world, payment.payment_id)
    return await world.in_state(payment.payment_id, REFUNDING)


@MODES
@pytest.mark.parametrize(("lost", "left", "net"), [(10_000, 0, 0), (4_000, 0, 6_000)])
async def test_a_loss_reduces_the_client_payable_and_nothing_is_paid_twice(
    world: World, mode: dict[str, Any], lost: int, left: int, net: int
) -> None:
    payment = await owing(world, mode)
    [(operation_id, _, _)] = repayments(world, payment.payment_id)
    dispute_id = await contest(world, payment, amount=lost)
    await dispute_where(world, dispute_id)
    refused = await refusal(resume(world, operation_id))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PAYMENT_DISPUTED")
    assert refused.facts["stage"] == "CHARGEBACK"
    await decide(world, dispute_id, "lose")
    after = await settled(world, payment.payment_id, dispute_id, LOST)
    assert after.net_amount.minor_units == net
    assert after.lost_amount.minor_units == lost - 4_000
    assert owed(world, payment.payment_id) == left
    assert balance(world, "losses") == 0
    assert [state for _, _, state in repayments(world, payment.payment_id)] == ["REFUSED"]
    assert (await refusal(resume(world, operation_id))).reason == "WRONG_STATE"
    assert len(await world.stripe.effects("refunded")) == 1


@MODES
async def test_a_loss_below_the_client_payable_leaves_the_remainder_payable(
    world: World, mode: dict[str, Any]
) -> None:
    payment = await owing(world, mode)
    dispute_id = await contest(world, payment, amount=1_500)
    await decide(world, dispute_id, "lose")
    after = await settled(world, payment.payment_id, dispute_id, LOST)
    assert (after.state, after.waiting_for) == (REFUNDING, payments_pb2.WAITING_FOR_OPERATOR)
    assert (after.net_amount.minor_units, after.lost_amount.minor_units) == (6_000, 0)
    assert owed(world, payment.payment_id) == 2_500
    assert [(units, state) for _, units, state in repayments(world, payment.payment_id)] == [
        (4_000, "REFUSED"),
        (2_500, "PARKED"),
    ]


@MODES
async def test_client_payable_is_repaid_after_a_won_dispute(
    world: World, mode: dict[str, Any]
) -> None:
    payment = await owing(world, mode)
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id)
    await decide(world, dispute_id, "win")
    await settled(world, payment.payment_id, dispute_id, WON)
    await repaid(world, payment.payment_id, CAPTURED)


@MODES
async def test_a_refund_that_fails_after_the_loss_is_parked_and_not_paid_again(
    world: World, mode: dict[str, Any]
) -> None:
    """The bank has paid the client: Stripe refunds nothing more, and the operator settles it."""
    await keep_at_stripe(world)
    payment = await world.captured(amount=10_000, **mode)
    await world.stripe.advance(3 * 24 * 3600)
    await world.refund(payment.payment_id, 4_000)
    dispute_id = await contest(world, payment)
    await decide(world, dispute_id, "lose")
    await settled(world, payment.payment_id, dispute_id, LOST)
    assert balance(world, "losses") == 4_000
    await bounce(world, payment.payment_id)
    await check_books(world)
    assert (owed(world, payment.payment_id), balance(world, "losses")) == (4_000, 4_000)
    [(operation_id, units, state)] = repayments(world, payment.payment_id)
    assert (units, state) == (4_000, "PARKED")
    await resume(world, operation_id)

    async def refused() -> bool:
        return bool(
            world.sql(
                "SELECT 1 FROM operations WHERE operation_id = %s AND state = 'PARKED' "
                "AND last_error LIKE 'charge_disputed%%'",
                operation_id,
            )
        )

    await until(refused, "Stripe's refusal")
    await world.operations.SettleClientPayable(
        operations_pb2.SettleClientPayableRequest(
            payment_id=payment.payment_id, reason="the bank has paid", idempotency_key=new_key()
        )
    )
    assert (await world.get(payment.payment_id)).state == REFUNDED
    assert owed(world, payment.payment_id) == 0
    assert len(await world.stripe.effects("refunded")) == 1
    await check_books(world)


@MODES
async def test_a_won_appeal_is_booked_against_losses_and_reported(
    world: World, mode: dict[str, Any]
) -> None:
    await keep_at_stripe(world)
    payment = await world.captured(amount=10_000, **mode)
    await world.stripe.advance(3 * 24 * 3600)
    await world.refund(payment.payment_id, 4_000)
    await bounce(world, payment.payment_id)
    dispute_id = await contest(world, payment)
    await decide(world, dispute_id, "lose")
    await settled(world, payment.payment_id, dispute_id, LOST)
    assert (owed(world, payment.payment_id), balance(world, "losses")) == (0, 0)
    for word in ("appeal", "win"):
        await decide(world, dispute_id, word)
    await settled(world, payment.payment_id, dispute_id, WON)
    assert (owed(world, payment.payment_id), balance(world, "losses")) == (0, -10_000)
    [discrepancy] = [
        one for one in await world.discrepancies() if kind_of(one) == "reinstated_after_loss"
    ]
    assert discrepancy.detail == f"{dispute_id}: 10000 came back"
    assert (
        await world.disputes.GetDispute(disputes_pb2.GetDisputeRequest(dispute_id=dispute_id))
    ).dispute.lost_amount.minor_units == 0
    assert len(await world.stripe.effects("refunded")) == 1
    await check_books(world)


@MODES
@pytest.mark.parametrize("pause", [0.0, 0.05, 0.2])
async def test_resuming_while_the_bank_decides_pays_the_client_once(
    world: World, mode: dict[str, Any], pause: float
) -> None:
    payment = await owing(world, mode)
    [(operation_id, _, _)] = repayments(world, payment.payment_id)

    async def lose() -> str:
        await asyncio.sleep(pause)
        dispute_id = await contest(world, payment)
        await decide(world, dispute_id, "lose")
        return dispute_id

    async def try_to_resume() -> None:
        await asyncio.gather(resume(world, operation_id), return_exceptions=True)

    dispute_id, _ = await asyncio.gather(lose(), try_to_resume())
    after = await settled(world, payment.payment_id, dispute_id, LOST)
    assert (after.state, owed(world, payment.payment_id)) == (REFUNDED, 0)
    # In either order: what the client got twice is the platform's loss, and is on the books.
    again = len(await world.stripe.effects("refunded")) - 1
    assert balance(world, "losses") == 4_000 * again


# ---- by a hand at Stripe's dashboard ----


@pytest.mark.parametrize(("out_of_band", "paid_by_us"), [(4_000, 0), (1_000, 3_000), (6_000, 0)])
async def test_a_resume_does_not_repeat_an_unsynced_out_of_band_refund(
    start_world: StartWorld, out_of_band: int, paid_by_us: int
) -> None:
    """No webhook reports it, and nothing is polled: a resume must sync first."""
    quiet = {"poll_seconds": 3600.0, "account_poll_seconds": 3600.0}
    world = await start_world(policy=quiet)
    payment = await owing(world, {})
    [(operation_id, _, _)] = repayments(world, payment.payment_id)
    await world.pause_webhooks()
    await world.stripe.api(
        "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=out_of_band
    )
    with suppress(aio.AioRpcError):  # The service may have asked Stripe just before by itself.
        await resume(world, operation_id)

    async def ended() -> bool:
        return repayments(world, payment.payment_id)[0][2] in ("SUCCEEDED", "REFUSED")

    await until(ended, "the end of the first repayment")
    await world.stripe.control("POST", "/webhooks", {"paused": False})
    await check_books(world)
    assert owed(world, payment.payment_id) == paid_by_us
    assert "out_of_band_refund" in {kind_of(one) for one in await world.discrepancies()}
    if paid_by_us:
        await repaid(world, payment.payment_id, CAPTURED)
    made = [effect["amount"] for effect in await world.stripe.effects("refunded")]
    assert made == [4_000, out_of_band, *([paid_by_us] if paid_by_us else [])]
    after = await world.in_state(payment.payment_id, CAPTURED)
    assert after.net_amount.minor_units == 6_000 - max(out_of_band - 4_000, 0)


async def test_out_of_band_fee_refund_is_reversed_with_the_remainder(
    world: World,
) -> None:
    await keep_at_stripe(world)
    expert = await world.expert()
    payment = await world.captured(expert, 10_000)
    fee = (await world.stripe.api("GET", f"/charges/{payment.charge_id}"))["application_fee"]
    await world.stripe.api("POST", f"/application_fees/{fee}/refunds", amount=200)

    async def followed() -> bool:
        return (await world.get(payment.payment_id)).net_commission.minor_units == 800

    await until(followed, "the fee refund")
    await check_books(world)
    assert balance(world, "commission") == -800
    assert (await world.refund(payment.payment_id)).state == REFUNDED
    await check_books(world)
    accounts = (f"stripe:connected:{expert}", f"expert_debt:{expert}", "commission", "losses")
    assert [balance(world, account) for account in accounts] == [0, 0, 0, 0]
