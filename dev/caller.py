"""What a walk asks the service with: stubs, patience, a word for what is not as expected."""

import time
from collections.abc import Callable
from typing import TypeVar, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from marketplace.payments.v1 import (
    disputes_pb2_grpc,
    events_pb2_grpc,
    experts_pb2_grpc,
    ledger_pb2_grpc,
    operations_pb2_grpc,
    payments_pb2,
    payments_pb2_grpc,
)

Request = TypeVar("Request")
Response = TypeVar("Response")

_POLL_SECONDS = 0.05


class Mismatch(Exception):
    """Something is not as it must be."""

    def __init__(self, what: str, wanted: object, got: object) -> None:
        super().__init__(f"{what}: expected {wanted}, got {got}")


class Interrupted(Exception):
    """Somebody asked for an end."""


class Caller:
    """The service as its callers see it."""

    def __init__(
        self,
        channel: grpc.Channel,
        *,
        patience_seconds: float,
        check_interrupted: Callable[[], None],
    ) -> None:
        """`patience_seconds` is how long webhooks and Stripe's books may take.

        `check_interrupted` raises :class:`Interrupted` when somebody wants an end.
        """
        self.payments = payments_pb2_grpc.PaymentServiceStub(channel)
        self.experts = experts_pb2_grpc.ExpertServiceStub(channel)
        self.events = events_pb2_grpc.EventServiceStub(channel)
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(channel)
        self.disputes = disputes_pb2_grpc.DisputeServiceStub(channel)
        self.operations = operations_pb2_grpc.OperationsServiceStub(channel)
        self._patience_seconds = patience_seconds
        self._check_interrupted = check_interrupted

    def timed(
        self, method: Callable[[Request], Response], request: Request
    ) -> tuple[Response, float]:
        """The answer, and how many seconds it took."""
        self._check_interrupted()
        began = time.perf_counter()
        return method(request), time.perf_counter() - began

    def ask(self, method: Callable[[Request], Response], request: Request) -> Response:
        return self.timed(method, request)[0]

    def poll(self, done: Callable[[], bool], seconds: float | None = None) -> float:
        """Wait until it is so, and say how long that was.

        Waiting in vain is no error here: the check that follows knows what was expected.
        """
        began = time.monotonic()
        while not done() and time.monotonic() - began < (seconds or self._patience_seconds):
            self._check_interrupted()
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - began


def expect(what: str, wanted: object, got: object) -> None:
    """Raise :class:`Mismatch` unless they are equal."""
    if wanted != got:
        raise Mismatch(what, wanted, got)


def state_name(state: payments_pb2.PaymentState.ValueType) -> str:
    return payments_pb2.PaymentState.Name(state).removeprefix("PAYMENT_STATE_")


def call_of(error: grpc.RpcError) -> grpc.Call:
    """What every error of a blocking call is as well; its type does not say so."""
    return cast("grpc.Call", error)


def reason_of(error: grpc.RpcError) -> str:
    """The reason in an error's details; empty if it carries none."""
    status = rpc_status.from_call(call_of(error))
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""
