"""Another account for an expert, also between escrow and capture: nothing is paid twice or lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from marketplace.payments.v1 import experts_pb2, operations_pb2, payments_pb2
from payment_service.application.execution.accounts import finish_account
from payment_service.application.idempotency import claim_and_start
from payment_service.application.jobs.act_on_deadlines import due_deadline
from payment_service.application.replace_expert_account import (
    ReplaceExpertAccount,
    begin_replacement,
)
from payment_service.domain.experts import BusinessType
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause
from payment_service.domain.ports.stripe import Done, NewAccount
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.phases import wait_in_phase
from tests.support.requests import capture_request
from tests.support.steps.dashboard import refund_out_of_band
from tests.support.steps.experts import (
    deauthorize,
    onboard,
    reject,
    replace,
    replacement,
    transferred_to,
    waiting_for,
)
from tests.support.steps.operators import not_sent, resume
from tests.support.steps.payments import reasons
from tests.support.world import CANCELED, CAPTURED, CAPTURING, IN_ESCROW, REFUNDED, World, until

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD
PROMOTE = payments_pb2.ON_DEADLINE_PROMOTE
READY = experts_pb2.EXPERT_STATUS_READY
REJECTED = experts_pb2.EXPERT_STATUS_REJECTED
RESTRICTED = experts_pb2.EXPERT_STATUS_RESTRICTED
DEAUTHORIZED = experts_pb2.EXPERT_STATUS_DEAUTHORIZED
ONBOARDING = experts_pb2.EXPERT_STATUS_ONBOARDING
SEPARATE = pytest.mark.parametrize(
    "fields", [{"escrow_mode": PLATFORM}, {"on_deadline": PROMOTE}], ids=["held", "authorized"]
)


async def reconciled(world: World) -> operations_pb2.RunReconciliationResponse:
    return await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())


# ---- the exchange ----


async def test_a_rejected_account_is_replaced_once(world: World) -> None:
    expert = await world.expert()
    former = await reject(world, expert)
    request = replacement(expert)
    answers = await asyncio.gather(*(world.experts.ReplaceExpertAccount(request) for _ in range(6)))
    [account] = {answer.expert.stripe_account_id for answer in answers}
    assert account != former
    assert len({answer.onboarding_url for answer in answers}) == 6
    assert {answer.expert.SerializeToString(deterministic=True) for answer in answers} == {
        answers[0].expert.SerializeToString(deterministic=True)
    }
    assert answers[0].expert.status == ONBOARDING
    assert world.account_of(expert) == account
    assert len(await world.stripe.effects("account_created")) == 2
    assert world.sql("SELECT stripe_account_id FROM former_accounts") == [(former,)]
    recorded = [kind for (kind,) in world.sql("SELECT kind FROM expert_events ORDER BY sequence")]
    assert recorded[-2:] == ["expert.account_replacement_requested", "expert.account_replaced"]
    await onboard(world, expert, account)
    again = await world.experts.ReplaceExpertAccount(request)
    assert again.expert == answers[0].expert
    # The creation's own repetition speaks of the account that there is now.
    created = await world.experts.CreateExpertAccount(
        experts_pb2.CreateExpertAccountRequest(
            expert_id=expert, name="Ann Expert", email=f"{expert}@example.com"
        )
    )
    assert created.expert.stripe_account_id == account
    assert (await world.captured(expert)).state == CAPTURED
    await check_books(world)


@pytest.mark.parametrize("path", ["/accounts", "^/v"])
async def test_a_stored_answer_is_returned_while_stripe_is_unavailable(
    world: World, path: str
) -> None:
    expert = await world.expert()
    former = world.account_of(expert)
    request = replacement(expert, former_account_id=former, replace_working_account=True)
    given = await world.experts.ReplaceExpertAccount(request)
    await world.settle_down()
    fault = {"match": {"path": path}, "action": "status", "status": 503}
    await world.stripe.control("POST", "/faults", fault)
    again = await world.experts.ReplaceExpertAccount(request)
    assert again.expert == given.expert
    # The link is Stripe's to make; RefreshOnboarding does so later.
    assert bool(again.onboarding_url) is (path == "/accounts")
    # A new key is not stored while it is unknown whether the account is lost.
    present = given.expert.stripe_account_id
    new = replacement(expert, former_account_id=present, replace_working_account=True)
    refused = await refusal(world.experts.ReplaceExpertAccount(new))
    assert refused.code == "UNAVAILABLE"
    assert not world.sql("SELECT 1 FROM idempotency_keys WHERE key = %s", new.idempotency_key)


async def test_racing_keys_make_one_account(world: World) -> None:
    expert = await world.expert()
    former = await deauthorize(world, expert)
    calls = [
        world.experts.ReplaceExpertAccount(replacement(expert, former_account_id=former))
        for _ in range(6)
    ]
    came = await asyncio.gather(*calls, return_exceptions=True)
    made = [one for one in came if isinstance(one, experts_pb2.ReplaceExpertAccountResponse)]
    assert len(made) == 1
    assert len(await world.stripe.effects("account_created")) == 2
    assert made[0].expert.status == ONBOARDING


async def test_what_is_refused_and_why(world: World) -> None:
    expert = await world.expert()
    account = world.account_of(expert)
    request = replacement(expert)
    refused = await refusal(world.experts.ReplaceExpertAccount(request))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "EXPERT_ACCOUNT_IN_USE")
    assert refused.facts == {
        "expert_id": expert,
        "status": "READY",
        "stripe_account_id": account,
    }
    assert (await refusal(world.experts.ReplaceExpertAccount(request))).raw == refused.raw
    working = replacement(expert, replace_working_account=True)
    refused = await refusal(world.experts.ReplaceExpertAccount(working))
    assert refused.fields == {"former_account_id": "is required with replace_working_account"}
    other = replacement(expert, replace_working_account=True, former_account_id="acct_other")
    refused = await refusal(world.experts.ReplaceExpertAccount(other))
    assert refused.reason == "EXPERT_ACCOUNT_IN_USE"
    refused = await refusal(world.experts.ReplaceExpertAccount(replacement("nobody")))
    assert refused.reason == "EXPERT_NOT_FOUND"
    reasonless = replacement(expert, reason=" ")
    assert "reason" in (await refusal(world.experts.ReplaceExpertAccount(reasonless))).fields
    assert len(await world.stripe.effects("account_created")) == 1
    replaced = await replace(world, expert, replace_working_account=True, former_account_id=account)
    assert world.account_of(expert) == replaced


async def test_stripe_may_refuse_the_new_account_and_the_old_one_stays(world: World) -> None:
    expert = await world.expert()
    former = await reject(world, expert)
    await world.stripe.fault("/accounts$", "status", status=400, code="country_unsupported")
    request = replacement(expert)
    refused = await refusal(world.experts.ReplaceExpertAccount(request))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "REFUSED_BY_PROCESSOR")
    assert (await refusal(world.experts.ReplaceExpertAccount(request))).reason == refused.reason
    assert world.account_of(expert) == former
    assert await replace(world, expert) != former


@pytest.mark.parametrize(
    ("action", "when", "more"),
    [
        ("hang", "before", {"delay_ms": 1_500}),
        ("hang", "after", {"delay_ms": 1_500}),
        ("reset", "after", {}),
        ("status", "after", {"status": 500}),
    ],
)
async def test_an_unknown_creation_ends_in_one_account(
    start_world: StartWorld, action: str, when: str, more: dict[str, Any]
) -> None:
    world = await start_world(stripe_timeout=1.0)
    expert = await world.expert()
    former = await reject(world, expert)
    await world.stripe.fault("/accounts$", action, when, **more)
    request = replacement(expert)
    assert (await refusal(world.experts.ReplaceExpertAccount(request))).code == "UNAVAILABLE"
    other = await refusal(world.experts.ReplaceExpertAccount(replacement(expert)))
    assert other.reason in ("OPERATION_IN_PROGRESS", "EXPERT_ACCOUNT_IN_USE")

    async def probe() -> experts_pb2.ReplaceExpertAccountResponse | None:
        with contextlib.suppress(aio.AioRpcError):  # Asked again with the same key, as told.
            return await world.experts.ReplaceExpertAccount(request)
        return None

    answer = await until(probe, "the account")
    assert answer.expert.stripe_account_id == world.account_of(expert) != former
    assert len(await world.stripe.effects("account_created")) == 2


async def test_a_restart_in_between_is_finished_by_the_background_job(
    start_world: StartWorld,
) -> None:
    world = await start_world(stripe_timeout=1.0)
    assert world.service is not None
    expert = await world.expert()
    former = await reject(world, expert)
    await world.stripe.fault("/accounts$", "hang", "after", delay_ms=1_500)
    call = asyncio.ensure_future(world.experts.ReplaceExpertAccount(replacement(expert)))

    async def made() -> bool:
        return len(await world.stripe.effects("account_created")) == 2

    await until(made, "the account at Stripe")
    await world.service.restart()
    await asyncio.gather(call, return_exceptions=True)

    async def replaced() -> bool:
        return world.account_of(expert) != former

    await until(replaced, "the exchange")
    assert len(await world.stripe.effects("account_created")) == 2


# ---- captures from the platform's balance ----


async def test_a_transfer_that_is_resumed_after_an_exchange_goes_to_the_new_account(
    world: World,
) -> None:
    """Also if it no longer waits for the expert, because something was moved out of band."""
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    former = await reject(world, expert)
    await world.capture(held.payment_id, 4_000)
    await refund_out_of_band(world, held, 1_000)
    operation_id = await not_sent(world, held, "refund")
    account = await replace(world, expert)
    # The former account works again, so nothing but our own rule keeps the money from it.
    await world.stripe.control("POST", f"/accounts/{former}/restore")
    await resume(world, operation_id)
    payment = await world.in_state(held.payment_id, IN_ESCROW)
    assert payment.captured_amount.minor_units == 4_000
    assert await transferred_to(world, payment) == [account]
    await check_books(world)


@SEPARATE
async def test_a_waiting_transfer_goes_to_the_new_account(
    world: World, fields: dict[str, Any]
) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, **fields)
    former = await reject(world, expert)
    payment = await world.capture(held.payment_id)
    assert (payment.state, payment.waiting_for) == (CAPTURING, payments_pb2.WAITING_FOR_EXPERT)
    assert payment.waiting_reason == payments_pb2.WAITING_REASON_EXPERT_REJECTED
    account = await replace(world, expert, ready=False)
    await waiting_for(world, held.payment_id, "EXPERT_ONBOARDING")
    await onboard(world, expert, account, "pending")
    await waiting_for(world, held.payment_id, "EXPERT_PENDING_VERIFICATION")
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    payment = await world.in_state(held.payment_id, CAPTURED)
    assert (payment.waiting_for, payment.waiting_reason) == (
        payments_pb2.WAITING_FOR_UNSPECIFIED,
        0,
    )
    assert await reasons(world, held.payment_id) == [
        "EXPERT_REJECTED",
        "EXPERT_ONBOARDING",
        "EXPERT_PENDING_VERIFICATION",
    ]
    assert await transferred_to(world, payment) == [account]
    assert not [line for line in await world.stripe.lines(former) if line["type"] != "payout"]
    assert balance(world, f"expert_funds:{expert}") == -9_000
    await check_books(world)
    await reconciled(world)
    assert not await world.discrepancies()


@SEPARATE
async def test_a_capture_after_the_exchange_goes_to_the_new_account(
    world: World, fields: dict[str, Any]
) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, **fields)
    await deauthorize(world, expert)
    account = await replace(world, expert)
    payment = await world.capture(held.payment_id)
    assert payment.state == CAPTURED
    assert await transferred_to(world, payment) == [account]
    await check_books(world)
    await reconciled(world)
    assert not await world.discrepancies()


async def test_an_exchange_between_the_charge_and_the_transfer(world: World) -> None:
    """The card is charged, its answer is lost, and meanwhile the expert has another account."""
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, on_deadline=PROMOTE)
    former = await reject(world, expert)
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await world.stripe.fault("/capture$", "status", times=None, status=409, code="lock_timeout")
    call = asyncio.ensure_future(world.payments.CapturePayment(capture_request(held.payment_id)))
    await world.in_state(held.payment_id, CAPTURING)
    account = await replace(world, expert)
    await world.stripe.clear_faults()
    await world.stripe.control("POST", "/webhooks", {"paused": False})
    await asyncio.gather(call, return_exceptions=True)
    payment = await world.in_state(held.payment_id, CAPTURED)
    assert await transferred_to(world, payment) == [account] != [former]
    await check_books(world)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_retargeted_transfer_whose_answer_is_lost_is_made_once(
    start_world: StartWorld, when: str
) -> None:
    world = await start_world(stripe_timeout=1.0)
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    await reject(world, expert)
    await world.capture(held.payment_id)
    account = await replace(world, expert, ready=False)
    await world.stripe.fault("/transfers$", "hang", when, times=2, delay_ms=1_500)
    await onboard(world, expert, account)
    payment = await world.in_state(held.payment_id, CAPTURED)
    assert await transferred_to(world, payment) == [account]
    assert len(await world.stripe.effects("transferred", held.payment_intent_id)) == 1
    await check_books(world)


async def test_a_transfer_of_unknown_outcome_keeps_its_account(start_world: StartWorld) -> None:
    """It may have gone out to the former account: only under the same key is it asked again."""
    world = await start_world(stripe_timeout=1.0)
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    former = world.account_of(expert)
    # Its effect comes while the expert is given another account.
    await world.stripe.fault("/transfers$", "delay", "before", delay_ms=4_000)
    call = asyncio.ensure_future(world.payments.CapturePayment(capture_request(held.payment_id)))
    await world.in_state(held.payment_id, CAPTURING)
    account = await replace(world, expert, replace_working_account=True, former_account_id=former)
    await asyncio.gather(call, return_exceptions=True)
    payment = await world.in_state(held.payment_id, CAPTURED)
    await world.settle_down()
    assert await transferred_to(world, payment) == [former] != [account]
    assert len(await world.stripe.effects("transferred", held.payment_intent_id)) == 1
    await check_books(world)
    await reconciled(world)
    assert not await world.discrepancies()


# ---- destination charges ----


async def test_a_destination_charge_is_not_captured_for_the_former_account(world: World) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000)
    former = await reject(world, expert)
    account = await replace(world, expert)
    for fields in ({}, {"validate_only": True}):
        refused = await refusal(
            world.payments.CapturePayment(capture_request(held.payment_id, **fields))
        )
        assert (refused.code, refused.reason) == (
            "FAILED_PRECONDITION",
            "DESTINATION_ACCOUNT_REPLACED",
        )
        assert refused.facts == {
            "payment_id": held.payment_id,
            "expert_id": expert,
            "destination_account_id": former,
            "stripe_account_id": account,
        }
    assert (await world.get(held.payment_id)).state == IN_ESCROW
    assert (await world.refund(held.payment_id)).state == CANCELED
    anew = await world.captured(expert, 10_000)
    assert anew.state == CAPTURED
    assert balance(world, f"expert_funds:{expert}") == -9_000
    await check_books(world)


async def test_an_account_replacement_that_commits_during_a_capture_is_noticed(
    world: World,
) -> None:
    """The capture reads the expert's account only under its lock."""
    assert world.service is not None
    app = world.service.app
    expert = await world.expert()
    held = await world.escrowed(expert)
    command = ReplaceExpertAccount(
        cause=Cause("local", "ReplaceExpertAccount"),
        key="k",
        fields={},
        expert_id=expert,
        reason="lost",
        former_account_id=world.account_of(expert),
        replace_working_account=True,
        account_is_fresh=True,
    )
    begun = await app.database.transact(claim_and_start, app, command, begin_replacement)
    operation = begun.operation
    assert operation is not None
    made = await app.stripe.create_account(
        operation.stripe_key,
        NewAccount(
            name="Ann",
            email="ann@example.com",
            country="US",
            business_type=BusinessType.INDIVIDUAL,
            metadata={"expert_id": expert, "operation_id": operation.operation_id},
        ),
    )
    assert isinstance(made, Done)
    written, commits = asyncio.Event(), asyncio.Event()

    def finish_slowly(tx: Transaction) -> None:
        finish_account(tx, app.answers, app.policy, operation, made.value, command.cause)
        written.set()
        wait_in_phase(commits.is_set, "the capture to wait")

    exchange = asyncio.create_task(app.database.transact(finish_slowly))
    await asyncio.wait_for(written.wait(), 10)
    capture = asyncio.create_task(
        refusal(world.payments.CapturePayment(capture_request(held.payment_id)))
    )

    async def waits() -> bool:
        return bool(world.sql("SELECT 1 FROM pg_locks WHERE NOT granted"))

    await until(waits, "the capture to wait for the expert")
    commits.set()
    await exchange
    refused = await capture
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "DESTINATION_ACCOUNT_REPLACED")
    assert not await world.stripe.effects("captured", held.payment_intent_id)


