"""Disputes: what freezes, what is taken and from whom, and what is said to the client's bank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from marketplace.payments.v1 import disputes_pb2, payments_pb2
from tests.integration.books import balance, check_books
from tests.integration.conftest import StartWorld
from tests.integration.test_gigs import kinds
from tests.integration.world import (
    CAPTURED,
    IN_ESCROW,
    REFUNDED,
    Payment,
    World,
    capture_request,
    new_key,
    refund_request,
    refusal,
    until,
)

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD
INQUIRY = disputes_pb2.DISPUTE_STAGE_INQUIRY
CHARGEBACK = disputes_pb2.DISPUTE_STAGE_CHARGEBACK
OPEN = disputes_pb2.DISPUTE_OUTCOME_OPEN
WON = disputes_pb2.DISPUTE_OUTCOME_WON
LOST = disputes_pb2.DISPUTE_OUTCOME_LOST
CLOSED = disputes_pb2.DISPUTE_OUTCOME_CLOSED
#: Stripe's fee for a chargeback, at the simulator.
FEE = 1_500

Dispute = disputes_pb2.Dispute


async def contest(world: World, payment: Payment, **fields: Any) -> str:
    """The client's bank opens a dispute; its id at Stripe."""
    shown = await world.stripe.control("POST", f"/charges/{payment.charge_id}/dispute", fields)
    return str(shown["id"])


async def decide(world: World, dispute_id: str, word: str) -> None:
    """The bank says `win`, `lose`, `escalate` or `close_warning`."""
    await world.stripe.control("POST", f"/disputes/{dispute_id}/{word}", {})


async def dispute_where(
    world: World, dispute_id: str, what: Callable[[Dispute], bool] = lambda _: True
) -> Dispute:
    """Wait until the dispute is on record, and so."""

    async def probe() -> Dispute | None:
        found = [
            dispute
            for dispute in (
                await world.disputes.ListDisputes(disputes_pb2.ListDisputesRequest())
            ).disputes
            if dispute.dispute_id == dispute_id
        ]
        return found[0] if found and what(found[0]) else None

    return await until(probe, f"{dispute_id} on record")


async def frozen(world: World, payment_id: str) -> str:
    freeze = (await world.get(payment_id)).freeze
    return payments_pb2.PaymentFreeze.Name(freeze).removeprefix("PAYMENT_FREEZE_")


async def settled(world: World, payment_id: str, dispute_id: str, outcome: int) -> Payment:
    """Wait until the dispute has ended so and nothing is left to do; the books must be right."""
    await dispute_where(
        world,
        dispute_id,
        lambda dispute: (
            dispute.outcome == outcome
            and (
                outcome != LOST
                or dispute.lost_amount.minor_units
                == dispute.withdrawn_amount.minor_units - dispute.reinstated_amount.minor_units
            )
        ),
    )
    await check_books(world)
    payment = await world.get(payment_id)
    assert payment.freeze == payments_pb2.PAYMENT_FREEZE_NONE
    return payment


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
    assert [kind for kind in await kinds(world, held.payment_id) if "dispute" in kind] == [
        "dispute_opened",
        "dispute_escalated",
        "dispute_funds_withdrawn",
    ]


# ---- won and lost ----


async def test_a_won_dispute_gives_the_money_back_and_lets_the_payment_go_on(world: World) -> None:
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
