"""Promises whose breach a chaos run meets too seldom: each broken on purpose by a mutant.

They stand apart from the service's own tests: in a mutant's tree they must fail alone, and fast.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import aiohttp
import psycopg2
import pytest

from gateway.app import running
from gateway.settings import Settings
from marketplace.payments.v1 import payments_pb2
from payment_service.adapters.postgres.engine import SqlDatabase
from payment_service.adapters.postgres.statements import SwallowedError
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.application.app import App
from payment_service.application.capture_payment import CapturePayment, begin_capture
from payment_service.application.execution.executor import execute
from payment_service.application.idempotency import claim_and_start
from payment_service.application.jobs.act_on_deadlines import act_on_deadlines
from payment_service.application.operations.outcomes import release_operation
from payment_service.application.operations.start import start_operation
from payment_service.application.sync.apply_snapshot import FetchedSnapshot, apply_snapshot
from payment_service.application.sync.payment import sync_payment
from payment_service.domain import transitions
from payment_service.domain.errors import Unavailable
from payment_service.domain.experts import BusinessType, Expert
from payment_service.domain.operation_payloads import CancelPayload
from payment_service.domain.operations import Operation, OperationKind, OperationState, Retry
from payment_service.domain.payment import ChargeModel, Payment
from payment_service.domain.plans import RequestedAmount
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers, Cause
from payment_service.domain.snapshot import IntentStatus, PaymentSnapshot
from payment_service.rpc.call_context import CallRegistry
from tests.support.books import balance
from tests.support.errors import refusal
from tests.support.phases import wait_in_phase
from tests.support.requests import capture_request
from tests.support.running import running_world
from tests.support.service import PLATFORM_SECRET
from tests.support.stripe import ingestion, new_event, signed
from tests.support.world import World, until

CAUSE = Cause("local", "Test")
POLICY = Policy()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[SqlDatabase]:
    opened = SqlDatabase(database_url)
    yield opened
    await opened.close()


def _a_payment(tx: SqlTransaction) -> Payment:
    """A payment with an intent and nothing under way."""
    expert = Expert(
        expert_id="expert",
        name="Ann",
        email="ann@example.com",
        country="US",
        business_type=BusinessType.INDIVIDUAL,
        commission_basis_points=1000,
        commission_asked=None,
        create_time=tx.now,
        update_time=tx.now,
    )
    tx.add_expert(expert, CAUSE)
    payment = Payment(
        payment_id=tx.new_id("pay"),
        client_id="client",
        expert_id="expert",
        gig_id="gig",
        description="",
        charge_model=ChargeModel.DESTINATION,
        destination_account_id="acct_1",
        currency="USD",
        amount=10_000,
        commission_basis_points=1000,
        commission=1_000,
        expert_amount=9_000,
        create_time=tx.now,
        update_time=tx.now,
        payment_expire_time=tx.now + timedelta(days=1),
    )
    initiated = transitions.initiate(payment)
    tx.record(initiated, CAUSE)
    created = transitions.intent_created(initiated.after, f"pi_{payment.payment_id}", tx.now)
    tx.record(created, CAUSE)
    return created.after


def _cancel(tx: SqlTransaction, payment: Payment) -> Operation:
    operation = start_operation(
        tx,
        POLICY,
        kind=OperationKind.CANCEL,
        payment_id=payment.payment_id,
        minor_units=payment.amount,
        payload=CancelPayload(payment_intent_id=payment.payment_intent_id),
    )
    tx.record(transitions.start_cancel(payment, operation.operation_id, "", tx.now), CAUSE)
    return operation


async def test_a_payment_is_locked_before_it_is_judged(database: SqlDatabase) -> None:
    """Of two that read the payment at once, the second must see what the first one made of it."""
    payment = await database.transact(_a_payment)
    holding, go_on = asyncio.Event(), asyncio.Event()

    def first(tx: SqlTransaction) -> None:
        tx.lock_payment(payment.payment_id)
        holding.set()
        wait_in_phase(go_on.is_set, "the other phase")

    def second(tx: SqlTransaction) -> None:
        tx.lock_payment(payment.payment_id)

    held = asyncio.create_task(database.transact(first))
    await holding.wait()
    waiting = asyncio.create_task(database.transact(second))
    done, _ = await asyncio.wait([waiting], timeout=0.5)
    go_on.set()
    await asyncio.gather(held, waiting)
    assert not done


async def test_a_late_commit_is_not_lost_from_the_feed(database: SqlDatabase) -> None:
    """What is recorded first and committed last comes late, yet it comes."""
    payment = await database.transact(_a_payment)
    holding, go_on = asyncio.Event(), asyncio.Event()

    def late(tx: SqlTransaction) -> None:
        locked = tx.lock_payment(payment.payment_id)
        assert locked is not None
        _cancel(tx, locked)
        tx.stripe_binding()  # What is recorded travels with the next read, or with the COMMIT.
        holding.set()
        wait_in_phase(go_on.is_set, "the other phase")

    def give_places(tx: SqlTransaction) -> None:
        tx.sequence_feed(100)

    held = asyncio.create_task(database.transact(late))
    await holding.wait()
    other = await database.transact(_a_payment)
    await database.transact(give_places)
    go_on.set()
    await held
    await database.transact(give_places)
    fed = await database.read(lambda reader: reader.feed(0, 100))
    received = [(one.event.payment_id, one.event.sequence) for one in fed]
    first, second = payment.payment_id, other.payment_id
    assert received == [(first, 1), (first, 2), (second, 1), (second, 2), (first, 3)]


async def test_an_old_snapshot_changes_nothing(database: SqlDatabase) -> None:
    """What was seen at an earlier version may be older than the books."""
    payment = await database.transact(_a_payment)
    seen = PaymentSnapshot(
        payment_intent_id=payment.payment_intent_id,
        status=IntentStatus.CANCELED,
        minor_units=payment.amount,
        currency=payment.currency,
    )
    applied = await database.transact(
        apply_snapshot,
        cast("Answers", None),
        POLICY,
        FetchedSnapshot(payment_id=payment.payment_id, version=payment.version - 1, snapshot=seen),
        CAUSE,
    )
    now = await database.read(lambda reader: reader.payment(payment.payment_id))
    assert applied.stale
    assert now == payment


async def test_a_swallowed_error_does_not_commit(database: SqlDatabase) -> None:
    def phase(tx: SqlTransaction) -> None:
        _a_payment(tx)
        with contextlib.suppress(psycopg2.Error):
            tx._do("INSERT INTO payments (payment_id) VALUES ('pay_1')")

    with pytest.raises(SwallowedError):
        await database.transact(phase)


async def test_a_commit_is_waited_for(database: SqlDatabase) -> None:
    """What is answered must have reached the disk's log, or a crash a moment later loses it."""

    def phase(tx: SqlTransaction) -> str:
        return str(tx._one("SHOW synchronous_commit")["synchronous_commit"])

    assert await database.transact(phase) == "on"


