"""Callers, webhooks and impatience at once: there is always one order in which it happened."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from grpc import aio

from payment_service.adapters.postgres.engine import SqlDatabase
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.rpc.call_context import CallRegistry
from tests.support.books import check_books
from tests.support.errors import Reply, refusal
from tests.support.phases import run_in_phase
from tests.support.requests import capture_request, refund_request
from tests.support.world import CANCELED, CAPTURED, IN_ESCROW, REFUNDED, World, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_LOST = {
    ("ABORTED", "OPERATION_IN_PROGRESS"),
    ("ABORTED", "CONCURRENT_CHANGE"),
    ("FAILED_PRECONDITION", "WRONG_STATE"),
}


def _lost(reply: Reply) -> bool:
    return reply.refused is not None and (reply.code, reply.refused.reason) in _LOST


async def test_two_captures_of_one_payment_are_one(shared: World) -> None:
    expert = await shared.expert()
    for _ in range(4):
        held = await shared.escrowed(expert)
        requests = [capture_request(held.payment_id) for _ in range(2)]
        replies = await asyncio.gather(
            *(shared.bytes_of("CapturePayment", request) for request in requests)
        )
        assert sorted(reply.code == "OK" for reply in replies) == [False, True]
        assert all(reply.code == "OK" or _lost(reply) for reply in replies)
        intent = held.payment_intent_id
        assert len(await shared.stripe.effects("captured", intent)) == 1
        # A caller that lost by contention may call again, and then gets the final answer.
        again = await asyncio.gather(
            *(shared.until_answered("CapturePayment", request) for request in requests)
        )
        assert sorted(reply.code for reply in again) == ["FAILED_PRECONDITION", "OK"]
    await check_books(shared)


async def test_a_capture_and_a_refund_at_once_happen_in_some_order(shared: World) -> None:
    expert = await shared.expert()
    for first in (0, 1, 0, 1):
        held = await shared.escrowed(expert)
        calls = [
            ("CapturePayment", capture_request(held.payment_id)),
            ("RefundPayment", refund_request(held.payment_id)),
        ]
        ordered = calls if first == 0 else calls[::-1]
        replies = await asyncio.gather(*(shared.bytes_of(*call) for call in ordered))
        assert any(reply.code == "OK" for reply in replies)
        assert all(reply.code == "OK" or _lost(reply) for reply in replies)
        await shared.settle_down()
        payment = await shared.get(held.payment_id)
        captured = len(await shared.stripe.effects("captured", held.payment_intent_id))
        canceled = len(await shared.stripe.effects("canceled", held.payment_intent_id))
        assert (captured, canceled) == ((0, 1) if payment.state == CANCELED else (1, 0))
        assert payment.state in (CANCELED, CAPTURED, REFUNDED)
    await check_books(shared)


async def test_equal_partial_refunds_under_two_keys_are_two_refunds(shared: World) -> None:
    payment = await shared.captured(amount=10_000)
    requests = [refund_request(payment.payment_id, 2_500, reason="the same") for _ in range(2)]
    replies = await asyncio.gather(
        *(shared.until_answered("RefundPayment", request) for request in requests)
    )
    assert [reply.code for reply in replies] == ["OK", "OK"]
    after = await shared.get(payment.payment_id)
    assert (after.state, after.refunded_amount.minor_units) == (CAPTURED, 5_000)
    refunds = await shared.stripe.effects("refunded", payment.payment_intent_id)
    assert [refund["amount"] for refund in refunds] == [2_500, 2_500]
    await check_books(shared)


async def test_refunds_at_once_never_give_back_more_than_was_captured(shared: World) -> None:
    payment = await shared.captured(amount=10_000)
    requests = [refund_request(payment.payment_id, 3_000) for _ in range(5)]
    replies = await asyncio.gather(
        *(shared.until_answered("RefundPayment", request) for request in requests)
    )
    assert sorted(reply.code for reply in replies) == ["FAILED_PRECONDITION"] * 2 + ["OK"] * 3
    for reply in replies:
        if reply.refused is not None:
            assert reply.refused.reason == "AMOUNT_TOO_LARGE"
            assert reply.refused.facts["available"] == "1000"
            assert reply.refused.facts["requested"] == "3000"
    after = await shared.get(payment.payment_id)
    assert after.refunded_amount.minor_units == 9_000
    refunds = await shared.stripe.effects("refunded", payment.payment_intent_id)
    assert sum(refund["amount"] for refund in refunds) == 9_000
    await check_books(shared)


async def test_a_debt_is_read_at_one_moment(shared: World, module_database_url: str) -> None:
    """A reversal that ends while a capture reads the debt is not kept back by the capture too."""
    expert = await shared.expert()
    paid = await shared.captured(expert, amount=10_000)
    await shared.stripe.fault("/reversals$", "status", times=None, status=503)
    request = refund_request(paid.payment_id)
    assert (await refusal(shared.payments.RefundPayment(request))).code == "UNAVAILABLE"
    ended: list[str] = []

    def read_debt(tx: SqlTransaction) -> int:
        execute = tx._execute

        def execute_and_finish(sql: str, values: Mapping[str, Any]) -> None:
            execute(sql, values)
            if "FROM postings" in sql and not ended:
                ended.append(sql)
                run_in_phase(end_reversal())

        tx._execute = execute_and_finish  # type: ignore[method-assign]
        return tx.expert_debt(expert, "USD")

    async def end_reversal() -> None:
        await shared.stripe.clear_faults()
        await shared.settle_down()

    database = SqlDatabase(module_database_url)
    try:
        assert await database.transact(read_debt) == 0
        assert ended
    finally:
        await database.close()
    assert (await shared.get(paid.payment_id)).state == REFUNDED
    await check_books(shared)


async def test_more_than_there_is_is_refused_with_the_facts(shared: World) -> None:
    held = await shared.escrowed(amount=10_000)
    over = await refusal(
        shared.payments.CapturePayment(capture_request(held.payment_id, 10_001, final=True))
    )
    assert (over.code, over.reason) == ("FAILED_PRECONDITION", "AMOUNT_TOO_LARGE")
    assert (over.facts["available"], over.facts["requested"]) == ("10000", "10001")
    over = await refusal(shared.payments.RefundPayment(refund_request(held.payment_id, 10_001)))
    assert over.reason == "AMOUNT_TOO_LARGE"
    await shared.capture(held.payment_id)
    for request in (capture_request(held.payment_id), capture_request(held.payment_id, 1)):
        refused = await refusal(shared.payments.CapturePayment(request))
        assert refused.reason == "WRONG_STATE"
    await shared.refund(held.payment_id)
    refused = await refusal(shared.payments.RefundPayment(refund_request(held.payment_id)))
    assert refused.reason == "WRONG_STATE"


async def test_webhooks_racing_the_call_change_nothing(shared: World) -> None:
    """The events of a capture arrive and are applied before the call is answered."""
    held = await shared.escrowed()
    await shared.stripe.fault(f"/{held.payment_intent_id}/capture$", "delay", "after", delay_ms=900)
    call = asyncio.create_task(shared.capture(held.payment_id))
    seen = await shared.in_state(held.payment_id, CAPTURED)
    answered = await call
    assert (answered.state, answered.captured_amount.minor_units) == (CAPTURED, 10_000)
    assert answered.version >= seen.version - 1
    await shared.settle_down()
    assert not await shared.discrepancies(held.payment_id)
    kinds = [
        kind
        for (kind,) in shared.sql(
            "SELECT kind FROM events WHERE payment_id = %s ORDER BY sequence", held.payment_id
        )
    ]
    assert kinds.count("payment.captured") == 1
    await shared.stripe.clear_faults()
    await check_books(shared)


async def test_webhooks_racing_a_refunds_two_legs(shared: World) -> None:
    payment = await shared.captured()
    match = {"parameters": {"payment_intent": payment.payment_intent_id}}
    await shared.stripe.fault("/refunds$", "delay", "after", delay_ms=900, match=match)
    after = await shared.refund(payment.payment_id, 4_000)
    assert after.refunded_amount.minor_units == 4_000
    await shared.settle_down()
    intent = payment.payment_intent_id
    assert len(await shared.stripe.effects("refunded", intent)) == 1
    assert len(await shared.stripe.effects("reversed", intent)) == 1
    assert (await shared.get(payment.payment_id)).state == CAPTURED
    assert not await shared.discrepancies(payment.payment_id)
    await shared.stripe.clear_faults()
    await check_books(shared)


# ---- callers who leave ----


async def test_a_callers_cancel_or_deadline_does_not_cut_an_operation_in_two(
    shared: World,
) -> None:
    expert = await shared.expert()
    held, given_up, paid = await asyncio.gather(
        shared.escrowed(expert), shared.escrowed(expert), shared.captured(expert)
    )
    calls = [
        ("InitiatePayment", shared.initiation(expert)),
        ("CapturePayment", capture_request(held.payment_id)),
        ("RefundPayment", refund_request(given_up.payment_id)),
        ("RefundPayment", refund_request(paid.payment_id)),
    ]
    await shared.settle_down()
    before = len(await shared.stripe.effects())
    await shared.stripe.control("POST", "/settings", {"latency_ms": 500})
    try:
        # Half of the callers set a deadline that cannot be held, half of them hang up.
        for number, (method, request) in enumerate(calls):
            if number % 2:
                reply = await shared.raw(
                    f"PaymentService/{method}", request.SerializeToString(), timeout=0.05
                )
                assert reply.code == "DEADLINE_EXCEEDED"
            else:
                stub = getattr(shared.payments, method)
                call: aio.UnaryUnaryCall[object, object] = stub(request)
                await asyncio.sleep(0.05)
                call.cancel()
                assert await call.code() is grpc.StatusCode.CANCELLED
        for method, request in calls:
            reply = await shared.until_answered(method, request)
            assert reply.code == "OK"
            assert await shared.bytes_of(method, request) == reply
    finally:
        await shared.stripe.control("POST", "/settings", {"latency_ms": 0})
    await shared.settle_down()
    happened = sorted(effect["kind"] for effect in (await shared.stripe.effects())[before:])
    assert happened == sorted(
        ["intent_created", "captured", "transferred", "canceled", "refunded", "reversed"]
    )
    assert (await shared.get(held.payment_id)).state == CAPTURED
    await check_books(shared)


async def test_shutdown_waits_for_operations_whose_callers_have_gone(shared: World) -> None:
    held = await shared.escrowed()
    await shared.settle_down()
    await shared.stripe.fault(f"/{held.payment_intent_id}/capture$", "delay", delay_ms=1_000)
    request = capture_request(held.payment_id)
    reply = await shared.raw(
        "PaymentService/CapturePayment", request.SerializeToString(), timeout=0.2
    )
    assert reply.code == "DEADLINE_EXCEEDED"
    assert shared.service is not None
    assert shared.service.wired is not None
    await shared.service.stop()
    [(state,)] = shared.sql("SELECT state FROM payments WHERE payment_id = %s", held.payment_id)
    assert state == "CAPTURED"  # Written before the pools were closed.
    await shared.service.start()
    await shared.channel.channel_ready()
    assert (await shared.bytes_of("CapturePayment", request)).code == "OK"
    await check_books(shared)


async def test_what_comes_after_the_drain_began_is_sent_to_another_replica() -> None:
    operations = CallRegistry()
    done: list[str] = []

    async def slow() -> str:
        await asyncio.sleep(0.05)
        done.append("slow")
        return "slow"

    caller = asyncio.create_task(operations.run(slow()))
    await asyncio.sleep(0)
    caller.cancel()
    operations.close()
    refused: list[str] = []
    try:
        await operations.run(slow())
    except Exception as error:  # noqa: BLE001 - its type is asserted below
        refused.append(getattr(error, "reason", type(error).__name__))
    assert refused == ["SHUTTING_DOWN"]
    assert await operations.drain(5) == 0
    assert done == ["slow"]


async def test_a_payment_confirmed_during_its_cancellation_has_one_outcome(shared: World) -> None:
    expert = await shared.expert()
    for _ in range(3):
        initiated = await shared.initiate(expert)
        payment_id = initiated.payment.payment_id
        request = refund_request(payment_id)
        _, reply = await asyncio.gather(
            shared.confirm(initiated), shared.bytes_of("RefundPayment", request)
        )
        assert reply.code == "OK" or _lost(reply)

        async def ended(payment_id: str = payment_id) -> bool:
            return (await shared.get(payment_id)).state in (CANCELED, IN_ESCROW)

        await until(ended, "an end")
        await shared.settle_down()
        if (await shared.get(payment_id)).state == IN_ESCROW:
            await shared.refund(payment_id)
        assert (await shared.get(payment_id)).state == CANCELED
    await check_books(shared)