async def test_a_waiting_destination_capture_stays_parked_until_it_is_refunded(
    world: World,
) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000)
    former = await reject(world, expert)
    payment = await world.capture(held.payment_id)
    assert payment.waiting_reason == payments_pb2.WAITING_REASON_EXPERT_REJECTED
    await replace(world, expert)
    await waiting_for(world, held.payment_id, "DESTINATION_ACCOUNT_REPLACED")
    # Even a former account that is well again is not paid, not by an operator's hand either.
    await world.stripe.control("POST", f"/accounts/{former}/restore")
    [(operation,)] = world.sql(
        "SELECT operation_id FROM payments WHERE payment_id = %s", held.payment_id
    )
    refused = await refusal(
        world.operations.ResumeOperation(
            operations_pb2.ResumeOperationRequest(operation_id=operation)
        )
    )
    assert refused.reason == "DESTINATION_ACCOUNT_REPLACED"
    await asyncio.sleep(2.5)  # Two rounds of the loop that sends waiting captures on.
    assert (await world.get(held.payment_id)).state == CAPTURING
    assert (await world.refund(held.payment_id)).state == CANCELED
    assert not await world.stripe.effects("captured", held.payment_intent_id)
    await check_books(world)


async def test_a_deadline_that_cannot_be_kept_is_reported_once(
    world: World, as_superuser: Callable[..., int]
) -> None:
    assert world.service is not None
    expert = await world.expert()
    due = Timestamp()
    due.FromDatetime(datetime.now(UTC) + timedelta(days=5))
    held = await world.escrowed(
        expert,
        10_000,
        on_deadline=payments_pb2.ON_DEADLINE_CAPTURE,
        expected_completion_time=due,
    )
    assert held.charge_model == payments_pb2.CHARGE_MODEL_DESTINATION
    await reject(world, expert)
    await replace(world, expert)
    as_superuser(world, "UPDATE payments SET release_due_time = now() - interval '3 hours'")

    async def recorded() -> list[Any]:
        return world.sql(
            "SELECT body::jsonb->'facts'->>'refused' FROM events WHERE payment_id = %s "
            "AND kind = 'payment.deadline_passed'",
            held.payment_id,
        )

    assert await until(recorded, "the deadline") == [("DESTINATION_ACCOUNT_REPLACED",)]
    # Not tried again, as what may only be refused for now is after an hour.
    as_superuser(world, "UPDATE payments SET deadline_time = now() - interval '2 hours'")
    app = world.service.app
    assert await app.database.transact(due_deadline, app.policy, held.payment_id) is None
    assert (await world.get(held.payment_id)).state == IN_ESCROW