async def test_a_holder_without_the_lease_changes_nothing(database: SqlDatabase) -> None:
    """A replica was suspended past the end of its lease and resumes with an old operation."""
    payment = await database.transact(_a_payment)
    old = await database.transact(_cancel, payment)

    def take_over(tx: SqlTransaction) -> Operation | None:
        tx._do("UPDATE operations SET lease_until = now() - interval '1 second'")
        return tx.lease_operation(old.operation_id, 30)

    new = await database.transact(take_over)
    assert new is not None
    await database.transact(release_operation, POLICY, old, Retry(why="I slept", after=1.0), CAUSE)
    now = await database.read(lambda reader: reader.operation(old.operation_id))
    assert now == new

    def settle(tx: SqlTransaction) -> None:
        tx.settle_operation(old.operation_id, OperationState.SUCCEEDED)

    await database.transact(settle)
    await database.transact(release_operation, POLICY, new, Retry(why="I slept", after=1.0), CAUSE)
    end = await database.read(lambda reader: reader.operation(old.operation_id))
    assert end is not None
    assert end.state is OperationState.SUCCEEDED


class _Stripe:
    """Has the intent, uncancelled, and counts what is asked of it."""

    is_unavailable = False

    def __init__(self, seen: PaymentSnapshot) -> None:
        self.seen = seen
        self.sent = 0

    async def observe(self, payment_intent_id: str) -> PaymentSnapshot:
        return self.seen

    async def cancel(self, key: str, payment_intent_id: str) -> Any:
        self.sent += 1
        raise AssertionError("sent again")


class _Alarms:
    def __init__(self) -> None:
        self.parked: list[str] = []

    def operation_parked(self, operation: Operation, why: str) -> None:
        self.parked.append(why)

    def event_parked(self, event_id: str, why: str) -> None: ...
    def discrepancy(self, payment_id: str, kind: str) -> None: ...


