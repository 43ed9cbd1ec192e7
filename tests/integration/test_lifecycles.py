"""Whole lives of payments: what callers see, and that the books agree with Stripe's at the end."""

from __future__ import annotations

import pytest

from marketplace.payments.v1 import experts_pb2
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.requests import capture_request, refund_request
from tests.support.world import CANCELED, CAPTURED, FAILED, IN_ESCROW, PENDING, REFUNDED, World

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_payment_captured_whole(shared: World) -> None:
    expert = await shared.expert()
    initiated = await shared.initiate(expert, 10_000)
    quote = initiated.payment
    assert (quote.state, quote.commission.minor_units, quote.expert_amount.minor_units) == (
        PENDING,
        1_000,
        9_000,
    )
    assert initiated.application_fee.minor_units == 1_000
    assert initiated.publishable_key == "pk_test_simulator"
    assert initiated.client_secret.startswith(f"{quote.payment_intent_id}_secret_")
    await shared.confirm(initiated)
    held = await shared.in_state(quote.payment_id, IN_ESCROW)
    assert (held.held_amount.minor_units, held.captured_amount.minor_units) == (10_000, 0)
    assert held.escrow_expire_time.seconds > held.escrow_time.seconds
    payment = await shared.capture(quote.payment_id, notes="done")
    assert payment.state == CAPTURED
    assert payment.held_amount.minor_units == 0
    assert payment.captured_amount.minor_units == 10_000
    assert payment.net_commission.minor_units == 1_000
    assert payment.net_expert_amount.minor_units == 9_000
    await check_books(shared)
    assert balance(shared, f"stripe:connected:{expert}") == 9_000
    assert balance(shared, f"expert_funds:{expert}") == -9_000


async def test_a_partial_capture_releases_the_remainder_and_takes_a_partial_commission(
    shared: World,
) -> None:
    expert = await shared.expert()
    held = await shared.escrowed(expert, 10_000)
    refused = await refusal(shared.payments.CapturePayment(capture_request(held.payment_id, 3_335)))
    assert refused.reason == "WOULD_RELEASE_REMAINDER"
    payment = await shared.capture(held.payment_id, 3_335, final=True)
    # Stripe reports the 6665 that were never taken as refunded; they are no refund of ours.
    assert payment.state == CAPTURED
    assert payment.captured_amount.minor_units == 3_335
    assert payment.refunded_amount.minor_units == 0
    assert payment.net_commission.minor_units == 334
    assert payment.net_expert_amount.minor_units == 3_001
    # The quote stays as it was promised.
    assert (payment.commission.minor_units, payment.expert_amount.minor_units) == (1_000, 9_000)
    await check_books(shared)
    again = await shared.get(held.payment_id)
    assert again.refunded_amount.minor_units == 0
    assert not await shared.discrepancies(held.payment_id)
    returned = await shared.refund(held.payment_id)
    assert returned.state == REFUNDED
    assert returned.refunded_amount.minor_units == 3_335
    await check_books(shared)


@pytest.mark.parametrize(
    ("currency", "amount", "rate", "steps"),
    [
        # (refund, commission and expert's part kept after it), by money.md §5
        ("JPY", 1_001, 1_000, [(333, 67, 601), (333, 34, 301), (335, 0, 0)]),
        ("USD", 9_999, 1_000, [(3_333, 667, 5_999), (1, 667, 5_998), (6_665, 0, 0)]),
        ("EUR", 5_005, 333, [(5, 167, 4_833), (5_000, 0, 0)]),
        # Settled in dollars: the platform holds no dinars.
        ("KWD", 10_050, 1_250, [(1_110, 1_120, 7_820), (8_940, 0, 0)]),
        ("ISK", 50_500, 1_000, [(10_000, 4_100, 36_400), (40_500, 0, 0)]),
    ],
)
async def test_refunds_in_steps_never_drift(
    shared: World, currency: str, amount: int, rate: int, steps: list[tuple[int, int, int]]
) -> None:
    expert = await shared.expert(commission_basis_points=rate)
    payment = await shared.captured(expert, amount, currency)
    assert (
        payment.net_commission.minor_units + payment.net_expert_amount.minor_units
        == payment.captured_amount.minor_units
        == amount
    )
    given_back = 0
    for part, commission, kept in steps:
        payment = await shared.refund(payment.payment_id, part)
        given_back += part
        assert payment.refunded_amount.minor_units == given_back
        assert payment.net_commission.minor_units == commission
        assert payment.net_expert_amount.minor_units == kept
        assert payment.state == (CAPTURED if given_back < amount else REFUNDED)
    await check_books(shared)
    for account in (f"expert_debt:{expert}", f"expert_funds:{expert}"):
        assert balance(shared, account, currency) == 0
    assert not await shared.discrepancies(payment.payment_id)


