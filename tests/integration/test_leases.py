"""A lease is short, and kept by whoever lives."""

from __future__ import annotations

import asyncio

from marketplace.payments.v1 import experts_pb2, operations_pb2
from payment_service.application.keep_lease import renew_lease
from payment_service.application.settle import unsettled_phase
from payment_service.application.sweep import SWEEP, lease_due, sweep_operations
from payment_service.domain.operations import OperationState
from tests.integration.conftest import StartWorld
from tests.integration.world import CAPTURED, capture_request, refusal, until


async def test_a_call_that_outlives_its_lease_is_not_taken_over(start_world: StartWorld) -> None:
    world = await start_world(policy={"lease": 0.6})
    assert world.service is not None
    payment = await world.escrowed()
    await world.stripe.fault("/capture", "delay", delay_ms=2000)
    request = capture_request(payment.payment_id)

    async def capture() -> int:
        return (await world.payments.CapturePayment(request)).payment.state

    capturing = asyncio.create_task(capture())
    await asyncio.sleep(0.1)
    while not capturing.done():
        await sweep_operations(world.service.core)
        await asyncio.sleep(0.1)
    assert await capturing == CAPTURED
    assert len(await world.stripe.requests("/capture")) == 1
    [(tries,)] = world.sql("SELECT tries FROM operations WHERE kind = 'capture'")
    assert tries == 0


async def test_whoever_lost_the_lease_changes_nothing(start_world: StartWorld) -> None:
    world = await start_world(policy={"lease": 30.0}, loops=False)
    assert world.service is not None
    database, policy = world.service.core.database, world.service.core.policy
    await world.stripe.fault("/accounts", "reset", "after")
    request = experts_pb2.CreateExpertAccountRequest(
        expert_id="ann", name="Ann", email="ann@example.com"
    )
    assert (await refusal(world.experts.CreateExpertAccount(request))).code == "UNAVAILABLE"
    await asyncio.sleep(0.6)
    [mine] = await database.transact(lease_due, policy)
    assert await database.transact(renew_lease, mine, 30.0)

    world.sql("UPDATE operations SET lease_until = now(), next_try_time = now() RETURNING 1")
    [theirs] = await database.transact(lease_due, policy)
    assert theirs.lease_token != mine.lease_token
    assert not await database.transact(renew_lease, mine, 30.0)
    given_back = await database.transact(
        unsettled_phase, policy, mine, OperationState.UNKNOWN, "too late", 0.0, SWEEP
    )
    assert not given_back
    [(token, last_error)] = world.sql("SELECT lease_token, last_error FROM operations")
    assert (token, last_error == "too late") == (theirs.lease_token, False)


async def test_an_operator_can_send_on_what_is_older_than_its_key(
    start_world: StartWorld,
) -> None:
    """By itself nothing is sent again after 23 hours; resumed, it goes out under a new key."""
    world = await start_world()
    payment = await world.escrowed()
    await world.quiet()
    await world.stripe.fault("/capture", "reset", "before", times=None)
    request = capture_request(payment.payment_id)
    assert (await refusal(world.payments.CapturePayment(request))).code == "UNAVAILABLE"
    world.sql(
        "UPDATE operations SET attempt_time = now() - interval '24 hours', next_try_time = now() "
        "WHERE kind = 'capture' RETURNING 1"
    )

    async def parked() -> str:
        [(operation_id, state)] = world.sql(
            "SELECT operation_id, state FROM operations WHERE kind = 'capture'"
        )
        return str(operation_id) if state == "PARKED" else ""

    operation_id = await until(parked, "the old operation to be parked")
    await world.stripe.clear_faults()
    sent = len(await world.stripe.requests("/capture"))
    resume = operations_pb2.ResumeOperationRequest(operation_id=operation_id)
    await world.operations.ResumeOperation(resume)
    await world.in_state(payment.payment_id, CAPTURED)
    keys = [one["idempotency_key"] for one in await world.stripe.requests("/capture")]
    assert (len(keys) - sent, keys[-1]) == (1, f"{operation_id}-2")
    assert len(await world.stripe.effects("captured", payment.payment_intent_id)) == 1
    assert (await world.payments.CapturePayment(request)).payment.state == CAPTURED