async def test_nothing_is_sent_again_after_23_hours(database: SqlDatabase) -> None:
    payment = await database.transact(_a_payment)
    operation = await database.transact(_cancel, payment)
    seen = PaymentSnapshot(
        payment_intent_id=payment.payment_intent_id,
        status=IntentStatus.REQUIRES_PAYMENT_METHOD,
        minor_units=payment.amount,
        currency=payment.currency,
    )
    stripe, alarms = _Stripe(seen), _Alarms()
    app = App(database, cast("Any", stripe), cast("Answers", None), POLICY, cast("Any", alarms))
    old = replace(operation, tries=1, attempt_time=datetime.now(UTC) - timedelta(hours=23.5))
    with pytest.raises(Unavailable):
        await execute(app, old, payment.version + 1, CAUSE)
    assert stripe.sent == 0
    assert alarms.parked
    now = await database.read(lambda reader: reader.operation(operation.operation_id))
    assert now is not None
    assert now.state is OperationState.PARKED


async def test_a_callers_timeout_interrupts_nothing() -> None:
    operations, done = CallRegistry(), asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.set()

    call = asyncio.create_task(operations.run(work()))
    await asyncio.sleep(0.01)
    call.cancel()
    assert await operations.drain(1) == 0
    assert done.is_set()


# ---- money that the platform holds: the whole service in this process, before the simulator ----

PLATFORM: dict[str, Any] = {"escrow_mode": payments_pb2.ESCROW_MODE_PLATFORM_HOLD}
#: Charged money is available at once: Stripe lets transfers of it be reversed.
AVAILABLE = "pm_card_bypassPending"


async def test_partial_captures_of_held_money_reach_the_right_accounts(database_url: str) -> None:
    async with running_world(database_url) as world:
        held = await world.escrowed(amount=20_000, card=AVAILABLE, **PLATFORM)
        await world.capture(held.payment_id, 3_000)
        await world.capture(held.payment_id, 4_000)
        await world.refund(held.payment_id, 2_000)
        too_much = await refusal(world.capture(held.payment_id, 11_001))
        assert too_much.reason == "AMOUNT_TOO_LARGE"
        await world.capture(held.payment_id, 5_000, final=True)
        payment = await world.refund(held.payment_id, 6_000)
        amounts = (payment.held_amount, payment.captured_amount, payment.returned_amount)
        assert [amount.minor_units for amount in amounts] == [0, 12_000, 8_000]
        happened = {
            kind: [effect["amount"] for effect in await world.stripe.effects(kind)]
            for kind in ("transferred", "refunded", "reversed")
        }
        assert happened == {
            "transferred": [2_700, 3_600, 4_500],
            "refunded": [2_000, 6_000, 6_000],
            "reversed": [4_500, 900],
        }


async def test_a_slow_transfer_is_made_once(database_url: str) -> None:
    """Stripe makes it after our timeout and our sync: only the same key prevents a second one."""
    async with running_world(database_url, stripe_timeout=0.5) as world:
        held = await world.escrowed(**PLATFORM)
        await world.stripe.fault("/transfers$", "delay", delay_ms=1_500)
        await world.until_answered("CapturePayment", capture_request(held.payment_id, 3_000))
        await asyncio.sleep(1.5)  # Whatever is still under way at Stripe has come to its end.
        assert [one["amount"] for one in await world.stripe.effects("transferred")] == [2_700]


async def test_a_milestone_waits_until_the_one_before_is_judged(database_url: str) -> None:
    """A plan that is being made keeps every other from being made of the same money."""
    async with running_world(database_url) as world:
        held = await world.escrowed(**PLATFORM)
        assert world.service is not None
        database = world.service.app.database
        judged, go_on = asyncio.Event(), asyncio.Event()

        def first(tx: Transaction) -> None:
            tx.lock_payment(held.payment_id)
            judged.set()
            wait_in_phase(go_on.is_set, "the other phase")

        command = CapturePayment(
            cause=CAUSE,
            key="key",
            fields={},
            payment_id=held.payment_id,
            part=RequestedAmount(6_000),
            final=False,
            notes="",
        )
        holding = asyncio.create_task(database.transact(first))
        await judged.wait()
        second = asyncio.create_task(
            database.transact(claim_and_start, world.service.app, command, begin_capture)
        )
        done, _ = await asyncio.wait([second], timeout=0.5)
        go_on.set()
        await asyncio.gather(holding, second)
        assert not done


async def _debtor(world: World) -> str:
    """Stripe cannot take 90.00 back out of money that is not available yet."""
    expert = await world.expert()
    captured = await world.captured(expert, **PLATFORM)
    await world.refund(captured.payment_id)
    assert balance(world, f"expert_debt:{expert}") == 9_000
    return expert


async def test_a_debt_is_offset_once(database_url: str) -> None:
    """Of two captures under way at the same time only one keeps it back."""
    async with running_world(database_url) as world:
        expert = await _debtor(world)
        both = [await world.escrowed(expert, 20_000, **PLATFORM) for _ in range(2)]
        await world.stripe.fault("/transfers$", "delay", times=None, delay_ms=700)
        await asyncio.gather(
            *(
                world.until_answered("CapturePayment", capture_request(payment.payment_id))
                for payment in both
            )
        )
        assert balance(world, f"expert_debt:{expert}") == 0


