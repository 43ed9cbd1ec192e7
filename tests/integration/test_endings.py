"""Ends caused by the clock, a bank, or Stripe's refusal, without any RPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from marketplace.payments.v1 import operations_pb2, payments_pb2
from payment_service.application.jobs.apply_webhooks import apply_waiting
from payment_service.application.jobs.expire_unpaid import expire_unpaid
from payment_service.application.jobs.sync_expired_authorizations import (
    sync_expired_authorizations,
)
from payment_service.domain.snapshot import PaymentSnapshot
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.kinds import operation_kind_of
from tests.support.requests import capture_request, refund_request
from tests.support.steps.payments import CARD, PLATFORM
from tests.support.world import (
    CANCELING,
    CAPTURED,
    EXPIRED,
    IN_ESCROW,
    PENDING,
    REFUNDED,
    REFUNDING,
    Payment,
    World,
    until,
)

_EIGHT_DAYS = 8 * 24 * 3600


async def test_an_expired_hold_expires_the_payment_when_the_webhook_comes(world: World) -> None:
    held = await world.escrowed()
    await world.stripe.advance(_EIGHT_DAYS)
    payment = await world.in_state(held.payment_id, EXPIRED)
    assert (payment.held_amount.minor_units, payment.captured_amount.minor_units) == (0, 0)
    refused = await refusal(world.payments.CapturePayment(capture_request(held.payment_id)))
    assert (refused.reason, refused.facts["state"]) == ("WRONG_STATE", "EXPIRED")
    await check_books(world)
    assert not await world.discrepancies()


async def test_an_expired_hold_is_found_without_a_webhook(
    world: World, as_superuser: Callable[..., int]
) -> None:
    held = await world.escrowed()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await world.stripe.advance(_EIGHT_DAYS)
    # The database's clock cannot be moved; the deadline can.
    changed = as_superuser(
        world, "UPDATE payments SET escrow_expire_time = now() - interval '1 minute'"
    )
    assert changed == 1
    await world.in_state(held.payment_id, EXPIRED)
    await check_books(world)


async def test_a_capture_of_an_expired_hold_is_refused_and_the_payment_expires(
    world: World,
) -> None:
    held = await world.escrowed()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await world.stripe.advance(_EIGHT_DAYS)
    request = capture_request(held.payment_id)
    refused = await refusal(world.payments.CapturePayment(request))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    assert refused.facts["state"] == "EXPIRED"
    assert (await world.get(held.payment_id)).state == EXPIRED
    assert (await refusal(world.payments.CapturePayment(request))).raw == refused.raw
    await check_books(world)


async def test_an_unpaid_payment_expires_with_its_window(start_world: StartWorld) -> None:
    world = await start_world(payment_window=0.01)
    initiated = await world.initiate(await world.expert())
    payment = await world.in_state(initiated.payment.payment_id, EXPIRED)
    assert payment.held_amount.minor_units == 0
    shown = await world.confirm(initiated)
    assert shown["error"]["code"] == "payment_intent_unexpected_state"
    await check_books(world)


@pytest.mark.parametrize("mode", [CARD, PLATFORM])
async def test_the_window_does_not_close_on_a_payment_confirmed_a_moment_ago(
    start_world: StartWorld, mode: payments_pb2.EscrowMode.ValueType
) -> None:
    """The job meets a payment that no webhook and no list of Stripe has reported yet."""
    world = await start_world(payment_window=0.01, loops=False)
    assert world.service is not None
    initiated = await world.initiate(await world.expert(), escrow_mode=mode)
    await world.pause_webhooks()
    await world.confirm(initiated)
    await expire_unpaid(world.service.app)
    payment = await world.get(initiated.payment.payment_id)
    assert (payment.state, payment.held_amount.minor_units) == (IN_ESCROW, 10_000)
    await expire_unpaid(world.service.app)
    world.service.start_loops()
    assert (await world.capture(payment.payment_id)).state == CAPTURED
    assert not await world.stripe.effects("canceled")
    await check_books(world)


@pytest.mark.parametrize("mode", [CARD, PLATFORM])
async def test_a_payment_confirmed_between_the_sync_and_the_cancellation(
    start_world: StartWorld, mode: payments_pb2.EscrowMode.ValueType
) -> None:
    """A hold is released, and the payment ends EXPIRED; a charge stays, and is in escrow."""
    world = await start_world(payment_window=0.01, loops=False)
    assert world.service is not None
    app = world.service.app
    initiated = await world.initiate(await world.expert(), escrow_mode=mode)
    payment_id = initiated.payment.payment_id
    await world.stripe.fault("/cancel$", "delay", delay_ms=1_500, hold_key=False)
    expiring = asyncio.create_task(expire_unpaid(app))
    await world.in_state(payment_id, CANCELING)
    await world.confirm(initiated)
    # The webhook comes in between as well, and ends nothing.
    assert await until(lambda: apply_waiting(app), "the webhooks")
    await expiring
    [authorized] = await world.stripe.effects("authorized" if mode == CARD else "captured")
    assert authorized["amount"] == 10_000
    world.service.start_loops()
    payment = await world.in_state(payment_id, EXPIRED if mode == CARD else IN_ESCROW)
    await world.settle_down()
    assert payment.held_amount.minor_units == (0 if mode == CARD else 10_000)
    assert len(await world.stripe.effects("canceled")) == (1 if mode == CARD else 0)
    shown = await world.stripe.api("GET", f"/payment_intents/{payment.payment_intent_id}")
    assert shown["status"] == ("canceled" if mode == CARD else "succeeded")
    await check_books(world)


async def test_a_payment_that_stripe_cannot_show_waits_and_holds_up_no_other(
    start_world: StartWorld,
) -> None:
    world = await start_world(payment_window=0.01, loops=False)
    assert world.service is not None
    app, expert = world.service.app, await world.expert()
    first, second = [(await world.initiate(expert)).payment for _ in range(2)]
    unreadable = {"method": "GET", "path": f"/{first.payment_intent_id}$"}
    await world.stripe.fault("", "status", times=None, status=500, match=unreadable)
    await expire_unpaid(app)
    assert (await world.get(second.payment_id)).state == EXPIRED
    assert (await world.get(first.payment_id)).state == PENDING
    assert len(await world.stripe.requests("/cancel")) == 1
    await world.stripe.clear_faults()
    assert await until(lambda: expire_unpaid(app), "the next round")
    assert (await world.get(first.payment_id)).state == EXPIRED
    world.service.start_loops()
    await check_books(world)


async def test_the_window_does_not_close_on_a_charge_without_its_line(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the books the payment is unpaid until Stripe shows what it took for the charge."""
    world = await start_world(payment_window=0.01, loops=False)
    assert world.service is not None
    app = world.service.app
    initiated = await world.initiate(await world.expert(), escrow_mode=PLATFORM)
    await world.pause_webhooks()
    await world.confirm(initiated)
    observe = app.stripe.observe

    async def without_line(payment_intent_id: str) -> PaymentSnapshot | None:
        seen = await observe(payment_intent_id)
        assert seen is not None
        assert seen.charge is not None
        return replace(seen, charge=replace(seen.charge, line=None))

    with monkeypatch.context() as patched:
        patched.setattr(app.stripe, "observe", without_line)
        await expire_unpaid(app)
    payment_id = initiated.payment.payment_id
    assert (await world.get(payment_id)).state == PENDING
    assert not await world.stripe.requests("/cancel")
    assert await until(lambda: expire_unpaid(app), "the next round")
    assert (await world.get(payment_id)).state == IN_ESCROW
    world.service.start_loops()
    await check_books(world)


