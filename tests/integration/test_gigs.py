"""Gigs that last: money on the platform, milestones, awards that are split, debts, deadlines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from marketplace.payments.v1 import operations_pb2, payments_pb2
from payment_service.application.jobs.act_on_deadlines import act_on_deadlines
from payment_service.application.jobs.warn_of_deadlines import warn_of_deadlines
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.kinds import kind_of
from tests.support.requests import capture_request, money, refund_request
from tests.support.steps.payments import CARD, PLATFORM, PROMOTE, event_kinds, in_days
from tests.support.world import (
    CANCELED,
    CAPTURED,
    CAPTURING,
    EXPIRED,
    IN_ESCROW,
    PENDING,
    REFUNDED,
    Payment,
    World,
    until,
)


def amounts(payment: Payment) -> tuple[int, int, int, int]:
    """Held, captured, returned, net commission."""
    return (
        payment.held_amount.minor_units,
        payment.captured_amount.minor_units,
        payment.returned_amount.minor_units,
        payment.net_commission.minor_units,
    )


# ---- which hold ----


@pytest.mark.parametrize(
    ("fields", "mode", "model", "reason"),
    [
        ({}, "CARD_HOLD", "DESTINATION", "DEFAULT"),
        ({"expected_completion_time": in_days(3)}, "CARD_HOLD", "DESTINATION", "FITS_CARD_HOLD"),
        (
            {"expected_completion_time": in_days(30)},
            "PLATFORM_HOLD",
            "SEPARATE",
            "OUTLASTS_CARD_HOLD",
        ),
        ({"on_deadline": PROMOTE}, "CARD_HOLD", "SEPARATE", "PROMOTION"),
        (
            {"on_deadline": PROMOTE, "expected_completion_time": in_days(30)},
            "CARD_HOLD",
            "SEPARATE",
            "PROMOTION",
        ),
        ({"escrow_mode": PLATFORM}, "PLATFORM_HOLD", "SEPARATE", "REQUESTED"),
        (
            {"escrow_mode": CARD, "expected_completion_time": in_days(30)},
            "CARD_HOLD",
            "DESTINATION",
            "REQUESTED",
        ),
    ],
)
async def test_the_hold_is_chosen_by_the_gig_and_says_why(
    world: World, fields: dict[str, Any], mode: str, model: str, reason: str
) -> None:
    payment = (await world.initiate(await world.expert(), **fields)).payment
    assert payments_pb2.EscrowMode.Name(payment.escrow_mode) == f"ESCROW_MODE_{mode}"
    assert payments_pb2.ChargeModel.Name(payment.charge_model) == f"CHARGE_MODEL_{model}"
    assert payments_pb2.ModeReason.Name(payment.mode_reason) == f"MODE_REASON_{reason}"


async def test_a_hold_that_cannot_be_is_refused_with_the_fact(world: World) -> None:
    expert = await world.expert()

    async def refused(**fields: Any) -> tuple[str, str, str]:
        found = await refusal(world.initiate(expert, **fields))
        named = next(iter(found.fields), "")
        return found.code, found.reason, named

    too_long = await refused(expected_completion_time=in_days(3 * 365))
    assert too_long == ("FAILED_PRECONDITION", "HOLDING_LIMIT_EXCEEDED", "")
    past = await refused(expected_completion_time=in_days(-1))
    assert past == ("INVALID_ARGUMENT", "INVALID_FIELD", "expected_completion_time")
    both = await refused(escrow_mode=PLATFORM, on_deadline=PROMOTE)
    assert both == ("INVALID_ARGUMENT", "INVALID_FIELD", "on_deadline")
    dinars = await refusal(world.initiate(expert, 10_050, "KWD", escrow_mode=PLATFORM))
    assert (dinars.code, dinars.reason) == ("FAILED_PRECONDITION", "CURRENCY_NOT_SETTLED")
    assert dinars.facts["currency"] == "KWD"
    assert not world.sql("SELECT FROM payments")


async def test_the_platform_holds_nothing_while_its_payouts_are_automatic(world: World) -> None:
    await world.stripe.control("POST", "/settings", {"platform_payout_interval": "daily"})
    expert = await world.expert()
    for fields in ({"escrow_mode": PLATFORM}, {"on_deadline": PROMOTE}):
        refused = await refusal(world.initiate(expert, **fields))
        assert (refused.code, refused.reason) == (
            "FAILED_PRECONDITION",
            "PLATFORM_PAYOUTS_NOT_MANUAL",
        )
    assert (await world.escrowed(expert)).escrow_mode == CARD
    await world.stripe.control("POST", "/settings", {"platform_payout_interval": "manual"})
    assert (await world.escrowed(expert, escrow_mode=PLATFORM)).escrow_mode == PLATFORM


async def test_escrow_that_the_platforms_balance_does_not_cover_is_reported(
    start_world: StartWorld,
) -> None:
    world = await start_world(simulator={"platform_funds": 0})
    held = await world.escrowed("", 10_000, escrow_mode=PLATFORM)
    await world.settle_down()

    async def uncovered() -> list[tuple[int, int]]:
        await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())
        return [
            (found.expected.minor_units, found.found.minor_units)
            for found in await world.discrepancies(cover=True)
            if kind_of(found) == "escrow_underfunded" and not found.HasField("resolve_time")
        ]

    # Stripe took its fee of the charge: what is held for others is the charge.
    assert await uncovered() == [(10_000, 9_680)]
    topup = {"amount": 320, "currency": "usd", "type": "topup"}
    await world.stripe.control("POST", "/balance", topup)
    assert await uncovered() == []
    assert (await world.capture(held.payment_id)).state == CAPTURED


# ---- milestones ----


@pytest.mark.parametrize(
    ("currency", "amount", "rate", "parts", "commissions"),
    [
        ("USD", 9_999, 1_000, [3_333, 3_333, 3_333], [333, 667, 1_000]),
        ("JPY", 1_001, 1_000, [333, 333, 335], [33, 67, 100]),
        ("KWD", 10_050, 1_250, [3_330, 3_330, 3_390], [420, 830, 1_260]),
    ],
)
@pytest.mark.parametrize("promoted", [False, True], ids=["charged at once", "authorized first"])
async def test_milestones_are_paid_out_of_what_the_platform_holds(
    start_world: StartWorld,
    currency: str,
    amount: int,
    rate: int,
    parts: list[int],
    commissions: list[int],
    promoted: bool,
) -> None:
    settled = ("USD", "JPY", "KWD")
    world = await start_world(
        platform_settlement_currencies=settled,
        simulator={"settlement_currencies": tuple(name.lower() for name in settled)},
    )
    expert = await world.expert(commission_basis_points=rate)
    fields = {"on_deadline": PROMOTE} if promoted else {"escrow_mode": PLATFORM}
    payment = await world.escrowed(expert, amount, currency, **fields)
    taken = 0
    for part, commission in zip(parts, commissions, strict=True):
        await check_books(world)
        payment = await world.capture(payment.payment_id, part)
        taken += part
        assert payment.escrow_mode == PLATFORM
        assert amounts(payment) == (amount - taken, taken, 0, commission)
        assert payment.state == (IN_ESCROW if taken < amount else CAPTURED)
    await check_books(world)
    assert balance(world, f"stripe:connected:{expert}", currency) == amount - commissions[-1]
    assert balance(world, "commission", currency) == -commissions[-1]
    assert len(await world.stripe.effects("captured", payment.payment_intent_id)) == 1
    assert len(await world.stripe.effects("transferred", payment.payment_intent_id)) == 3
    assert not await world.discrepancies()


@pytest.mark.parametrize(
    "fields",
    [{}, {"escrow_mode": PLATFORM}, {"on_deadline": PROMOTE}],
    ids=["destination", "platform", "authorized"],
)
async def test_one_call_splits_an_award(world: World, fields: dict[str, Any]) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, **fields)
    payment = await world.capture(held.payment_id, 6_000, final=True)
    assert payment.state == CAPTURED
    on_platform = fields.get("escrow_mode") == PLATFORM
    assert amounts(payment) == (0, 6_000, 4_000 if on_platform else 0, 600)
    await check_books(world)
    assert balance(world, f"stripe:connected:{expert}") == 5_400
    refunded = await world.stripe.effects("refunded", held.payment_intent_id)
    assert [effect["amount"] for effect in refunded] == ([4_000] if on_platform else [])
    # The card was charged for no more than it had to be.
    [charge] = (await world.stripe.api("GET", f"/charges?payment_intent={held.payment_intent_id}"))[
        "data"
    ]
    assert charge["amount_captured"] == (10_000 if on_platform else 6_000)
    assert not await world.discrepancies()


async def test_held_money_is_refunded_first_and_paid_money_only_on_request(
    world: World,
) -> None:
    expert = await world.expert()
    # Stripe takes a transfer back out of available money alone; this card's is so at once.
    held = await world.escrowed(expert, 10_000, card="pm_card_bypassPending", escrow_mode=PLATFORM)
    await world.capture(held.payment_id, 3_000)
    await world.capture(held.payment_id, 4_000)
    payment = await world.refund(held.payment_id, 1_000)
    assert (payment.state, amounts(payment)) == (IN_ESCROW, (2_000, 7_000, 1_000, 700))
    # Beyond the held amount, the newest transfer is reversed first, then the one before.
    payment = await world.refund(held.payment_id, 7_500)
    assert payment.state == CAPTURED
    assert amounts(payment) == (0, 7_000, 3_000, 150)
    assert payment.refunded_amount.minor_units == 5_500
    await check_books(world)
    assert balance(world, f"expert_debt:{expert}") == 0
    reversals = world.sql(
        "SELECT minor_units FROM movements WHERE kind = 'reversal' ORDER BY time, movement_id"
    )
    assert sorted(row[0] for row in reversals) == [1_350, 3_600]
    payment = await world.refund(held.payment_id)
    assert (payment.state, payment.refunded_amount.minor_units) == (REFUNDED, 7_000)
    await check_books(world)
    assert balance(world, f"stripe:connected:{expert}") == 0
    assert not await world.discrepancies()


async def test_a_whole_platform_hold_is_refunded_out_of_escrow(world: World) -> None:
    held = await world.escrowed("", 10_000, escrow_mode=PLATFORM)
    payment = await world.refund(held.payment_id)
    assert (payment.state, amounts(payment)) == (REFUNDED, (0, 0, 10_000, 0))
    await check_books(world)
    refused = await refusal(world.payments.CapturePayment(capture_request(held.payment_id)))
    assert (refused.reason, refused.facts["state"]) == ("WRONG_STATE", "REFUNDED")


async def test_a_failed_refund_out_of_escrow_is_client_payable(world: World) -> None:
    held = await world.escrowed("", 10_000, escrow_mode=PLATFORM)
    await world.refund(held.payment_id, 4_000)
    [(refund,)] = world.sql("SELECT movement_id FROM movements WHERE kind = 'refund'")
    await world.stripe.control("POST", f"/refunds/{refund}/fail")
    await world.in_state(held.payment_id, payments_pb2.PAYMENT_STATE_REFUNDING)
    await check_books(world)
    assert balance(world, f"client_payable:{held.payment_id}") == -4_000
    payment = await world.get(held.payment_id)
    assert (payment.waiting_for, amounts(payment)[0]) == (payments_pb2.WAITING_FOR_OPERATOR, 6_000)


# ---- debts ----


async def debtor(world: World) -> str:
    """An expert with a debt of 90 dollars: they are at the bank, and the account is empty."""
    expert = await world.expert()
    paid = await world.captured(expert, 10_000, card="pm_card_bypassPending")
    await world.stripe.control("POST", f"/accounts/{world.account_of(expert)}/payout")
    await world.refund(paid.payment_id)
    return expert


@pytest.mark.parametrize("fields", [{}, {"escrow_mode": PLATFORM}], ids=["destination", "separate"])
async def test_an_experts_debt_is_offset_at_the_next_capture(
    world: World, fields: dict[str, Any]
) -> None:
    expert = await debtor(world)
    assert balance(world, f"expert_debt:{expert}") == 9_000
    second = await world.escrowed(expert, 4_000, **fields)
    payment = await world.capture(second.payment_id)
    # One cent is left to be paid out; the remainder of the amount pays the debt off.
    assert payment.net_expert_amount.minor_units == 3_600
    assert balance(world, f"expert_debt:{expert}") == 9_000 - 3_599
    await check_books(world)
    third = await world.escrowed(expert, 20_000, **fields)
    await world.capture(third.payment_id)
    assert balance(world, f"expert_debt:{expert}") == 0
    assert balance(world, f"expert_funds:{expert}") == -(3_600 + 18_000 - 9_000)
    await check_books(world)
    # Given back, the gig leaves the expert as if it had never been.
    await world.refund(third.payment_id)
    await check_books(world)
    assert not await world.discrepancies()


async def test_a_debt_under_reversal_is_not_offset_as_well(
    world: World,
) -> None:
    expert = await world.expert()
    first, second = await world.captured(expert, 10_000), await world.escrowed(expert, 20_000)
    # The client has the money, the expert's part is on its way back and is no debt.
    await world.stripe.fault("/reversals$", "reset", "before", times=None)
    request = refund_request(first.payment_id)
    assert (await refusal(world.payments.RefundPayment(request))).code == "UNAVAILABLE"
    assert balance(world, f"expert_debt:{expert}") == 9_000
    await world.capture(second.payment_id)
    await world.stripe.clear_faults()
    await world.in_state(first.payment_id, REFUNDED)
    await check_books(world)
    assert balance(world, f"expert_debt:{expert}") == 0
    assert balance(world, f"stripe:connected:{expert}") == 18_000


async def test_an_out_of_band_destination_capture_offsets_no_debt(world: World) -> None:
    """Ours, which would keep the debt back, waits; the dashboard collects the commission alone."""
    expert = await debtor(world)
    second = await world.escrowed(expert, 20_000)
    account = world.account_of(expert)
    await world.stripe.control(
        "POST", f"/accounts/{account}/restrict", {"capabilities": {"transfers": "inactive"}}
    )
    payment = await world.capture(second.payment_id)
    assert (payment.state, payment.waiting_for) == (CAPTURING, payments_pb2.WAITING_FOR_EXPERT)
    # No event says that the account is ready, so that the dashboard capture comes first.
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    shown = await world.stripe.api("POST", f"/payment_intents/{second.payment_intent_id}/capture")
    assert shown.get("status") == "succeeded", shown
    await world.stripe.control("POST", "/webhooks", {"paused": False})
    now = await world.in_state(second.payment_id, CAPTURED)
    assert now.net_commission.minor_units == 2_000
    await check_books(world)
    assert not await world.discrepancies()

    async def collected() -> bool:
        return balance(world, f"expert_debt:{expert}") == 0

    # The debt is free again: what the capture did not keep back is collected.
    await until(collected, "the debt collected")
    await check_books(world)


# ---- the expert's account ----


@pytest.mark.parametrize(
    "fields", [{}, {"escrow_mode": PLATFORM}, {"on_deadline": PROMOTE}], ids=["d", "p", "a"]
)
async def test_a_capture_waits_for_the_experts_account_and_then_continues(
    world: World, fields: dict[str, Any]
) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, **fields)
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/restrict")
    payment = await world.capture(held.payment_id)
    assert (payment.state, payment.waiting_for) == (CAPTURING, payments_pb2.WAITING_FOR_EXPERT)
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    payment = await world.in_state(held.payment_id, CAPTURED)
    assert (payment.waiting_for, amounts(payment)) == (
        payments_pb2.WAITING_FOR_UNSPECIFIED,
        (0, 10_000, 0, 1_000),
    )
    await check_books(world)
    assert not await world.discrepancies()


@pytest.mark.parametrize("fields", [{}, {"escrow_mode": PLATFORM}], ids=["d", "p"])
async def test_a_waiting_capture_can_be_abandoned_for_a_refund(
    world: World, fields: dict[str, Any]
) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, **fields)
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/restrict")
    await world.capture(held.payment_id)
    payment = await world.refund(held.payment_id, reason="the expert cannot be paid")
    assert payment.state == (REFUNDED if fields else CANCELED)
    assert "capture_abandoned" in await event_kinds(world, held.payment_id)
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    await check_books(world)
    assert not await world.stripe.effects("transferred", held.payment_intent_id)
    assert not await world.discrepancies()


# ---- deadlines ----


async def test_an_authorization_is_promoted_before_it_expires(
    world: World, as_superuser: Callable[..., int]
) -> None:
    held = await world.escrowed("", 10_000, on_deadline=PROMOTE)
    [deadline] = held.deadlines
    assert deadline.kind == payments_pb2.DEADLINE_KIND_CARD_AUTHORIZATION
    assert deadline.action == PROMOTE
    as_superuser(world, "UPDATE payments SET escrow_expire_time = now() + interval '11 hours'")

    async def promoted() -> Payment | None:
        payment = await world.get(held.payment_id)
        return payment if payment.escrow_mode == PLATFORM else None

    payment = await until(promoted, "the promotion")
    assert (payment.state, amounts(payment)) == (IN_ESCROW, (10_000, 0, 0, 0))
    [deadline] = payment.deadlines
    assert deadline.kind == payments_pb2.DEADLINE_KIND_HOLDING_LIMIT
    assert deadline.action == payments_pb2.ON_DEADLINE_ALERT
    await check_books(world)
    assert (await world.capture(held.payment_id)).state == CAPTURED
    await check_books(world)
    trail = await event_kinds(world, held.payment_id)
    assert trail.count("promote_started") == trail.count("charged") == 1


@pytest.mark.parametrize("mode", [CARD, PLATFORM], ids=["card", "platform"])
@pytest.mark.parametrize(
    ("on_deadline", "card_state", "platform_state"),
    [
        (payments_pb2.ON_DEADLINE_CAPTURE, CAPTURED, CAPTURED),
        (payments_pb2.ON_DEADLINE_REFUND, EXPIRED, REFUNDED),
    ],
    ids=["capture", "refund"],
)
async def test_what_was_agreed_is_done_when_the_gig_is_due(
    world: World,
    as_superuser: Callable[..., int],
    mode: payments_pb2.EscrowMode.ValueType,
    on_deadline: payments_pb2.OnDeadline.ValueType,
    card_state: payments_pb2.PaymentState.ValueType,
    platform_state: payments_pb2.PaymentState.ValueType,
) -> None:
    held = await world.escrowed(
        "",
        10_000,
        escrow_mode=mode,
        on_deadline=on_deadline,
        expected_completion_time=in_days(5),
    )
    as_superuser(world, "UPDATE payments SET release_due_time = now() - interval '1 second'")
    await world.in_state(held.payment_id, card_state if mode == CARD else platform_state)
    await check_books(world)
    assert not await world.discrepancies()


async def test_an_alert_is_sent_once_and_moves_nothing(
    world: World, as_superuser: Callable[..., int]
) -> None:
    held = await world.escrowed(
        "", 10_000, escrow_mode=PLATFORM, expected_completion_time=in_days(10)
    )
    as_superuser(world, "UPDATE payments SET release_due_time = now() + interval '1 hour'")

    async def seen(kind: str) -> list[str] | None:
        trail = await event_kinds(world, held.payment_id)
        return trail if kind in trail else None

    await until(lambda: seen("deadline_near"), "the warning")
    as_superuser(world, "UPDATE payments SET release_due_time = now() - interval '1 second'")
    await until(lambda: seen("deadline_passed"), "the alert")
    assert world.service is not None
    app = world.service.app
    for _ in range(3):
        await act_on_deadlines(app)
        await warn_of_deadlines(app)
    trail = await event_kinds(world, held.payment_id)
    assert trail.count("deadline_near") == trail.count("deadline_passed") == 1
    assert (await world.get(held.payment_id)).state == IN_ESCROW
    await check_books(world)


async def test_what_expires_within_a_span_is_listed(world: World) -> None:
    expert = await world.expert()
    short = await world.escrowed(expert)
    long = await world.escrowed(expert, escrow_mode=PLATFORM)
    await world.initiate(expert)

    async def listed(days: float) -> set[str]:
        request = payments_pb2.ListPaymentsRequest(user_id=expert, max_deadline_time=in_days(days))
        return {
            payment.payment_id for payment in (await world.payments.ListPayments(request)).payments
        }

    assert await listed(1) == set()
    assert await listed(8) == {short.payment_id}
    assert await listed(3 * 365) == {short.payment_id, long.payment_id}


# ---- ask before you move ----


async def test_validate_only_shows_the_legs_and_writes_nothing(world: World) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    await world.settle_down()
    before = world.counts()
    asked = capture_request(held.payment_id, 6_000, final=True, validate_only=True)
    answer = await world.payments.CapturePayment(asked)
    assert answer.payment == await world.get(held.payment_id)
    assert [
        (payments_pb2.LegKind.Name(leg.kind).removeprefix("LEG_KIND_"), leg.amount.minor_units)
        for leg in answer.preview.legs
    ] == [("PAY_EXPERT", 5_400), ("COLLECT_COMMISSION", 600), ("REFUND_CLIENT", 4_000)]
    shown = answer.preview.payment
    assert world.counts() == before
    # What was shown is what is done.
    asked.validate_only = False
    done = (await world.payments.CapturePayment(asked)).payment
    assert (done.state, amounts(done)) == (shown.state, amounts(shown))
    back = refund_request(held.payment_id, 1_000, validate_only=True)
    preview = (await world.payments.RefundPayment(back)).preview
    assert [
        (payments_pb2.LegKind.Name(leg.kind).removeprefix("LEG_KIND_"), leg.amount.minor_units)
        for leg in preview.legs
    ] == [("REFUND_CLIENT", 1_000), ("RETURN_COMMISSION", 100), ("REVERSE_TRANSFER", 900)]
    assert preview.legs[2].transfer_id.startswith("tr_")
    too_much = refund_request(held.payment_id, 6_001, validate_only=True)
    assert (await refusal(world.payments.RefundPayment(too_much))).reason == "AMOUNT_TOO_LARGE"


async def test_validate_only_of_an_initiation(world: World) -> None:
    expert = await world.expert()
    await world.settle_down()
    before = world.counts()
    answer = await world.initiate(expert, 10_000, validate_only=True)
    assert (answer.payment.state, answer.payment.payment_id) == (PENDING, "")
    assert answer.application_fee == money(1_000, "USD")
    assert not answer.client_secret
    nobody = await refusal(world.initiate("nobody", validate_only=True))
    assert nobody.reason == "EXPERT_NOT_FOUND"
    assert world.counts() == before


async def test_version_mismatch_returns_the_current_payment(world: World) -> None:
    held = await world.escrowed("", 10_000, escrow_mode=PLATFORM)
    await world.capture(held.payment_id, 1_000, expected_version=held.version)
    now = await world.get(held.payment_id)
    stale = capture_request(held.payment_id, 1_000, expected_version=held.version)
    back = refund_request(held.payment_id, 1_000, expected_version=held.version)
    for call in (world.payments.CapturePayment(stale), world.payments.RefundPayment(back)):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == ("ABORTED", "VERSION_MISMATCH")
        assert refused.facts["version"] == str(now.version)
    # Never stored: the same key may be used again for what is right now.
    assert (await world.get(held.payment_id)).version == now.version
    again = await refusal(world.payments.CapturePayment(stale))
    assert again.reason == "VERSION_MISMATCH"


async def test_a_debt_is_written_off_once_and_not_kept_back_any_more(world: World) -> None:
    expert = await debtor(world)
    request = operations_pb2.WriteOffExpertDebtRequest(
        expert_id=expert,
        currency_code="USD",
        amount=money(4_000, "USD"),
        reason="left us",
        idempotency_key="once",
    )
    await world.settle_down()
    before = world.counts()
    request.validate_only = True
    shown = await world.operations.WriteOffExpertDebt(request)
    assert (shown.written_off_amount.minor_units, shown.debt.minor_units) == (4_000, 5_000)
    assert world.counts() == before
    request.validate_only = False
    method, sent = "OperationsService/WriteOffExpertDebt", request.SerializeToString()
    first_answer = await world.raw(method, sent)
    assert first_answer.body == shown.SerializeToString(deterministic=True)
    assert await world.raw(method, sent) == first_answer
    assert balance(world, f"expert_debt:{expert}") == 5_000
    assert balance(world, "losses") == 4_000
    too_much = operations_pb2.WriteOffExpertDebtRequest(
        expert_id=expert,
        currency_code="usd",
        amount=money(5_001, ""),
        reason="all of it",
        idempotency_key="more",
    )
    refused = await refusal(world.operations.WriteOffExpertDebt(too_much))
    assert (refused.reason, refused.facts["available"]) == ("AMOUNT_TOO_LARGE", "5000")
    too_much.amount.currency_code = "EUR"
    two_currencies = await refusal(world.operations.WriteOffExpertDebt(too_much))
    assert list(two_currencies.fields) == ["amount.currency_code"]
    rest = operations_pb2.WriteOffExpertDebtRequest(
        expert_id=expert, currency_code="USD", reason="the remainder", idempotency_key="remainder"
    )
    answer = await world.operations.WriteOffExpertDebt(rest)
    assert (answer.written_off_amount.minor_units, answer.debt.minor_units) == (5_000, 0)
    second = await world.escrowed(expert, 4_000)
    await world.capture(second.payment_id)
    assert balance(world, f"expert_funds:{expert}") == -3_600
    await check_books(world)


async def test_the_released_remainder_of_a_card_hold_is_no_refund(world: World) -> None:
    """Nothing was charged, and nothing came back."""
    held = await world.escrowed(amount=10_000)
    payment = await world.capture(held.payment_id, 6_000, final=True)
    assert payment.captured_amount.minor_units == 6_000
    listed = await world.stripe.api("GET", "/refunds", payment_intent=held.payment_intent_id)
    assert listed["data"] == []
    await world.settle_down()
    payment = await world.get(held.payment_id)
    assert payment.state == CAPTURED
    assert payment.refunded_amount.minor_units == 0
    assert not await world.discrepancies()
    await check_books(world)


async def test_a_final_capture_whose_remainder_stripe_keeps_is_answered_as_a_capture(
    world: World,
) -> None:
    """If the answer were a refusal, the caller would pay the expert a second time."""
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.stripe.fault("/refunds$", "status", status=400, code="charge_disputed", store=True)
    request = capture_request(held.payment_id, 3_000, final=True)
    payment = (await world.payments.CapturePayment(request)).payment
    assert payment.state == IN_ESCROW
    assert payment.captured_amount.minor_units == 3_000
    assert payment.held_amount.minor_units == 7_000
    assert (await world.payments.CapturePayment(request)).payment == payment
    [found] = await world.discrepancies()
    assert kind_of(found) == "remainder_not_returned"
    assert len(await world.stripe.effects("transferred")) == 1
    assert (await world.refund(held.payment_id)).held_amount.minor_units == 0
    await check_books(world)


@pytest.mark.parametrize("mode", [CARD, PLATFORM])
async def test_a_card_that_is_reported_stolen_before_its_capture_is_not_captured(
    world: World, mode: payments_pb2.EscrowMode.ValueType
) -> None:
    held = await world.escrowed(escrow_mode=mode)
    [(charge,)] = world.sql("SELECT charge_id FROM payments WHERE payment_id = %s", held.payment_id)
    await world.stripe.control(
        "POST", f"/charges/{charge}/early_fraud_warning", {"fraud_type": "made_with_stolen_card"}
    )
    await world.settle_down()
    why = await refusal(world.payments.CapturePayment(capture_request(held.payment_id)))
    assert (why.reason, why.facts["stage"]) == ("PAYMENT_DISPUTED", "FRAUD_WARNING")
    assert (await world.refund(held.payment_id)).held_amount.minor_units == 0
    await check_books(world)


@pytest.mark.parametrize(
    ("out_of_band", "method", "code"),
    [(9_700, "CapturePayment", "OK"), (10_000, "RefundPayment", "FAILED_PRECONDITION")],
)
async def test_a_pending_out_of_band_refund_delays_no_answer_of_stripe(
    start_world: StartWorld, out_of_band: int, method: str, code: str
) -> None:
    """What Stripe does is done, and what it refuses is refused; only nothing is sent again."""
    world = await start_world(simulator={"platform_funds": 0})
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    refund = await world.stripe.api(
        "POST", "/refunds", payment_intent=held.payment_intent_id, amount=out_of_band
    )
    assert (refund["status"], refund["balance_transaction"]) == ("pending", None)
    captures = method == "CapturePayment"
    if captures:
        await world.stripe.fault("/transfers$", "reset", "after")
    request = (capture_request if captures else refund_request)(held.payment_id, 300)
    reply = await world.until_answered(method, request)
    assert reply.code == code
    if reply.refused is not None:
        assert reply.refused.reason == "REFUSED_BY_PROCESSOR"
    assert (await world.get(held.payment_id)).state == IN_ESCROW
    assert not await world.discrepancies()
    # Somebody funds the platform, and Stripe pays the refund.
    await world.stripe.control(
        "POST", "/balance", {"amount": 5_000, "currency": "usd", "type": "topup"}
    )
    await world.stripe.advance(3 * 86_400)
    await world.in_state(held.payment_id, CAPTURED if captures else REFUNDED)
    assert [kind_of(one) for one in await world.discrepancies()] == ["out_of_band_refund"]
    await check_books(world)