async def test_an_amount_under_reversal_is_not_offset(database_url: str) -> None:
    """Between a refund's legs the expert's debt is the amount that the reversal will return."""
    async with running_world(database_url) as world:
        expert = await world.expert()
        first = await world.captured(expert, card=AVAILABLE, **PLATFORM)
        second = await world.escrowed(expert, 20_000, **PLATFORM)
        await world.stripe.fault("/reversals$", "delay", delay_ms=700)
        refund = asyncio.create_task(world.refund(first.payment_id))

        async def between_the_legs() -> bool:
            return balance(world, f"expert_debt:{expert}") == 9_000

        await until(between_the_legs, "the client's part")
        await world.capture(second.payment_id)
        await refund
        assert balance(world, f"expert_debt:{expert}") == 0


async def test_a_deadline_asks_stripe_first(database_url: str) -> None:
    """A hold that was cancelled at Stripe's dashboard is not to be charged."""
    # Every authorization is within so wide a margin of its end.
    margin = {"deadline_margin": 30 * 86_400.0}
    async with running_world(database_url, loops=False, policy=margin) as world:
        assert world.service is not None
        app = world.service.app
        expert = await world.expert(ready=False)
        account = world.account_of(expert)
        await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding")
        promote = payments_pb2.ON_DEADLINE_PROMOTE
        initiated = await world.initiate(expert, on_deadline=promote)
        await world.confirm(initiated)
        payment = initiated.payment
        await sync_payment(app, payment.payment_id, CAUSE)
        path = f"/payment_intents/{payment.payment_intent_id}/cancel"
        assert (await world.stripe.api("POST", path))["status"] == "canceled"
        await act_on_deadlines(app)
        kinds = [row[0] for row in world.sql("SELECT kind FROM events ORDER BY sequence")]
        assert "payment.canceled" in kinds
        assert "payment.promote_started" not in kinds


# ---- webhooks: of those that a run of some seconds forges or drops there are few of a kind ----


async def test_a_change_without_a_webhook_is_polled(database_url: str) -> None:
    async with running_world(database_url, policy={"poll_seconds": 0.3}) as world:
        await world.stripe.control("POST", "/webhooks", {"paused": True})
        held = await world.escrowed()
        assert held.state == payments_pb2.PAYMENT_STATE_IN_ESCROW


async def test_an_old_signature_is_refused(database_url: str) -> None:
    async with running_world(database_url) as world:
        event = new_event("payment_intent.created", {"object": "payment_intent", "id": "pi_1"})
        old = await refusal(world.webhooks.IngestEvent(ingestion(event, age=301)))
        assert old.code == "INVALID_ARGUMENT"
        await world.webhooks.IngestEvent(ingestion(event, age=290))


async def test_a_forged_signature_is_refused(database_url: str) -> None:
    async with running_world(database_url) as world:
        event = new_event("payment_intent.created", {"object": "payment_intent", "id": "pi_1"})
        forged = await refusal(world.webhooks.IngestEvent(ingestion(event, secret="whsec_other")))
        assert forged.code == "INVALID_ARGUMENT"


async def test_nothing_is_acknowledged_that_is_not_stored() -> None:
    nobody = Settings(
        core_address=("127.0.0.1:9",),
        gateway_port=0,
        gateway_metrics_port=0,
        allowed_origins=frozenset({"https://app.example"}),
    )
    body = b'{"id": "evt_1", "object": "event"}'
    headers = {"Stripe-Signature": signed(body, PLATFORM_SECRET)}
    async with running(nobody) as address, aiohttp.ClientSession() as stripe:
        url = f"{address}/api/v1/webhooks/stripe"
        async with stripe.post(url, data=body, headers=headers) as answer:
            assert answer.status == 503


async def test_an_event_is_stored_once(database_url: str) -> None:
    async with running_world(database_url) as world:
        event = new_event("payment_intent.created", {"object": "payment_intent", "id": "pi_1"})
        received = [await world.webhooks.IngestEvent(ingestion(event)) for _ in range(2)]
        assert [answer.duplicate for answer in received] == [False, True]


async def test_a_key_means_one_request(database_url: str) -> None:
    async with running_world(database_url) as world:
        held = await world.escrowed(amount=10_000, **PLATFORM)
        await world.capture(held.payment_id, 3_000, idempotency_key="once")
        other = await refusal(world.capture(held.payment_id, 4_000, idempotency_key="once"))
        assert (other.code, other.facts["field"]) == ("ALREADY_EXISTS", "amount.minor_units")
