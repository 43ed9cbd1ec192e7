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

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from payment_service.adapters.database import SqlDatabase, SwallowedError
from payment_service.adapters.repositories import SqlTransaction
from payment_service.application.carry_out import carry_out
from payment_service.application.core import Core
from payment_service.application.settle import (
    apply_observation_phase,
    leased_operation,
    unsettled_phase,
)
from payment_service.domain import escrow
from payment_service.domain.errors import Unavailable
from payment_service.domain.escrow import ChargeModel, Payment
from payment_service.domain.experts import BusinessType, Expert
from payment_service.domain.observation import IntentStatus, Observation
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.ports import Answers, Cause, Policy
from payment_service.rpc.calls import Operations

CAUSE = Cause("local", "Test")
POLICY = Policy()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[SqlDatabase]:
    opened = SqlDatabase(database_url)
    yield opened
    await asyncio.get_running_loop().run_in_executor(None, opened.close)


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
    initiated = escrow.initiate(payment)
    tx.record(initiated, CAUSE)
    created = escrow.intent_created(initiated.after, f"pi_{payment.payment_id}", tx.now)
    tx.record(created, CAUSE)
    return created.after


def _cancel(tx: SqlTransaction, payment: Payment) -> Operation:
    operation = leased_operation(
        tx,
        POLICY,
        kind=OperationKind.CANCEL,
        payment_id=payment.payment_id,
        minor_units=payment.amount,
        params={"payment_intent_id": payment.payment_intent_id},
    )
    tx.record(escrow.start_cancel(payment, operation.operation_id, "", tx.now), CAUSE)
    return operation


async def test_a_payment_is_locked_before_it_is_judged(database: SqlDatabase) -> None:
    """Of two that read the payment at once, the second must see what the first one made of it."""
    payment = await database.transact(_a_payment)
    loop = asyncio.get_running_loop()
    holding, go_on = asyncio.Event(), asyncio.Event()

    def first(tx: SqlTransaction) -> None:
        tx.lock_payment(payment.payment_id)
        loop.call_soon_threadsafe(holding.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(5)

    def second(tx: SqlTransaction) -> None:
        tx.lock_payment(payment.payment_id)

    held = asyncio.create_task(database.transact(first))
    await holding.wait()
    waiting = asyncio.create_task(database.transact(second))
    done, _ = await asyncio.wait([waiting], timeout=0.5)
    go_on.set()
    await asyncio.gather(held, waiting)
    assert not done


async def test_an_old_observation_changes_nothing(database: SqlDatabase) -> None:
    """What was seen at an earlier version may be older than the books."""
    payment = await database.transact(_a_payment)
    seen = Observation(
        payment_intent_id=payment.payment_intent_id,
        status=IntentStatus.CANCELED,
        minor_units=payment.amount,
        currency=payment.currency,
    )
    applied = await database.transact(
        apply_observation_phase,
        cast("Answers", None),
        POLICY,
        payment.payment_id,
        seen,
        payment.version - 1,
        CAUSE,
    )
    now = await database.read(lambda reader: reader.payment(payment.payment_id))
    assert applied.stale
    assert now == payment


async def test_a_swallowed_error_is_no_commit(database: SqlDatabase) -> None:
    def phase(tx: SqlTransaction) -> None:
        _a_payment(tx)
        with contextlib.suppress(SQLAlchemyError):
            tx.connection.execute(text("INSERT INTO payments (payment_id) VALUES ('pay_1')"))

    with pytest.raises(SwallowedError):
        await database.transact(phase)


async def test_a_commit_is_waited_for(database: SqlDatabase) -> None:
    """What is answered must have reached the disk's log, or a crash a moment later loses it."""

    def phase(tx: SqlTransaction) -> str:
        return str(tx.connection.execute(text("SHOW synchronous_commit")).scalar_one())

    assert await database.transact(phase) == "on"


async def test_whoever_lost_the_lease_changes_nothing(database: SqlDatabase) -> None:
    """A replica that slept through its lease wakes up with an old operation in its hands."""
    payment = await database.transact(_a_payment)
    old = await database.transact(_cancel, payment)

    def take_over(tx: SqlTransaction) -> Operation | None:
        tx._do("UPDATE operations SET lease_until = now() - interval '1 second'")
        return tx.lease_operation(old.operation_id, 30)

    new = await database.transact(take_over)
    assert new is not None
    await database.transact(
        unsettled_phase, POLICY, old, OperationState.UNKNOWN, "I slept", 1.0, CAUSE
    )
    now = await database.read(lambda reader: reader.operation(old.operation_id))
    assert now == new

    def settle(tx: SqlTransaction) -> None:
        tx.settle_operation(old.operation_id, OperationState.SUCCEEDED)

    await database.transact(settle)
    await database.transact(
        unsettled_phase, POLICY, new, OperationState.UNKNOWN, "I slept", 1.0, CAUSE
    )
    end = await database.read(lambda reader: reader.operation(old.operation_id))
    assert end is not None
    assert end.state is OperationState.SUCCEEDED


class _Stripe:
    """Has the intent, uncancelled, and counts what is asked of it."""

    is_away = False

    def __init__(self, seen: Observation) -> None:
        self.seen = seen
        self.sent = 0

    async def observe(self, payment_intent_id: str) -> Observation:
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
    seen = Observation(
        payment_intent_id=payment.payment_intent_id,
        status=IntentStatus.REQUIRES_PAYMENT_METHOD,
        minor_units=payment.amount,
        currency=payment.currency,
    )
    stripe, alarms = _Stripe(seen), _Alarms()
    core = Core(database, cast("Any", stripe), cast("Answers", None), POLICY, cast("Any", alarms))
    old = replace(operation, tries=1, attempt_time=datetime.now(UTC) - timedelta(hours=23.5))
    with pytest.raises(Unavailable):
        await carry_out(core, old, payment.version + 1, CAUSE)
    assert stripe.sent == 0
    assert alarms.parked
    now = await database.read(lambda reader: reader.operation(operation.operation_id))
    assert now is not None
    assert now.state is OperationState.PARKED


async def test_a_callers_impatience_interrupts_nothing() -> None:
    operations, done = Operations(), asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.set()

    call = asyncio.create_task(operations.run(work()))
    await asyncio.sleep(0.01)
    call.cancel()
    assert await operations.drain(1) == 0
    assert done.is_set()
