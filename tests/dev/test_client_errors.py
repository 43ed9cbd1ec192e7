"""The client's errors: what a refusal says, and calls that are repeated until they are answered."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from marketplace.payments._bearer import NoTokenError
from marketplace.payments.errors import Refusal, refusal_of, until_answered
from marketplace.payments.v1 import payments_pb2, payments_pb2_grpc

REQUEST = payments_pb2.CapturePaymentRequest(payment_id="pay_1", idempotency_key="accept-1")
Capture = Callable[[], Any]


def error_of(code: grpc.StatusCode, reason: str, *more: Message, **metadata: str) -> Any:
    """Returns a status as the service sends it."""
    status = status_pb2.Status(code=code.value[0], message="a sentence")
    info = error_details_pb2.ErrorInfo(
        reason=reason, domain="payments.marketplace", metadata=metadata
    )
    for detail in (info, *more):
        status.details.add().Pack(detail)
    return rpc_status.to_status(status)


class Servicer:
    """Answers with these errors first, then with the payment."""

    def __init__(self, *errors: Any) -> None:
        self.errors = list(errors)
        self.seen: list[bytes] = []

    async def capture(self, request: Any, context: Any) -> Any:
        self.seen.append(request.SerializeToString())
        if self.errors:
            await context.abort_with_status(self.errors.pop(0))
        return payments_pb2.CapturePaymentResponse(payment=payments_pb2.Payment(payment_id="pay_1"))


@asynccontextmanager
async def serving(servicer: Servicer) -> AsyncIterator[Any]:
    server = aio.server()
    capture = grpc.unary_unary_rpc_method_handler(
        servicer.capture,
        request_deserializer=payments_pb2.CapturePaymentRequest.FromString,
        response_serializer=payments_pb2.CapturePaymentResponse.SerializeToString,
    )
    name = "marketplace.payments.v1.PaymentService"
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, {"CapturePayment": capture})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_retries", 0)]) as channel:
        yield payments_pb2_grpc.PaymentServiceStub(channel)
    await server.stop(None)


async def refusal_by(error: Any) -> Refusal:
    async with serving(Servicer(error)) as stub:
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.CapturePayment(REQUEST)
    return refusal_of(caught.value)


async def test_a_refusal_shows_all_that_the_service_says() -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="amount", description="is negative")
    refusal = await refusal_by(
        error_of(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", bad, field="amount")
    )
    assert refusal == Refusal(
        code=grpc.StatusCode.INVALID_ARGUMENT,
        sentence="a sentence",
        reason="INVALID_FIELD",
        metadata={"field": "amount"},
        fields={"amount": "is negative"},
        retry_seconds=None,
        payment=None,
    )
    assert not refusal.is_passing


async def test_a_version_that_differs_shows_the_payment_and_does_not_pass() -> None:
    now = payments_pb2.Payment(payment_id="pay_1", version=5)
    refusal = await refusal_by(error_of(grpc.StatusCode.ABORTED, "VERSION_MISMATCH", now))
    assert refusal.payment == now
    assert not refusal.is_passing


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE", True),
        (grpc.StatusCode.ABORTED, "VERSION_MISMATCH", True),
        (grpc.StatusCode.ABORTED, "OPERATION_IN_PROGRESS", False),
        (grpc.StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN", False),
        (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED", False),
        (grpc.StatusCode.FAILED_PRECONDITION, "ANSWER_NOT_KEPT", False),
        (grpc.StatusCode.FAILED_PRECONDITION, "DISCREPANCY", False),
        # An earlier try with the key may have moved money before the token expired.
        (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", False),
        (grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED", False),
        (grpc.StatusCode.CANCELLED, "", False),
        (grpc.StatusCode.UNIMPLEMENTED, "", False),
    ],
)
async def test_only_a_definite_refusal_has_changed_nothing(
    code: grpc.StatusCode, reason: str, expected: bool
) -> None:
    status = (
        error_of(code, reason)
        if reason
        else rpc_status.to_status(status_pb2.Status(code=code.value[0]))
    )
    assert (await refusal_by(status)).changed_nothing is expected


async def test_an_error_of_another_domain_has_no_reason() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0])
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="X", domain="mesh.example"))
    refusal = await refusal_by(rpc_status.to_status(status))
    assert (refusal.reason, refusal.is_passing) == ("", True)


def test_a_call_that_was_never_sent_is_a_refusal_too() -> None:
    refusal = refusal_of(NoTokenError("there is no token"))
    assert (refusal.code, refusal.sentence) == (
        grpc.StatusCode.UNAVAILABLE,
        "there is no token",
    )


async def test_a_call_is_repeated_as_it_was_until_it_is_answered() -> None:
    delay = error_details_pb2.RetryInfo()
    delay.retry_delay.FromMilliseconds(700)
    servicer = Servicer(
        error_of(grpc.StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN"),
        error_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", delay),
    )
    met: list[Refusal] = []
    began = time.monotonic()
    async with serving(servicer) as stub:
        answer = await until_answered(stub.CapturePayment, REQUEST, repeated=met.append)
    assert answer.payment.payment_id == "pay_1"
    assert servicer.seen == [REQUEST.SerializeToString()] * 3
    assert [refusal.reason for refusal in met] == ["OUTCOME_UNKNOWN", "OVERLOADED"]
    assert met[1].retry_seconds == 0.7
    assert time.monotonic() - began >= 0.25 + 0.7


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, "EXPERT_NOT_READY"),
        (grpc.StatusCode.ABORTED, "VERSION_MISMATCH"),
    ],
)
async def test_what_waiting_does_not_change_is_raised_at_once(
    code: grpc.StatusCode, reason: str
) -> None:
    servicer = Servicer(error_of(code, reason))
    async with serving(servicer) as stub:
        with pytest.raises(aio.AioRpcError):
            await until_answered(stub.CapturePayment, REQUEST)
    assert len(servicer.seen) == 1


async def test_the_last_error_is_raised_when_the_time_is_over() -> None:
    servicer = Servicer(*[error_of(grpc.StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN")] * 9)
    began = time.monotonic()
    async with serving(servicer) as stub:
        with pytest.raises(aio.AioRpcError) as caught:
            await until_answered(stub.CapturePayment, REQUEST, seconds=1)
    assert refusal_of(caught.value).reason == "OUTCOME_UNKNOWN"
    assert 1 < len(servicer.seen) < 5
    assert time.monotonic() - began < 3