async def test_a_zero_commission_and_a_rate_frozen_at_initiation(shared: World) -> None:
    expert = await shared.expert(commission_basis_points=0)
    free = await shared.escrowed(expert, 5_000)
    assert (free.commission.minor_units, free.commission_basis_points) == (0, 0)
    answer = await shared.experts.SetCommission(
        experts_pb2.SetCommissionRequest(expert_id=expert, commission_basis_points=2_500)
    )
    assert answer.expert.commission_basis_points == 2_500
    dear = await shared.escrowed(expert, 5_000)
    assert (await shared.capture(free.payment_id)).net_commission.minor_units == 0
    assert (await shared.capture(dear.payment_id)).net_commission.minor_units == 1_250
    # The old rate also rules the refund.
    after = await shared.refund(free.payment_id, 2_000)
    assert (after.net_commission.minor_units, after.net_expert_amount.minor_units) == (0, 3_000)
    await check_books(shared)


async def test_canceled_before_confirmation_and_in_escrow(shared: World) -> None:
    expert = await shared.expert()
    initiated = await shared.initiate(expert)
    early = await shared.refund(initiated.payment.payment_id, reason="changed my mind")
    assert early.state == CANCELED
    shown = await shared.confirm(initiated)
    assert shown["error"]["code"] == "payment_intent_unexpected_state"
    held = await shared.escrowed(expert)
    refused = await refusal(shared.payments.RefundPayment(refund_request(held.payment_id, 1)))
    assert refused.reason == "PARTIAL_REFUND_NEEDS_CAPTURE"
    late = await shared.refund(held.payment_id)
    assert (late.state, late.held_amount.minor_units) == (CANCELED, 0)
    assert late.refunded_amount.minor_units == 0
    await check_books(shared)
    intent = held.payment_intent_id
    assert not await shared.stripe.effects("refunded", intent)
    assert len(await shared.stripe.effects("canceled", intent)) == 1


async def test_declined_then_paid_with_the_same_secret(shared: World) -> None:
    initiated = await shared.initiate(await shared.expert())
    shown = await shared.confirm(initiated, "pm_card_visa_chargeDeclinedInsufficientFunds")
    assert shown["error"]["code"] == "card_declined"
    failed = await shared.in_state(initiated.payment.payment_id, FAILED)
    assert failed.last_failure.decline_code == "insufficient_funds"
    await shared.confirm(initiated)
    held = await shared.in_state(initiated.payment.payment_id, IN_ESCROW)
    assert not held.HasField("last_failure")
    assert (await shared.capture(held.payment_id)).state == CAPTURED
    await check_books(shared)


async def test_a_stolen_card_is_not_named(shared: World) -> None:
    initiated = await shared.initiate(await shared.expert())
    await shared.confirm(initiated, "pm_card_visa_chargeDeclinedStolenCard")
    failed = await shared.in_state(initiated.payment.payment_id, FAILED)
    assert failed.last_failure.decline_code == "generic_decline"
    assert "stolen" not in str(failed)


@pytest.mark.parametrize(
    ("outcome", "state"), [("approve", IN_ESCROW), ("fail", FAILED)], ids=["passed", "failed"]
)
async def test_three_d_secure(shared: World, outcome: str, state: int) -> None:
    initiated = await shared.initiate(await shared.expert())
    shown = await shared.confirm(initiated, "pm_card_authenticationRequired")
    assert shown["status"] == "requires_action"
    intent = initiated.payment.payment_intent_id
    await shared.settle_down()
    assert (await shared.get(initiated.payment.payment_id)).state == PENDING
    await shared.stripe.control(
        "POST", f"/payment_intents/{intent}/authenticate", {"outcome": outcome}
    )

    await shared.in_state(initiated.payment.payment_id, IN_ESCROW, FAILED)
    await shared.settle_down()
    assert (await shared.get(initiated.payment.payment_id)).state == state
    await check_books(shared)


async def test_a_refund_that_stays_pending_for_a_while(shared: World) -> None:
    payment = await shared.captured(card="pm_card_pendingRefund")
    after = await shared.refund(payment.payment_id, 4_000)
    assert (after.state, after.refunded_amount.minor_units) == (CAPTURED, 4_000)
    await check_books(shared)
