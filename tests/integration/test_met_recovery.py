"""After a restore, a call that is repeated may meet the sync that records its operation again."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import psycopg2

from payment_service.application.operations.recovered import recovered_operation
from payment_service.domain import transitions
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause
from tests.support.phases import wait_in_phase
from tests.support.requests import new_key
from tests.support.world import World


async def test_what_follows_an_operation_is_found_by_whoever_has_waited(world: World) -> None:
    """A recovered refund whose reversal is recorded meanwhile has not ended with its first leg."""
    paid = await world.captured()
    [(first,)] = world.sql(
        "SELECT operation_id FROM operations WHERE payment_id = %s AND kind = 'capture'",
        paid.payment_id,
    )
    assert world.service is not None
    database = world.service.app.database
    is_locked = asyncio.Event()

    def record_next(tx: Transaction) -> str:
        operation = tx.operation(first)
        assert operation is not None
        is_locked.set()
        _await_blocked(world)
        following = tx.operation_id_for(first, "next")
        tx.add_operation(replace(operation, operation_id=following, claim_id=""))
        return following

    def read_next(tx: Transaction) -> Operation | None:
        tx.operation(first)
        return tx.operation(tx.derived_id("op", first, "next", "0"))

    recording = asyncio.create_task(database.transact(record_next))
    await asyncio.wait_for(is_locked.wait(), 10)
    found = await database.transact(read_next)
    assert found is not None
    assert found.operation_id == await recording


async def test_a_call_that_meets_its_own_recovery_is_decided_anew(world: World) -> None:
    """After a restore, a sync may record the operation of a repeated call while the call waits."""
    held = await world.escrowed()
    [(known,)] = world.sql(
        "SELECT operation_id FROM operations WHERE payment_id = %s", held.payment_id
    )
    assert world.service is not None
    database = world.service.app.database
    is_locked = asyncio.Event()
    cause, key = Cause("somebody", "RefundPayment"), new_key()

    def recover(tx: Transaction) -> str:
        template = tx.operation(known)
        assert template is not None
        tx.lock_payment(held.payment_id)
        is_locked.set()
        _await_blocked(world)
        claim_id = tx.derived_id("clm", cause.caller, cause.act_for, cause.rpc, key)
        lost = tx.derived_id("op", claim_id, "0")
        tx.add_operation(replace(template, operation_id=lost, claim_id=""))
        return lost

    def repeat_call(tx: Transaction) -> tuple[str, bool]:
        claim = tx.claim(cause, key, {})
        recovered = recovered_operation(tx, claim.claim_id)
        if recovered is not None:
            return recovered.operation_id, True
        tx.lock_payment(held.payment_id)
        template = tx.operation(known)
        assert template is not None
        new = tx.operation_id_for(claim.claim_id)
        tx.add_operation(replace(template, operation_id=new, claim_id=claim.claim_id))
        return new, False

    recovering = asyncio.create_task(database.transact(recover))
    await asyncio.wait_for(is_locked.wait(), 10)
    found, is_recovered = await database.transact(repeat_call)
    assert (found, is_recovered) == (await recovering, True)


async def test_an_initiation_that_meets_its_own_recovery_continues_it(world: World) -> None:
    first = (await world.initiate(await world.expert())).payment
    [(operation_id, *claimed)] = world.sql(
        "SELECT operation_id, caller, act_for, rpc FROM idempotency_keys WHERE payment_id = %s",
        first.payment_id,
    )
    assert world.service is not None
    database = world.service.app.database
    is_locked, key = asyncio.Event(), new_key()

    def recover(tx: Transaction) -> str:
        template, payment = tx.operation(operation_id), tx.lock_payment(first.payment_id)
        assert template is not None
        assert payment is not None
        lost = tx.derived_id("op", tx.derived_id("clm", *claimed, key), "0")
        again = replace(
            payment,
            payment_id=tx.derived_id("pay", lost),
            operation_id=lost,
            payment_intent_id="",
            version=1,
        )
        tx.record(transitions.initiate(again), Cause("stripe", "webhook"))
        tx.payment_of_intent("pi_none")  # A record is sent with the next question.
        is_locked.set()
        _await_blocked(world)
        sent = replace(template, operation_id=lost, payment_id=again.payment_id, claim_id="")
        tx.add_operation(
            replace(
                sent, state=OperationState.UNKNOWN, tries=1, lease_until=None, next_try_time=tx.now
            )
        )
        return again.payment_id

    recovering = asyncio.create_task(database.transact(recover))
    await asyncio.wait_for(is_locked.wait(), 10)
    repeated = await world.initiate(first.expert_id, idempotency_key=key)
    assert repeated.payment.payment_id == await recovering


def _await_blocked(world: World) -> None:
    """Waits until another transaction waits for a row."""
    query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with contextlib.closing(psycopg2.connect(world.database_url)) as connection:
        connection.autocommit = True

        def is_blocked() -> bool:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return bool(cursor.fetchall())

        wait_in_phase(is_blocked, "another transaction waits")
