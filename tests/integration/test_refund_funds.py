"""Refunds of a marketplace whose own money is its commissions, and debts that are collected."""

from __future__ import annotations

from typing import Any

import pytest

from marketplace.payments.v1 import experts_pb2, operations_pb2, payments_pb2
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.kinds import kind_of
from tests.support.requests import capture_request, refund_request
from tests.support.steps.dashboard import days_pass, keep_at_stripe
from tests.support.steps.debts import (
    POOR,
    SOON,
    debt_of,
    reversals,
    top_up,
    until_reversed,
)
from tests.support.steps.payments import PLATFORM, event_kinds
from tests.support.world import (
    CAPTURED,
    CAPTURING,
    REFUNDED,
    REFUNDING,
    World,
    until,
)

PENDING_FUNDS = payments_pb2.WAITING_REASON_REFUND_PENDING_FUNDS


@pytest.fixture
async def poor(start_world: StartWorld) -> World:
    """A world whose platform has no money of its own, and checks often."""
    world = await start_world(policy=SOON, **POOR)
    await keep_at_stripe(world)
    return world


async def waiting_discrepancies(world: World) -> list[tuple[str, int, int, bool]]:
    return [
        (
            kind_of(one),
            one.expected.minor_units,
            one.found.minor_units,
            one.HasField("resolve_time"),
        )
        for one in await world.discrepancies()
        if kind_of(one) == "refund_waits_for_funds"
    ]


async def test_a_refund_that_the_balance_does_not_cover_is_accepted_and_paid_later(
    poor: World,
) -> None:
    """The ordinary case: a captured card hold, and a platform that has its commission alone."""
    world = poor
    paid = await world.captured(amount=10_000)
    request = refund_request(paid.payment_id)
    first = await world.bytes_of("RefundPayment", request)
    assert first.code == "OK"
    answer = payments_pb2.RefundPaymentResponse.FromString(first.body).payment
    assert (answer.state, answer.waiting_for, answer.waiting_reason) == (
        REFUNDING,
        payments_pb2.WAITING_FOR_PROCESSOR,
        PENDING_FUNDS,
    )
    assert answer.pending_refund_amount.minor_units == 10_000
    assert answer.refunded_amount.minor_units == 10_000
    # The same key gets the same answer, and nothing is refunded twice.
    assert await world.bytes_of("RefundPayment", request) == first
    # The expert's part is fetched meanwhile: it pays for the refund.
    await until_reversed(world, 9_000)

    async def told() -> bool:
        found = await waiting_discrepancies(world)
        return bool(found) and not found[0][3]

    await until(told, "a discrepancy that names what is missing")
    await days_pass(world)

    async def missing() -> bool:
        return await waiting_discrepancies(world) == [
            ("refund_waits_for_funds", 10_000, 9_680, False)
        ]

    await until(missing, "Stripe's own fee is what is missing")
    assert (await world.get(paid.payment_id)).state == REFUNDING
    await top_up(world, 320)
    refunded = await world.in_state(paid.payment_id, REFUNDED)
    assert refunded.pending_refund_amount.minor_units == 0
    assert refunded.waiting_reason == payments_pb2.WAITING_REASON_UNSPECIFIED
    assert [one[3] for one in await waiting_discrepancies(world)] == [True]
    assert await world.bytes_of("RefundPayment", request) == first
    assert len(await world.stripe.effects("refunded")) == 1
    assert await reversals(world) == [9_000]
    await check_books(world)


@pytest.mark.parametrize("hold", [{}, {"escrow_mode": PLATFORM}])
async def test_the_commissions_of_other_payments_pay_a_refund(
    poor: World, hold: dict[str, Any]
) -> None:
    world = poor
    expert = await world.expert()
    paid = await world.captured(expert, 2_000, **hold)
    for _ in range(3):
        await world.captured(expert, 10_000)
    await days_pass(world)
    assert (await world.refund(paid.payment_id)).state == REFUNDED
    assert sum(await reversals(world)) == 1_800
    await check_books(world)


async def test_a_refund_that_waits_too_long_becomes_payable(poor: World) -> None:
    """The caller was told that the client gets it, and the expert has paid it back."""
    world = poor
    paid = await world.captured(amount=10_000)
    assert (await world.refund(paid.payment_id)).waiting_reason == PENDING_FUNDS
    await until_reversed(world, 9_000)
    await world.stripe.advance(31 * 86_400)

    async def payable() -> bool:
        return (await world.get(paid.payment_id)).client_payable.minor_units == 10_000

    await until(payable, "a client who is owed the refund")
    payment = await world.get(paid.payment_id)
    assert payment.waiting_for == payments_pb2.WAITING_FOR_OPERATOR
    assert payment.pending_refund_amount.minor_units == 0
    assert "refund_failed" in [kind_of(one) for one in await world.discrepancies()]
    assert await debt_of(world, paid.expert_id) == 0
    await check_books(world)


