"""A lease is short, and a living holder renews it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from marketplace.payments.v1 import experts_pb2, operations_pb2
from payment_service.application.answer_dispute import AcceptDispute, begin_acceptance
from payment_service.application.create_expert_account import CreateExpertAccount, begin_account
from payment_service.application.execution.executor import execute
from payment_service.application.idempotency import claim_and_start
from payment_service.application.jobs.recover_operations import (
    RECOVERY,
    lease_due,
    recover_operations,
)
from payment_service.application.operations.lease import renew_lease
from payment_service.application.operations.outcomes import release_operation
from payment_service.application.refund_payment import RefundPayment, begin_refund
from payment_service.domain.errors import Unavailable
from payment_service.domain.experts import BusinessType
from payment_service.domain.operations import Retry
from payment_service.domain.plans import RequestedAmount
from payment_service.domain.ports.records import Cause
from tests.integration.conftest import StartWorld
from tests.support.errors import refusal
from tests.support.requests import capture_request
from tests.support.steps.disputes import contest, dispute_where
from tests.support.steps.payments import PLATFORM
from tests.support.world import CAPTURED, World, until


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
        await recover_operations(world.service.app)
        await asyncio.sleep(0.1)
    assert await capturing == CAPTURED
    assert len(await world.stripe.requests("/capture")) == 1
    [(tries,)] = world.sql("SELECT tries FROM operations WHERE kind = 'capture'")
    assert tries == 0


async def test_a_holder_without_the_lease_changes_nothing(start_world: StartWorld) -> None:
    world = await start_world(policy={"lease": 30.0}, loops=False)
    assert world.service is not None
    database, policy = world.service.app.database, world.service.app.policy
    await world.stripe.fault("/accounts", "reset", "after")
    request = experts_pb2.CreateExpertAccountRequest(
        expert_id="ann", name="Ann", email="ann@example.com"
    )
    assert (await refusal(world.experts.CreateExpertAccount(request))).code == "UNAVAILABLE"
    await asyncio.sleep(0.6)
    [mine] = await database.transact(lease_due, policy)
    assert await database.transact(renew_lease, mine, 30.0) is not None

    world.sql("UPDATE operations SET lease_until = now(), next_try_time = now() RETURNING 1")
    [theirs] = await database.transact(lease_due, policy)
    assert theirs.lease_token != mine.lease_token
    assert await database.transact(renew_lease, mine, 30.0) is None
    given_back = await database.transact(
        release_operation, policy, mine, Retry(why="too late", after=0.0), RECOVERY
    )
    assert not given_back
    [(token, last_error)] = world.sql("SELECT lease_token, last_error FROM operations")
    assert (token, last_error == "too late") == (theirs.lease_token, False)


async def test_an_operator_can_resume_an_operation_older_than_its_key(
    start_world: StartWorld,
) -> None:
    """By itself nothing is sent again after 23 hours; resumed, it goes out under a new key."""
    world = await start_world(policy={"arrival_seconds": 60.0})
    payment = await world.escrowed()
    await world.settle_down()
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
    # Its last request had no answer: until a minute has passed it is not abandoned.
    assert world.sql("SELECT unsure_until > now() FROM operations WHERE kind = 'capture'") == [
        (True,)
    ]
    await world.stripe.clear_faults()
    sent = len(await world.stripe.requests("/capture"))
    resume = operations_pb2.ResumeOperationRequest(operation_id=operation_id)
    await world.operations.ResumeOperation(resume)
    await world.in_state(payment.payment_id, CAPTURED)
    keys = [one["idempotency_key"] for one in await world.stripe.requests("/capture")]
    assert (len(keys) - sent, keys[-1]) == (1, f"{operation_id}-2")
    assert len(await world.stripe.effects("captured", payment.payment_intent_id)) == 1
    assert (await world.payments.CapturePayment(request)).payment.state == CAPTURED


_LOCAL = Cause("local", "RefundPayment")


def refund_of(payment_id: str) -> RefundPayment:
    return RefundPayment(
        cause=_LOCAL,
        key="k",
        fields={},
        payment_id=payment_id,
        part=RequestedAmount(1_000),
        reason="r",
    )


async def test_a_holder_that_was_suspended_for_a_day_sends_nothing(start_world: StartWorld) -> None:
    """Its key is pruned at Stripe by then, and its lease has long been another's."""
    world = await start_world(policy={"lease": 1.0})
    assert world.service is not None
    app = world.service.app
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    begun = await app.database.transact(
        claim_and_start, app, refund_of(held.payment_id), begin_refund
    )
    assert begun.operation is not None

    async def done() -> bool:
        return (await world.get(held.payment_id)).returned_amount.minor_units == 1_000

    await until(done, "another replica's refund")
    await world.stripe.advance(25 * 3600)
    with pytest.raises(Unavailable) as refused:
        await execute(app, begun.operation, begun.version, _LOCAL)
    assert refused.value.reason == "OUTCOME_UNKNOWN"
    await world.settle_down()
    assert len(await world.stripe.effects("refunded")) == 1