async def test_the_expiry_job_leaves_a_captured_payment_alone(
    world: World, as_superuser: Callable[..., int]
) -> None:
    payment = await world.captured()
    assert world.service is not None
    as_superuser(world, "UPDATE payments SET escrow_expire_time = now() - interval '1 minute'")
    await sync_expired_authorizations(world.service.app)
    await expire_unpaid(world.service.app)
    assert (await world.get(payment.payment_id)).state == CAPTURED
    await check_books(world)


async def test_a_refused_reversal_is_a_debt_on_the_books(
    world: World,
) -> None:
    expert = await world.expert()
    payment = await world.captured(expert, 10_000)
    account = world.account_of(expert)
    await world.stripe.control(
        "POST",
        "/balance",
        {"account": account, "amount": -9_000, "currency": "usd", "type": "payout"},
    )
    request = refund_request(payment.payment_id)
    answer = await world.payments.RefundPayment(request)
    assert answer.payment.state == REFUNDED
    assert answer.payment.refunded_amount.minor_units == 10_000
    assert await world.payments.RefundPayment(request) == answer
    await check_books(world)
    assert balance(world, f"expert_debt:{expert}") == 9_000
    assert len(await world.stripe.effects("refunded")) == 1
    assert not await world.stripe.effects("reversed")


