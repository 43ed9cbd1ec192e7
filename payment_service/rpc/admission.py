"""Admits calls by class, so that no class of calls starves another.

Each class has a bounded number of calls in progress and a short queue. What is beyond them is
refused at once with RESOURCE_EXHAUSTED and a delay after which the caller may try again: a refusal
costs little, and a call that waits longer than its caller does costs as much as one that succeeds.
Checks of health have more places than probes ever need, because an overloaded replica must still
say that it lives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from payment_service.application.idempotency import on_replay
from payment_service.domain.caller import Caller
from payment_service.domain.errors import Exhausted
from payment_service.domain.quotas import Buckets
from payment_service.rpc.call_context import Place, current_place

_PACKAGE: Final = "/marketplace.payments.v1."
_HEALTH_WATCH: Final = "/grpc.health.v1.Health/Watch"
#: No caller takes more than this part of the places of a class, nor of places and queue together.
_SHARE: Final = 0.75
#: When a place is likely to be free again.
_RETRY_SECONDS: Final = 0.5


class CallClass(StrEnum):
    """What a call costs, and whom it must not starve."""

    #: Checks of health, and reflection.
    HEALTH = "HEALTH"
    #: Streams of health, open to everybody.
    HEALTH_WATCH = "HEALTH_WATCH"
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
    #: Streams of events, open for days.
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
    "LedgerService/GetMonthlyReport": CallClass.EXPENSIVE,
    "LedgerService/GetExpertStatement": CallClass.EXPENSIVE,
    "OperationsService/RunReconciliation": CallClass.EXPENSIVE,
    "OperationsService/ExplainPayment": CallClass.READ,
    "OperationsService/ExportPaymentProof": CallClass.EXPENSIVE,
    "EventService/WatchEvents": CallClass.FEED,
}


def class_of(method: str) -> CallClass:
    """Returns the class of a method by its path. A new RPC is a read or MONEY until it is named."""
    if not method.startswith(_PACKAGE):
        return CallClass.HEALTH_WATCH if method == _HEALTH_WATCH else CallClass.HEALTH
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


@dataclass(slots=True)
class _Caller:
    """The calls of one caller: those that are here, and the places that it may still take."""

    places: asyncio.Semaphore
    calls: int = 0


class Gate:
    """The places of one class.

    A call needs a place among its caller's own and one among all. So calls of a caller that has its
    part in use wait for that caller alone, and the places that are left are for the others.
    """

    def __init__(self, limit: ClassLimit) -> None:
        self._limit = limit
        self._places = asyncio.Semaphore(limit.places)
        self._callers: dict[str, _Caller] = {}
        self._places_of_one = max(1, int(limit.places * _SHARE))
        self._share = max(1, int((limit.places + limit.queue) * _SHARE))
        self.in_progress = 0
        self.waiting = 0

    async def enter(self, caller: str) -> Place:
        """Returns a place, perhaps after waiting in the queue. Raises :class:`_Full`."""
        own = self._callers.get(caller) or _Caller(asyncio.Semaphore(self._places_of_one))
        if own.calls >= self._share:
            raise _Full("share", self._share)
        must_wait = own.places.locked() or self._places.locked()
        if must_wait and self.waiting >= self._limit.queue:
            raise _Full("share" if own.places.locked() else "full", self._limit.places)
        self._callers[caller] = own
        own.calls += 1
        try:
            if must_wait:
                await self._wait(own)
            else:
                await self._take(own)
        except BaseException:
            self._forget(caller)
            raise
        self.in_progress += 1
        return Place(lambda: self._leave(caller))

    async def _wait(self, own: _Caller) -> None:
        self.waiting += 1
        try:
            async with asyncio.timeout(self._limit.queue_seconds):
                await self._take(own)
        except TimeoutError:
            raise _Full("share" if own.places.locked() else "full", self._limit.places) from None
        finally:
            self.waiting -= 1

    async def _take(self, own: _Caller) -> None:
        await own.places.acquire()
        try:
            await self._places.acquire()
        except BaseException:
            own.places.release()
            raise

    def _leave(self, caller: str) -> None:
        self.in_progress -= 1
        self._callers[caller].places.release()
        self._places.release()
        self._forget(caller)

    def _forget(self, caller: str) -> None:
        own = self._callers[caller]
        own.calls -= 1
        if not own.calls:
            del self._callers[caller]


class Admission:
    """Gives each call its place, or refuses it."""

    def __init__(
        self, limits: Mapping[CallClass, ClassLimit], quotas: Buckets, counts: Counts
    ) -> None:
        self._gates = {name: Gate(limit) for name, limit in limits.items()}
        self._quotas = quotas
        self._counts = counts
        for name, gate in self._gates.items():
            counts.watch_calls(name, lambda gate=gate: gate.in_progress)  # type: ignore[misc]  # bound now

    async def enter(self, call_class: CallClass, caller: Caller | None, peer: str) -> Place | None:
        """Returns a place, which the call must leave; None if its class has no limit.

        Raises :class:`Exhausted`. Who is not known shares with those that come from the same
        machine, ``peer``.
        """
        gate = self._gates.get(call_class)
        if gate is None:
            return None
        name = caller.name if caller else "nobody"
        counted = call_class is CallClass.MONEY
        if counted:
            self._take_token(name)
        try:
            place = await gate.enter(name if caller else peer)
        except _Full as full:
            if counted:
                self._quotas.give_back(name)
            self._counts.call_refused(call_class, full.why, name)
            raise _overloaded(call_class, full.limit) from None
        current_place.set(place)
        if counted:
            # A repeated call has started nothing, so it costs nothing.
            on_replay.set(lambda: self._quotas.give_back(name))
        return place

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
