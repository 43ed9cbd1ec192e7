"""The stubs with which a walk calls the service, and the error for an unexpected answer."""

import time
from collections.abc import Callable
from typing import TypeVar, cast

import grpc

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
    """An answer differs from the expected one."""

    def __init__(self, what: str, wanted: object, got: object) -> None:
        super().__init__(f"{what}: expected {wanted}, got {got}")


class Interrupted(Exception):
    """A signal asked for the end."""


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

        `check_interrupted` raises :class:`Interrupted` after a signal.
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
        """Returns the answer and its duration in seconds."""
        self._check_interrupted()
        began = time.perf_counter()
        return method(request), time.perf_counter() - began

    def ask(self, method: Callable[[Request], Response], request: Request) -> Response:
        return self.timed(method, request)[0]

    def poll(self, done: Callable[[], bool], seconds: float | None = None) -> float:
        """Waits until the condition holds, and returns for how long.

        A timeout is no error here: the check that follows knows what was expected.
        """
        began = time.monotonic()
        while not done() and time.monotonic() - began < (seconds or self._patience_seconds):
            self._check_interrupted()
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - began


def expect(what: str, wanted: object, got: object) -> None:
    """Raises :class:`Mismatch` unless they are equal."""
    if wanted != got:
        raise Mismatch(what, wanted, got)


def state_name(state: payments_pb2.PaymentState.ValueType) -> str:
    return payments_pb2.PaymentState.Name(state).removeprefix("PAYMENT_STATE_")


def call_of(error: grpc.RpcError) -> grpc.Call:
    """Returns the error as a call, which every error of a blocking call is."""
    return cast("grpc.Call", error)
