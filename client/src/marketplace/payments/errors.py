"""Why a call was refused, as values; and calls that are repeated until their outcome is known.

    try:
        await until_answered(payments.CapturePayment, request)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        if refusal.reason == "EXPERT_NOT_READY":
            ...

Decide by `reason` where you know it, and by `code` where you do not: any release can add reasons.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from marketplace.payments.v1 import payments_pb2

A = TypeVar("A", bound=Message)
Q = TypeVar("Q", bound=Message)

_STATUS: Final = "grpc-status-details-bin"
_DOMAIN: Final = "payments.marketplace"
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0

#: The outcome is unknown, or something else is in progress: the same call may end otherwise later.
#: The service never answers with the last three; a proxy or gRPC does when an answer is lost.
_PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)
#: Money may have moved all the same: by the first call with the key, or by somebody at Stripe.
_MAY_HAVE_MOVED: Final = frozenset({"IDEMPOTENCY_KEY_REUSED", "ANSWER_NOT_KEPT", "DISCREPANCY"})
#: The caller was refused before its key was looked at, so this says nothing of an earlier try with
#: the same key. With another token or certificate the same call is answered.
_AT_THE_DOOR: Final = frozenset(
    {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
)


@dataclass(frozen=True)
class Refusal:
    """An error of the payment service. `reason` is empty if gRPC itself ended the call."""

    code: grpc.StatusCode
    sentence: str
    #: A name of `ErrorReason` without its prefix, such as `EXPERT_NOT_READY`.
    reason: str
    metadata: Mapping[str, str]
    #: What is wrong with each field of the request, after INVALID_ARGUMENT.
    fields: Mapping[str, str]
    #: How long to wait before the call is made again, if the service says so.
    retry_seconds: float | None
    #: The payment as it is now, after VERSION_MISMATCH.
    payment: payments_pb2.Payment | None

    @property
    def is_passing(self) -> bool:
        """Returns whether the same call with the same key is worth another try, after a pause."""
        return self.code in _PASSING and self.reason != "VERSION_MISMATCH"

    @property
    def changed_nothing(self) -> bool:
        """Returns whether the call has certainly moved no money: a new decision may use a new key.

        Never after an error that the service itself has not answered, nor after one from before
        it looked at the key: then the outcome of an earlier try is unknown.
        """
        if not self.reason or self.is_passing or self.code in _AT_THE_DOOR:
            return False
        return self.reason not in _MAY_HAVE_MOVED


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Returns what an error of a call says."""
    status = status_pb2.Status()
    # A call that was never sent has no metadata.
    for name, value in getattr(error, "trailing_metadata", tuple)() or ():
        if name == _STATUS and isinstance(value, bytes):
            status.ParseFromString(value)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, payment = error_details_pb2.RetryInfo(), payments_pb2.Payment()
    found = {
        type(message): message
        for detail in status.details
        for message in (info, bad, retry, payment)
        if detail.Unpack(message)
    }
    ours = info.domain == _DOMAIN
    delay = retry.retry_delay.ToTimedelta().total_seconds()
    return Refusal(
        code=error.code(),
        sentence=error.details() or "",
        reason=info.reason if ours else "",
        metadata=dict(info.metadata) if ours else {},
        fields={fault.field: fault.description for fault in bad.field_violations},
        retry_seconds=delay if type(retry) in found else None,
        payment=payment if type(payment) in found else None,
    )


async def until_answered(
    method: "grpc.aio.UnaryUnaryMultiCallable[Q, A]",
    request: Q,
    *,
    seconds: float = 60.0,
    repeated: Callable[[Refusal], None] = lambda refusal: None,
) -> A:
    """Makes a call, and repeats it with the same key until its outcome is known.

    `connect` repeats a call for about two seconds, as long as a replica takes to start. This one
    waits for what takes longer: an outage, Stripe's answer, another call on the same payment. It
    raises the last error after these seconds, and at once one that does not pass by waiting.
    `repeated` gets each error that is waited for.
    """
    until, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        try:
            return await method(request)
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            wait = refusal.retry_seconds or random.uniform(pause / 2, pause)  # noqa: S311 - jitter
            if not refusal.is_passing or time.monotonic() + wait > until:
                raise
        repeated(refusal)
        await asyncio.sleep(wait)
        pause = min(pause * 2, _LONGEST_PAUSE)