async def test_a_reversal_refused_for_an_amount_leaves_a_debt_of_that_amount(world: World) -> None:
    expert = await world.expert()
    payment = await world.captured(expert, 10_000)
    await world.stripe.control("POST", "/settings", {"reversal_balance": "available"})
    after = await world.refund(payment.payment_id, 3_000)
    assert (after.state, after.net_amount.minor_units) == (CAPTURED, 7_000)
    assert balance(world, f"expert_debt:{expert}") == 2_700
    # The funds have become available, so the next refund takes its own part back. What is owed is
    # collected later.
    await world.stripe.control("POST", "/settings", {"reversal_balance": "total"})
    after = await world.refund(payment.payment_id, 1_000)
    assert (after.state, after.net_amount.minor_units) == (CAPTURED, 6_000)
    await check_books(world)
    assert balance(world, f"expert_debt:{expert}") in (2_700, 0)


async def _bounced(world: World) -> tuple[Payment, operations_pb2.Operation]:
    """A payment whose refund came back from the bank, and the operation that waits."""
    payment = await world.captured(card="pm_card_refundFail")
    after = await world.refund(payment.payment_id)
    assert after.state == REFUNDED
    await world.settle_down()
    await world.stripe.advance(61)

    async def parked() -> operations_pb2.Operation | None:
        request = operations_pb2.ListOperationsRequest(state=operations_pb2.OPERATION_STATE_PARKED)
        operations = (await world.operations.ListOperations(request)).operations
        return operations[0] if operations else None

    operation = await until(parked, "a parked refund")
    return await world.get(payment.payment_id), operation