async def test_a_dispute_ends_a_refund_that_waits(poor: World) -> None:
    """Stripe fails the refund. What the bank takes pays the client, who is paid once."""
    world = poor
    paid = await world.captured(amount=10_000)
    assert (await world.refund(paid.payment_id)).waiting_reason == PENDING_FUNDS
    await until_reversed(world, 9_000)
    shown = await world.stripe.control("POST", f"/charges/{paid.charge_id}/dispute")

    async def payable() -> bool:
        return (await world.get(paid.payment_id)).client_payable.minor_units == 10_000

    await until(payable, "a client who is owed the refund")
    await world.settle_down()
    await world.stripe.control("POST", f"/disputes/{shown['id']}/lose")
    lost = await world.in_state(paid.payment_id, REFUNDED)
    assert lost.client_payable.minor_units == 0
    assert await reversals(world) == [9_000]
    await check_books(world)


async def test_a_refund_out_of_escrow_waits_for_the_charge_itself(poor: World) -> None:
    """A platform hold that was charged a moment ago: its own money is still pending."""
    world = poor
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    answer = await world.refund(held.payment_id)
    assert (answer.state, answer.waiting_reason) == (REFUNDING, PENDING_FUNDS)
    assert (answer.held_amount.minor_units, answer.returned_amount.minor_units) == (0, 10_000)
    await days_pass(world)
    await world.in_state(held.payment_id, REFUNDED)
    await check_books(world)


async def test_a_refund_that_stripe_refuses_for_our_balance_is_tried_again(poor: World) -> None:
    world = poor
    await world.stripe.control("POST", "/settings", {"refund_on_low_balance": "refused"})
    paid = await world.captured(amount=10_000)
    request = refund_request(paid.payment_id)
    reply = await world.bytes_of("RefundPayment", request)
    assert reply.code == "OK"
    answer = payments_pb2.RefundPaymentResponse.FromString(reply.body).payment
    assert (answer.state, answer.waiting_reason) == (REFUNDING, PENDING_FUNDS)
    await until_reversed(world, 9_000)

    async def told() -> bool:
        return bool(await waiting_discrepancies(world))

    await until(told, "a discrepancy that names what is missing")
    await days_pass(world)
    await top_up(world, 320)
    await world.in_state(paid.payment_id, REFUNDED)
    assert len(await world.stripe.effects("refunded")) == 1
    assert [one[3] for one in await waiting_discrepancies(world)] == [True]
    await check_books(world)


async def test_a_waiting_refund_that_was_parked_is_resumed(poor: World) -> None:
    """Its amount is counted as refunded already; that is no reason to refuse the operator."""
    world = poor
    await world.stripe.control("POST", "/settings", {"refund_on_low_balance": "refused"})
    paid = await world.captured(amount=10_000)
    assert (await world.refund(paid.payment_id)).waiting_reason == PENDING_FUNDS
    await world.stripe.fault("/refunds$", "status", status=401, times=None)

    async def parked() -> bool:
        waits = (await world.get(paid.payment_id)).waiting_for
        return waits == payments_pb2.WAITING_FOR_OPERATOR

    await until(parked, "a parked refund")
    await world.stripe.clear_faults()
    [(operation_id,)] = world.sql(
        "SELECT operation_id FROM payments WHERE payment_id = %s", paid.payment_id
    )
    await world.operations.ResumeOperation(
        operations_pb2.ResumeOperationRequest(operation_id=operation_id)
    )

    async def waits_again() -> bool:
        payment = await world.get(paid.payment_id)
        assert payment.pending_refund_amount.minor_units == 10_000
        return payment.waiting_reason == PENDING_FUNDS

    await until(waits_again, "a refund that waits as before")
    await top_up(world, 20_000)
    await world.in_state(paid.payment_id, REFUNDED)
    assert len(await world.stripe.effects("refunded")) == 1
    await check_books(world)


