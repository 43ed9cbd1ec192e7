"""A waiting payment leads to its reason: its operation, its freeze, its client payable."""

from __future__ import annotations

from marketplace.payments.v1 import operations_pb2, payments_pb2
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.requests import refund_request
from tests.support.steps.disputes import disputed
from tests.support.steps.operators import owed_after_a_bounce
from tests.support.steps.payments import waiting_capture
from tests.support.world import CANCELED, CAPTURED, CAPTURING, World, until

Operations = list[operations_pb2.Operation]
PARKED = operations_pb2.OPERATION_STATE_PARKED


async def operations_of(world: World, payment_id: str, **filters: int) -> Operations:
    """Returns the operations of a payment that are not settled, or those in a state."""
    request = operations_pb2.ListOperationsRequest(payment_id=payment_id)
    if "state" in filters:
        request.state = operations_pb2.OperationState.ValueType(filters["state"])
    return list((await world.operations.ListOperations(request)).operations)


async def test_a_capture_that_waits_for_the_expert(world: World) -> None:
    other = await owed_after_a_bounce(world)
    payment, account = await waiting_capture(world, 2_000, 3_000)
    [operation] = await operations_of(world, payment.payment_id)
    assert operation.operation_id == payment.operation_id
    assert operation.kind == operations_pb2.OPERATION_KIND_TRANSFER
    assert (operation.state, operation.waiting_for) == (PARKED, payments_pb2.WAITING_FOR_EXPERT)
    assert operation.waiting_reason == payment.waiting_reason
    assert operation.waiting_reason == payments_pb2.WAITING_REASON_EXPERT_RESTRICTED
    assert operation.last_error
    # Another payment's operation waits for an operator.
    [theirs] = await operations_of(world, other.payment_id)
    assert theirs.waiting_for == payments_pb2.WAITING_FOR_OPERATOR
    assert theirs.waiting_reason == payments_pb2.WAITING_REASON_UNSPECIFIED
    await world.stripe.control("POST", f"/accounts/{account}/restore")

    async def paid() -> bool:
        now = await world.get(payment.payment_id)
        return now.captured_amount.minor_units == 3_000 and not now.operation_id

    await until(paid, "the capture has continued")
    assert await operations_of(world, payment.payment_id) == []
    done = await operations_of(
        world, payment.payment_id, state=operations_pb2.OPERATION_STATE_SUCCEEDED
    )
    [settled] = [one for one in done if one.operation_id == operation.operation_id]
    assert settled.waiting_for == payments_pb2.WAITING_FOR_UNSPECIFIED


async def test_a_waiting_capture_whose_hold_is_cancelled_at_the_dashboard(world: World) -> None:
    """It was acknowledged, and can never be made: the payment must say so, and wait for nobody."""
    expert = await world.expert()
    held = await world.escrowed(expert)
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/restrict")
    payment = await world.capture(held.payment_id)
    assert (payment.state, payment.waiting_for) == (CAPTURING, payments_pb2.WAITING_FOR_EXPERT)
    await world.stripe.api("POST", f"/payment_intents/{held.payment_intent_id}/cancel")
    ended = await world.in_state(held.payment_id, CANCELED)
    assert ended.waiting_for == payments_pb2.WAITING_FOR_UNSPECIFIED
    assert not ended.operation_id
    assert (ended.held_amount.minor_units, ended.captured_amount.minor_units) == (0, 0)
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    [operation] = await operations_of(
        world, held.payment_id, state=operations_pb2.OPERATION_STATE_REFUSED
    )
    assert operation.kind == operations_pb2.OPERATION_KIND_CAPTURE
    await check_books(world)


async def test_a_client_who_must_be_paid_again(world: World) -> None:
    payment = await owed_after_a_bounce(world)
    assert payment.client_payable.minor_units == 2_000
    assert payment.client_payable.currency_code == payment.amount.currency_code
    [operation] = await operations_of(world, payment.payment_id)
    assert operation.operation_id == payment.operation_id
    assert operation.kind == operations_pb2.OPERATION_KIND_REFUND
    resume = operations_pb2.ResumeOperationRequest(operation_id=operation.operation_id)
    resumed = (await world.operations.ResumeOperation(resume)).operation
    assert resumed.waiting_for == payments_pb2.WAITING_FOR_PROCESSOR


async def test_what_froze_a_payment(world: World) -> None:
    payment_id, dispute_id = await disputed(world)

    async def frozen() -> bool:
        return (await world.get(payment_id)).freeze == payments_pb2.PAYMENT_FREEZE_CHARGEBACK

    await until(frozen, "the payment is frozen")
    payment = await world.get(payment_id)
    assert (payment.state, payment.frozen_by) == (CAPTURED, dispute_id)
    refused = await refusal(world.payments.RefundPayment(refund_request(payment_id)))
    assert refused.facts["dispute_id"] == payment.frozen_by
    free = await world.captured()
    assert free.freeze == payments_pb2.PAYMENT_FREEZE_NONE
    assert (free.frozen_by, free.operation_id, free.client_payable.minor_units) == ("", "", 0)
