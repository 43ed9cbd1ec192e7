"""Admits calls by class, so that no class of calls starves another.

Each class has a bounded number of calls in progress and a short queue. What is beyond them is
refused at once with RESOURCE_EXHAUSTED and a delay after which the caller may try again: a refusal
costs little, and a call that waits longer than its caller does costs as much as one that succeeds.
Health has no limit, because an overloaded replica must still say that it lives.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

import grpc
from grpc import aio

from payment_service.application.idempotency import on_replay
from payment_service.domain.errors import Exhausted
from payment_service.domain.quotas import Buckets
from payment_service.rpc.call_context import Place, caller_name, current_place

_PACKAGE: Final = "/marketplace.payments.v1."
#: No caller takes more than this part of the places and the queue of a class.
_SHARE: Final = 0.75
#: When a place is likely to be free again.
_RETRY_SECONDS: Final = 0.5


class CallClass(StrEnum):
    """What a call costs, and whom it must not starve."""

    #: Health and reflection. Never refused.
    HEALTH = "HEALTH"
    #: Reads that our database answers.
    READ = "READ"
    #: Reads and links for which Stripe is asked: they are as slow as Stripe.
    STRIPE_READ = "STRIPE_READ"
    #: Whatever changes something.
    MONEY = "MONEY"
    #: Stripe's webhooks. Stripe repeats what is refused.
    WEBHOOK = "WEBHOOK"
    #: What reads a large part of the books.
    EXPENSIVE = "EXPENSIVE"
    #: Streams. EVENT_WATCHERS bounds them.
    FEED = "FEED"


#: The class of every RPC that is neither a read of our database (Get…, List…) nor MONEY.
_CLASSES: Final[Mapping[str, CallClass]] = {
    "ExpertService/GetExpert": CallClass.STRIPE_READ,
    "ExpertService/GetExpertBalance": CallClass.STRIPE_READ,
    "ExpertService/CreateDashboardLink": CallClass.STRIPE_READ,
    "ExpertService/RefreshOnboarding": CallClass.STRIPE_READ,
    "OnboardingService/GetOnboardingStatus": CallClass.STRIPE_READ,
    "OnboardingService/CreateOnboardingLink": CallClass.STRIPE_READ,
    "WebhookService/IngestEvent": CallClass.WEBHOOK,
    "LedgerService/ListBalances": CallClass.EXPENSIVE,
    "OperationsService/RunReconciliation": CallClass.EXPENSIVE,
    "OperationsService/ExportPaymentProof": CallClass.EXPENSIVE,
    "EventService/WatchEvents": CallClass.FEED,
}


def class_of(method: str) -> CallClass:
    """Returns the class of a method by its path. A new RPC is a read or MONEY until it is named."""
    if not method.startswith(_PACKAGE):
        return CallClass.HEALTH
    name = method.removeprefix(_PACKAGE)
    is_read = name.rpartition("/")[2].startswith(("Get", "List"))
    return _CLASSES.get(name, CallClass.READ if is_read else CallClass.MONEY)


@dataclass(frozen=True, slots=True)
class ClassLimit:
    """How many calls of a class may be in progress, and how many may wait for how long."""

    places: int
    queue: int
    queue_seconds: float


class Counts(Protocol):
    """Counts refused calls, and shows how many are in progress."""

    def call_refused(self, call_class: str, why: str, caller: str) -> None: ...
    def watch_calls(self, call_class: str, in_progress: Callable[[], float]) -> None: ...


class _Full(Exception):
    """There is no place; ``why`` is for the metric."""

    def __init__(self, why: str, limit: int) -> None:
        super().__init__(why)
        self.why = why
        self.limit = limit


class Gate:
    """The places of one class."""

    def __init__(self, limit: ClassLimit) -> None:
        self._limit = limit
        self._places = asyncio.Semaphore(limit.places)
        self._of_caller: Counter[str] = Counter()
        self._share = max(1, int((limit.places + limit.queue) * _SHARE))
        self.in_progress = 0
        self.waiting = 0

    async def enter(self, caller: str) -> Place:
        """Returns a place, perhaps after waiting in the queue. Raises :class:`_Full`."""
        if self._of_caller[caller] >= self._share:
            raise _Full("share", self._share)
        if self._places.locked() and self.waiting >= self._limit.queue:
            raise _Full("full", self._limit.places)
        self._of_caller[caller] += 1
        try:
            if self._places.locked():
                await self._wait()
            else:
                await self._places.acquire()
        except BaseException:
            self._forget(caller)
            raise
        self.in_progress += 1
        return Place(lambda: self._leave(caller))

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            async with asyncio.timeout(self._limit.queue_seconds):
                await self._places.acquire()
        except TimeoutError:
            raise _Full("full", self._limit.places) from None
        finally:
            self.waiting -= 1

    def _leave(self, caller: str) -> None:
        self.in_progress -= 1
        self._forget(caller)
        self._places.release()

    def _forget(self, caller: str) -> None:
        self._of_caller[caller] -= 1
        if not self._of_caller[caller]:
            del self._of_caller[caller]


class AdmissionInterceptor(aio.ServerInterceptor):
    """Refuses what is too much. It stands within the interceptor that maps errors."""

    def __init__(
        self, limits: Mapping[CallClass, ClassLimit], quotas: Buckets, counts: Counts
    ) -> None:
        self._gates = {name: Gate(limit) for name, limit in limits.items()}
        self._quotas = quotas
        self._counts = counts
        for name, gate in self._gates.items():
            counts.watch_calls(name, lambda gate=gate: gate.in_progress)  # type: ignore[misc]  # bound now

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler: Any = await continuation(handler_call_details)
        call_class = class_of(handler_call_details.method)
        gate = self._gates.get(call_class)
        if handler is None or gate is None or handler.response_streaming:
            return handler  # type: ignore[no-any-return]  # grpc's
        return grpc.unary_unary_rpc_method_handler(
            self._admitted(call_class, gate, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _admitted(self, call_class: CallClass, gate: Gate, inner: Any) -> Any:
        async def call(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            caller = caller_name()
            counted = call_class is CallClass.MONEY
            if counted:
                self._take_token(caller)
            try:
                place = await gate.enter(caller)
            except _Full as full:
                if counted:
                    self._quotas.give_back(caller)
                self._counts.call_refused(call_class, full.why, caller)
                raise _overloaded(call_class, full.limit) from None
            current_place.set(place)
            if counted:
                # A repeated call has started nothing, so it costs nothing.
                on_replay.set(lambda: self._quotas.give_back(caller))
            try:
                return await inner(request, context)
            finally:
                place.leave()

        return call

    def _take_token(self, caller: str) -> None:
        seconds = self._quotas.take(caller, time.monotonic())
        if seconds:
            quota = self._quotas.quota_of(caller)
            self._counts.call_refused(CallClass.MONEY, "quota", caller)
            raise Exhausted(
                "QUOTA_EXCEEDED",
                f"{caller} makes more calls that change something than its quota allows; ask again "
                "later with the same key",
                {"caller": caller, "quota": "money", "rate": quota.rate, "burst": quota.burst},
                retry_seconds=max(seconds, 0.1),
            )


def _overloaded(call_class: CallClass, limit: int) -> Exhausted:
    return Exhausted(
        "OVERLOADED",
        "as many calls of this class as this replica takes are in progress; ask again later with "
        "the same key",
        {"call_class": call_class.value, "limit": limit},
        retry_seconds=_RETRY_SECONDS,
    )