# ---- why a capture waits ----


@pytest.mark.parametrize("fields", [{}, {"escrow_mode": PLATFORM}], ids=["destination", "separate"])
async def test_a_restricted_then_deauthorized_expert(world: World, fields: dict[str, Any]) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, **fields)
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/restrict")
    payment = await world.capture(held.payment_id)
    assert payment.waiting_reason == payments_pb2.WAITING_REASON_EXPERT_RESTRICTED
    await deauthorize(world, expert)
    await waiting_for(world, held.payment_id, "EXPERT_DEAUTHORIZED")
    assert (await world.refund(held.payment_id)).state == (REFUNDED if fields else CANCELED)


async def test_stripe_refuses_although_the_account_looks_ready(world: World) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    await world.stripe.fault("/transfers$", "status", status=400, code="account_invalid")
    payment = await world.capture(held.payment_id)
    assert payment.waiting_reason == payments_pb2.WAITING_REASON_EXPERT_REFUSED
    assert await reasons(world, held.payment_id) == ["EXPERT_REFUSED"]


# ---- the former account continues ----


@pytest.mark.parametrize("fields", [{}, {"escrow_mode": PLATFORM}], ids=["destination", "separate"])
async def test_the_former_accounts_payouts_and_refunds_are_synced(
    world: World, fields: dict[str, Any]
) -> None:
    expert = await world.expert()
    first = await world.captured(expert, 10_000, card="pm_card_bypassPending", **fields)
    second = await world.captured(expert, 20_000, card="pm_card_bypassPending", **fields)
    former = world.account_of(expert)
    account = await replace(world, expert, replace_working_account=True, former_account_id=former)
    third = await world.captured(expert, 5_000, card="pm_card_bypassPending", **fields)
    # Taken back from the account that was paid.
    payment = await world.refund(first.payment_id)
    assert payment.state == REFUNDED
    assert balance(world, f"expert_debt:{expert}") == 0
    held = await world.experts.GetExpertBalance(
        experts_pb2.GetExpertBalanceRequest(expert_id=expert)
    )
    [dollars] = held.balances
    assert dollars.available.minor_units + dollars.pending.minor_units == 18_000 + 4_500
    assert dollars.funds.minor_units == 18_000 + 4_500
    # Its remainder goes to the bank.
    await world.stripe.control("POST", f"/accounts/{former}/payout")

    async def paid_out() -> list[experts_pb2.Payout]:
        request = experts_pb2.ListPayoutsRequest(expert_id=expert)
        return list((await world.experts.ListPayouts(request)).payouts)

    payouts = await until(paid_out, "the former account's payout")
    assert [(one.stripe_account_id, one.amount.minor_units) for one in payouts] == [
        (former, 18_000)
    ]

    async def booked() -> bool:
        return balance(world, f"stripe:connected:{expert}") == 4_500

    await until(booked, "the payout in the books")
    await world.stripe.control("POST", f"/accounts/{former}/restrict")
    await world.settle_down()
    assert (await world.expert_status(expert, READY)).stripe_account_id == account
    assert second.state == third.state == CAPTURED
    await reconciled(world)
    assert not await world.discrepancies()