async def test_a_long_wait_does_not_use_up_the_tries(start_world: StartWorld) -> None:
    """Money can take days to come. One lost answer after that is no reason to give up."""
    patience = {"tries_before_parking": 3, "patience": 1}
    world = await start_world(policy={**SOON, **patience}, **POOR)
    await keep_at_stripe(world)
    await world.stripe.control("POST", "/settings", {"refund_on_low_balance": "refused"})
    paid = await world.captured(amount=10_000)
    assert (await world.refund(paid.payment_id)).waiting_reason == PENDING_FUNDS

    async def tried_often() -> bool:
        return bool(world.sql("SELECT 1 FROM operations WHERE kind = 'refund' AND attempt > 6"))

    await until(tried_often, "more tries than an operation has")
    await world.stripe.fault("/refunds$", "status", status=503)
    await top_up(world, 20_000)
    await world.in_state(paid.payment_id, REFUNDED)
    await check_books(world)


async def test_a_waiting_refund_that_is_refused_after_all_is_reported(poor: World) -> None:
    """The caller was told that the client gets it: an operator must know that it is owed."""
    world = poor
    await world.stripe.control("POST", "/settings", {"refund_on_low_balance": "refused"})
    paid = await world.captured(amount=10_000)
    assert (await world.refund(paid.payment_id)).waiting_reason == PENDING_FUNDS
    await world.stripe.control("POST", f"/charges/{paid.charge_id}/dispute")

    async def payable() -> bool:
        return (await world.get(paid.payment_id)).client_payable.minor_units == 10_000

    await until(payable, "a client who is owed the refund")
    assert "refund_failed" in [kind_of(one) for one in await world.discrepancies()]
    await check_books(world)


async def test_a_transfer_that_stripe_refuses_for_our_balance_is_tried_again(poor: World) -> None:
    world = poor
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.stripe.fault(
        "/transfers$", "status", status=400, code="balance_insufficient", times=2
    )
    answer = await world.capture(held.payment_id)
    assert (answer.state, answer.waiting_reason) == (
        CAPTURING,
        payments_pb2.WAITING_REASON_TRANSFER_PENDING_FUNDS,
    )
    await world.in_state(held.payment_id, CAPTURED)
    assert len(await world.stripe.effects("transferred")) == 1
    await check_books(world)


async def test_validate_only_says_that_a_refund_would_wait(poor: World) -> None:
    world = poor
    paid = await world.captured(amount=10_000)
    request = refund_request(paid.payment_id, validate_only=True)
    preview = (await world.payments.RefundPayment(request)).preview.payment
    assert (preview.state, preview.waiting_reason) == (REFUNDING, PENDING_FUNDS)
    assert preview.pending_refund_amount.minor_units == 10_000
    await days_pass(world)
    await top_up(world, 10_000)
    preview = (await world.payments.RefundPayment(request)).preview.payment
    assert (preview.state, preview.pending_refund_amount.minor_units) == (REFUNDED, 0)


# ---- debts ----


async def test_what_is_pending_is_collected_when_it_is_available(start_world: StartWorld) -> None:
    """A transfer of a moment ago cannot be reversed yet; two days later it can."""
    world = await start_world(policy=SOON)
    await keep_at_stripe(world)
    expert = await world.expert()
    paid = await world.captured(expert, 10_000, escrow_mode=PLATFORM)
    assert (await world.refund(paid.payment_id)).state == REFUNDED
    assert await debt_of(world, expert) == 9_000
    await days_pass(world)
    await until_reversed(world, 9_000)
    await world.settle_down()
    assert await debt_of(world, expert) == 0
    assert "debt_collected" in await event_kinds(world, paid.payment_id)
    request = experts_pb2.GetExpertBalanceRequest(expert_id=expert)
    [shown] = (await world.experts.GetExpertBalance(request)).balances
    assert (shown.available.minor_units, shown.debt.minor_units) == (0, 0)
    await check_books(world)


async def test_a_part_that_the_account_has_is_collected(start_world: StartWorld) -> None:
    world = await start_world(policy=SOON)
    await keep_at_stripe(world)
    expert = await world.expert()
    paid = await world.captured(expert, 10_000, escrow_mode=PLATFORM)
    await days_pass(world)
    account = world.account_of(expert)
    await world.stripe.api("POST", "/payouts", account=account, amount=4_500, currency="usd")
    assert (await world.refund(paid.payment_id)).state == REFUNDED
    await until_reversed(world, 4_500)
    await world.settle_down()
    assert await debt_of(world, expert) == 4_500
    # Later money pays the rest: the capture keeps it back, and nothing is taken twice.
    await world.captured(expert, 20_000, escrow_mode=PLATFORM)
    await days_pass(world)
    await world.settle_down()
    assert await debt_of(world, expert) == 0
    assert await reversals(world) == [4_500]
    await check_books(world)