async def test_a_failed_refund_is_client_payable_until_an_operator_repays_it_once(
    world: World,
) -> None:
    payment, operation = await _bounced(world)
    assert (payment.state, payment.waiting_for) == (REFUNDING, payments_pb2.WAITING_FOR_OPERATOR)
    assert balance(world, f"client_payable:{payment.payment_id}") == -10_000
    assert (operation_kind_of(operation), operation.payment_id) == ("refund", payment.payment_id)
    await check_books(world)
    resume = operations_pb2.ResumeOperationRequest(operation_id=operation.operation_id)
    await world.operations.ResumeOperation(resume)
    paid = await world.in_state(payment.payment_id, REFUNDED)
    assert paid.waiting_for == payments_pb2.WAITING_FOR_UNSPECIFIED
    await check_books(world)
    assert balance(world, f"client_payable:{payment.payment_id}") == 0
    assert len(await world.stripe.effects("refunded")) == 2
    again = await refusal(world.operations.ResumeOperation(resume))
    assert (again.code, again.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    assert len(await world.stripe.effects("refunded")) == 2


async def test_client_payable_can_still_be_paid_days_later(
    world: World, as_superuser: Callable[..., int]
) -> None:
    payment, operation = await _bounced(world)
    as_superuser(
        world,
        "UPDATE operations SET create_time = create_time - interval '3 days', "
        "attempt_time = attempt_time - interval '3 days' WHERE operation_id = %s",
        operation.operation_id,
    )
    resume = operations_pb2.ResumeOperationRequest(operation_id=operation.operation_id)
    await world.operations.ResumeOperation(resume)
    await world.in_state(payment.payment_id, REFUNDED)
    await check_books(world)
    assert len(await world.stripe.effects("refunded")) == 2


async def test_client_payable_refused_once_is_paid_by_the_next_resume(world: World) -> None:
    payment, operation = await _bounced(world)
    await world.stripe.fault("/refunds$", "status", status=400, code="insufficient_funds")
    resume = operations_pb2.ResumeOperationRequest(operation_id=operation.operation_id)
    await world.operations.ResumeOperation(resume)

    async def refused_and_parked() -> bool:
        request = operations_pb2.ListOperationsRequest(state=operations_pb2.OPERATION_STATE_PARKED)
        found = (await world.operations.ListOperations(request)).operations
        return bool(found and found[0].last_error.startswith("insufficient_funds"))

    await until(refused_and_parked, "the refund refused and parked again")
    assert balance(world, f"client_payable:{payment.payment_id}") == -10_000
    await world.operations.ResumeOperation(resume)
    await world.in_state(payment.payment_id, REFUNDED)
    await check_books(world)
    assert len(await world.stripe.effects("refunded")) == 2


async def test_a_payment_that_stripe_will_not_create_is_cancelled_with_the_reason(
    start_world: StartWorld,
) -> None:
    # Nothing tells the service before Stripe refuses: no list is read, no webhook is on its way.
    world = await start_world(policy={"poll_seconds": 3600.0, "account_poll_seconds": 3600.0})
    expert = await world.expert()
    await world.settle_down()
    account = world.account_of(expert)
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await world.stripe.control(
        "POST",
        f"/accounts/{account}/restrict",
        {"disabled_reason": "rejected.fraud", "capabilities": {"transfers": "inactive"}},
    )
    request = world.initiation(expert)
    refused = await refusal(world.payments.InitiatePayment(request))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "EXPERT_NOT_READY")
    assert (await refusal(world.payments.InitiatePayment(request))).raw == refused.raw
    found = await world.payments.ListPayments(payments_pb2.ListPaymentsRequest(user_id=expert))
    [payment] = found.payments
    assert payment.state == payments_pb2.PAYMENT_STATE_CANCELED
    assert payment.last_failure.code
    assert not await world.stripe.effects("intent_created")
    await check_books(world)


async def test_a_sync_leaves_a_pending_payment_pending(world: World) -> None:
    initiated = await world.initiate(await world.expert())
    await world.settle_down()
    payment = await world.get(initiated.payment.payment_id)
    assert (payment.state, payment.version) == (PENDING, initiated.payment.version)


async def test_a_refund_that_was_not_sent_yet_does_not_wait_for_one_that_bounced(
    world: World,
) -> None:
    payment = await world.captured()
    await world.refund(payment.payment_id, 1_000)
    [(first,)] = world.sql("SELECT movement_id FROM movements WHERE kind = 'refund'")
    await world.stripe.fault("/refunds$", "reset", "before", times=None)
    request = refund_request(payment.payment_id, 2_000)
    assert (await refusal(world.payments.RefundPayment(request))).code == "UNAVAILABLE"
    # The bounce must wait for the open refund, which must not wait for the bounce.
    await world.stripe.control("POST", f"/refunds/{first}/fail")
    await world.stripe.clear_faults()

    async def both() -> Payment | None:
        found = await world.get(payment.payment_id)
        owed = found.waiting_for == payments_pb2.WAITING_FOR_OPERATOR
        return found if owed and found.refunded_amount.minor_units == 3_000 else None

    found = await until(both, "the second refund, and then the first one's bounce")
    assert found.state == REFUNDING
    assert balance(world, f"client_payable:{payment.payment_id}") == -1_000
    await check_books(world)