async def test_a_disconnected_former_account_is_not_compared(
    world: World,
) -> None:
    expert = await world.expert()
    await world.captured(expert, 10_000)
    former = world.account_of(expert)
    account = await replace(world, expert, replace_working_account=True, former_account_id=former)
    await world.stripe.control("POST", f"/accounts/{former}/deauthorize")

    async def noticed() -> bool:
        return bool(world.sql("SELECT 1 FROM former_accounts WHERE deauthorize_time IS NOT NULL"))

    await until(noticed, "the former account's deauthorization")
    assert (await world.expert_status(expert, READY)).stripe_account_id == account
    await world.captured(expert, 5_000)
    await world.settle_down()
    await reconciled(world)
    assert not await world.discrepancies()
    held = await world.experts.GetExpertBalance(
        experts_pb2.GetExpertBalanceRequest(expert_id=expert)
    )
    [dollars] = held.balances
    assert dollars.available.minor_units + dollars.pending.minor_units == 4_500
    await world.stripe.control("POST", f"/accounts/{former}/reauthorize")


async def test_the_schema_forgets_no_account(world: World) -> None:
    expert = await world.expert()
    former = await reject(world, expert)
    await replace(world, expert)
    for statement in (
        "UPDATE experts SET stripe_account_id = 'acct_x'",
        "UPDATE experts SET stripe_account_id = NULL",
        "UPDATE experts SET stripe_account_id = (SELECT stripe_account_id FROM former_accounts)",
        "UPDATE former_accounts SET expert_id = 'x'",
        "DELETE FROM former_accounts",
        "TRUNCATE former_accounts",
    ):
        with pytest.raises(psycopg2.Error) as refused:
            world.sql(statement)
        assert refused.value.pgcode == "23001"
    assert world.sql("SELECT stripe_account_id FROM former_accounts") == [(former,)]