async def test_a_collection_never_takes_what_a_capture_keeps_back(
    start_world: StartWorld,
) -> None:
    """The debt is reserved by the open capture: the collection leaves it alone, however late."""
    world = await start_world(policy=SOON)
    await keep_at_stripe(world)
    expert = await world.expert()
    paid = await world.captured(expert, 10_000, escrow_mode=PLATFORM)
    held = await world.escrowed(expert, 20_000, escrow_mode=PLATFORM)
    assert (await world.refund(paid.payment_id)).state == REFUNDED
    await world.stripe.fault("/transfers$", "status", status=503, times=None)
    reply = await world.bytes_of("CapturePayment", capture_request(held.payment_id))
    assert reply.code == "UNAVAILABLE"
    await days_pass(world)
    [(reserved,)] = world.sql(
        "SELECT debt_offset FROM payments WHERE payment_id = %s", held.payment_id
    )
    assert reserved == 9_000

    async def looked() -> bool:
        return bool(world.sql("SELECT 1 FROM debt_checks WHERE pause >= interval '0.3 s'"))

    await until(looked, "a round of the collection")
    assert await reversals(world) == []
    await world.stripe.clear_faults()
    await world.in_state(held.payment_id, CAPTURED)
    await world.settle_down()
    assert await debt_of(world, expert) == 0
    assert await reversals(world) == []
    await check_books(world)


async def test_a_lost_answer_to_a_collection_takes_nothing_twice(start_world: StartWorld) -> None:
    world = await start_world(policy=SOON)
    await keep_at_stripe(world)
    expert = await world.expert()
    paid = await world.captured(expert, 10_000, escrow_mode=PLATFORM)
    assert (await world.refund(paid.payment_id)).state == REFUNDED
    await world.stripe.fault("/reversals$", "reset", "after")
    await days_pass(world)
    await until_reversed(world, 9_000)
    await world.settle_down()
    assert await debt_of(world, expert) == 0
    assert await reversals(world) == [9_000]
    await check_books(world)


async def test_a_debt_in_a_converted_currency_is_collected_in_the_accounts_own(
    start_world: StartWorld,
) -> None:
    """A charge in CAD that Stripe settles in USD: the transfer, and what is left of it, is USD."""
    world = await start_world(policy=SOON)
    expert = await world.expert()
    paid = await world.captured(expert, 10_000, "CAD")
    await days_pass(world)  # The expert is paid out.
    await world.settle_down()
    assert (await world.refund(paid.payment_id)).state == REFUNDED
    assert balance(world, f"expert_debt:{expert}", "CAD") == 9_000
    # Money in USD comes into the account; no debt in USD is kept back from it.
    await world.captured(expert, 20_000)

    async def collected() -> bool:
        return balance(world, f"expert_debt:{expert}", "CAD") == 0

    await until(collected, "the debt in CAD collected in USD")
    await check_books(world)


async def test_parts_take_back_as_much_as_the_whole(start_world: StartWorld) -> None:
    """The sum of the reversals is rounded, and not each of them."""
    world = await start_world()
    await keep_at_stripe(world)
    paid = await world.captured(amount=1_000_000, currency="INR")
    for amount in (333_333, 333_333, 333_334):
        await world.refund(paid.payment_id, amount)
    [sent] = await world.stripe.effects("transferred")
    whole = sent["amount"] * 900_000 // 1_000_000
    assert sum(await reversals(world)) == whole
    await check_books(world)


async def test_a_collection_disturbs_no_operation_of_its_payment(start_world: StartWorld) -> None:
    """It takes from a payment whose refund is open: that is not an out-of-band movement."""
    world = await start_world(policy=SOON)
    await keep_at_stripe(world)
    expert = await world.expert()
    paid = await world.captured(expert, 10_000, escrow_mode=PLATFORM)
    await world.refund(paid.payment_id, 5_000)
    assert await debt_of(world, expert) == 4_500
    await world.stripe.fault("/refunds$", "status", status=503, times=None)
    request = refund_request(paid.payment_id, 2_000)
    assert (await world.bytes_of("RefundPayment", request)).code == "UNAVAILABLE"
    await days_pass(world)
    await until_reversed(world, 4_500)
    assert (await world.get(paid.payment_id)).state == REFUNDING
    await world.stripe.clear_faults()
    assert (await world.until_answered("RefundPayment", request)).code == "OK"
    await world.settle_down()
    assert (await world.get(paid.payment_id)).net_expert_amount.minor_units == 2_700
    assert await reversals(world) == [4_500, 1_800]
    assert await debt_of(world, expert) == 0
    assert not await world.discrepancies()
    await check_books(world)