@pytest.mark.parametrize("what", ["the lease is another's", "the key is a day old"])
async def test_a_first_request_is_fenced_too(start_world: StartWorld, what: str) -> None:
    """Of money, of an answer to a bank, and of an account."""
    world = await start_world(policy={"lease": 1.0})
    assert world.service is not None
    app = world.service.app
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    contested = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    dispute_id = await contest(world, contested)
    await dispute_where(world, dispute_id)
    refund = await app.database.transact(
        claim_and_start, app, refund_of(held.payment_id), begin_refund
    )
    acceptance = await app.database.transact(
        claim_and_start,
        app,
        AcceptDispute(
            cause=Cause("local", "AcceptDispute"), key="k", fields={}, dispute_id=dispute_id
        ),
        begin_acceptance,
    )
    _, account = await app.database.transact(
        begin_account,
        app.policy,
        CreateExpertAccount(
            cause=_LOCAL,
            expert_id="slept",
            name="Ann",
            email="ann@example.com",
            country="US",
            business_type=BusinessType.INDIVIDUAL,
            commission_basis_points=None,
            continue_url="",
        ),
    )
    assert refund.operation is not None
    assert acceptance.operation is not None
    assert account is not None
    begun = [refund.operation, acceptance.operation, account]
    mine = [one.operation_id for one in begun]
    is_old = what == "the key is a day old"
    world.sql(
        "UPDATE operations SET lease_until = now() + interval '1 hour', "
        "next_try_time = now() + interval '1 hour', "
        "attempt_time = attempt_time - make_interval(days => %s), "
        "lease_token = CASE WHEN %s THEN lease_token ELSE 'theirs' END "
        "WHERE operation_id = ANY(%s) RETURNING 1",
        int(is_old),
        is_old,
        mine,
    )
    if is_old:
        begun = [replace(one, attempt_time=one.attempt_time - timedelta(days=1)) for one in begun]
    await asyncio.sleep(1.1)
    sent = len(await world.stripe.requests())
    for calling in (
        execute(app, begun[0], refund.version, _LOCAL),
        execute(app, begun[1], acceptance.version, _LOCAL),
        execute(app, begun[2], 0, _LOCAL),
    ):
        with pytest.raises(Unavailable) as refused:
            await calling
        assert refused.value.reason == "OUTCOME_UNKNOWN"
    assert len(await world.stripe.requests()) == sent
    found = world.sql("SELECT DISTINCT state FROM operations WHERE operation_id = ANY(%s)", mine)
    assert found == [("PARKED" if is_old else "STARTED",)]


async def test_a_first_request_is_sent_without_a_lease_renewal(world: World) -> None:
    """One transaction before the request and one after: the hot path pays nothing for the fence."""
    assert world.service is not None
    app = world.service.app
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    begun = await app.database.transact(
        claim_and_start, app, refund_of(held.payment_id), begin_refund
    )
    assert begun.operation is not None
    # This lease cannot be renewed: a renewal would report it as lost.
    world.sql("UPDATE operations SET lease_token = 'theirs' WHERE state = 'STARTED' RETURNING 1")
    sent = len(await world.stripe.requests("/refunds"))
    await execute(app, begun.operation, begun.version, _LOCAL)
    assert len(await world.stripe.requests("/refunds")) == sent + 1
