"""Places, queues and shares of the classes of calls, and which class each RPC has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from payment_service.application.single_flight import SingleFlight
from payment_service.domain.errors import Exhausted, Unavailable
from payment_service.domain.quotas import Buckets, Quota
from payment_service.rpc.admission import Admission, CallClass, ClassLimit, Gate, _Full, class_of
from payment_service.rpc.call_context import CallRegistry, Place, current_place
from tests.unit.protos import services


class Counts:
    """Remembers what was counted."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, str, str]] = []
        self.in_progress: dict[str, Callable[[], float]] = {}

    def call_refused(self, call_class: str, why: str, caller: str) -> None:
        self.refused.append((call_class, why, caller))

    def watch_calls(self, call_class: str, in_progress: Callable[[], float]) -> None:
        self.in_progress[call_class] = in_progress


_EXPENSIVE = {
    "ListBalances",
    "GetMonthlyReport",
    "GetExpertStatement",
    "RunReconciliation",
    "ExportPaymentProof",
}
_ASKS_STRIPE = {
    "GetExpert",
    "GetExpertBalance",
    "CreateDashboardLink",
    "RefreshOnboarding",
    "GetOnboardingStatus",
    "CreateOnboardingLink",
}


def test_every_rpc_has_its_class() -> None:
    found: dict[CallClass, set[str]] = {}
    for service in services():
        for rpc in service.requests:
            path = f"/marketplace.payments.v1.{service.name}/{rpc}"
            found.setdefault(class_of(path), set()).add(rpc)
    assert found[CallClass.EXPENSIVE] == _EXPENSIVE
    assert found[CallClass.STRIPE_READ] == _ASKS_STRIPE
    assert found[CallClass.WEBHOOK] == {"IngestEvent"}
    assert found[CallClass.FEED] == {"WatchEvents"}
    assert all(rpc.startswith(("Get", "List", "Explain")) for rpc in found[CallClass.READ])
    assert {"InitiatePayment", "CapturePayment", "RefundPayment", "EraseUser"} <= found[
        CallClass.MONEY
    ]
    assert not any(rpc.startswith(("Get", "List", "Explain")) for rpc in found[CallClass.MONEY])
    assert class_of("/grpc.health.v1.Health/Check") is CallClass.HEALTH
    assert class_of("/grpc.health.v1.Health/Watch") is CallClass.HEALTH_WATCH


async def test_what_is_beyond_places_and_queue_is_refused_at_once() -> None:
    gate = Gate(ClassLimit(places=2, queue=1, queue_seconds=5))
    first, second = await gate.enter("a"), await gate.enter("b")
    waiting = asyncio.create_task(gate.enter("c"))
    await asyncio.sleep(0)
    assert (gate.in_progress, gate.waiting) == (2, 1)
    began = asyncio.get_running_loop().time()
    with pytest.raises(_Full) as refused:
        await gate.enter("d")
    assert asyncio.get_running_loop().time() - began < 1
    assert (refused.value.why, refused.value.limit) == ("full", 2)
    first.leave()
    third = await waiting
    second.leave()
    third.leave()
    assert (gate.in_progress, gate.waiting, dict(gate._callers)) == (0, 0, {})


async def test_the_queue_ends_after_its_time() -> None:
    gate = Gate(ClassLimit(places=1, queue=3, queue_seconds=0.05))
    place = await gate.enter("a")
    with pytest.raises(_Full, match="full"):
        await gate.enter("b")
    place.leave()
    (await gate.enter("b")).leave()
    assert dict(gate._callers) == {}


async def test_one_caller_does_not_get_all_places() -> None:
    gate = Gate(ClassLimit(places=8, queue=0, queue_seconds=1))
    places = [await gate.enter("greedy") for _ in range(6)]
    with pytest.raises(_Full, match="share"):
        await gate.enter("greedy")
    (await gate.enter("modest")).leave()
    for place in places:
        place.leave()


async def test_one_caller_does_not_keep_the_others_waiting_by_filling_the_queue() -> None:
    """Slow calls of one caller would otherwise hold every place, and the others would time out."""
    gate = Gate(ClassLimit(places=8, queue=4, queue_seconds=0.1))
    calls = [asyncio.create_task(gate.enter("greedy")) for _ in range(20)]
    await asyncio.sleep(0)
    assert (gate.in_progress, gate.waiting) == (6, 3)
    modest = [await asyncio.wait_for(gate.enter("modest"), 0.05) for _ in range(2)]
    entered = await asyncio.gather(*calls, return_exceptions=True)
    places = [one for one in entered if isinstance(one, Place)]
    assert len(places) == 6
    assert {one.why for one in entered if isinstance(one, _Full)} == {"share"}
    for place in [*places, *modest]:
        place.leave()
    again = [await gate.enter("greedy") for _ in range(6)]
    for place in again:
        place.leave()
    assert (gate.in_progress, gate.waiting, dict(gate._callers)) == (0, 0, {})


async def test_a_caller_that_leaves_the_queue_leaves_nothing_behind() -> None:
    gate = Gate(ClassLimit(places=1, queue=1, queue_seconds=5))
    place = await gate.enter("a")
    waiting = asyncio.create_task(gate.enter("b"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert gate.waiting == 0
    place.leave()
    (await gate.enter("c")).leave()
    assert gate.in_progress == 0


async def test_an_operation_keeps_its_place_when_its_caller_leaves() -> None:
    """Otherwise callers with short deadlines could start any number of operations."""
    freed, ended = asyncio.Event(), asyncio.Event()
    calls, place = CallRegistry(), Place(freed.set)

    async def call() -> None:
        current_place.set(place)
        try:
            await calls.run(ended.wait())
        finally:
            place.leave()

    caller = asyncio.create_task(call())
    await asyncio.sleep(0.01)
    caller.cancel()
    await asyncio.wait([caller])
    assert not freed.is_set()
    ended.set()
    await asyncio.wait_for(freed.wait(), 1)


async def test_equal_work_is_done_once_and_other_work_one_after_the_other() -> None:
    flights, runs, at_once = SingleFlight(), [], []

    async def work(key: str) -> str:
        runs.append(key)
        at_once.append(key)
        await asyncio.sleep(0.01)
        assert at_once.pop() == key
        assert not at_once, "two runs at once"
        return f"report {key} {len(runs)}"

    reports = await asyncio.gather(
        *(flights.join("all", key, lambda key=key: work(key)) for key in "aaaabbbb")  # type: ignore[misc]  # bound now
    )
    assert runs == ["a", "b"]
    assert set(reports) == {"report a 1", "report b 2"}
    assert await flights.join("all", "a", lambda: work("a")) == "report a 3"


async def test_an_error_reaches_all_who_joined() -> None:
    flights = SingleFlight()

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ValueError

    joined = (flights.join("all", "a", fail) for _ in range(3))
    outcomes = await asyncio.gather(*joined, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError] * 3


async def test_whoever_joined_a_cancelled_run_may_ask_again() -> None:
    flights = SingleFlight()
    leader = asyncio.create_task(flights.join("all", "a", lambda: asyncio.sleep(60)))
    await asyncio.sleep(0)
    joined = asyncio.create_task(flights.join("all", "a", lambda: asyncio.sleep(60)))
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(Unavailable):
        await joined
    assert not flights._running


async def test_who_is_not_known_shares_with_the_machine_that_it_comes_from() -> None:
    counts = Counts()
    limits = {CallClass.HEALTH_WATCH: ClassLimit(4, 0, 0.0)}
    admission = Admission(limits, Buckets(Quota(1, 1), {}), counts)
    places = [await admission.enter(CallClass.HEALTH_WATCH, None, "ipv4:10.0.0.1") for _ in "123"]
    with pytest.raises(Exhausted) as refused:
        await admission.enter(CallClass.HEALTH_WATCH, None, "ipv4:10.0.0.1")
    assert (refused.value.reason, refused.value.facts["call_class"]) == (
        "OVERLOADED",
        "HEALTH_WATCH",
    )
    assert counts.refused == [("HEALTH_WATCH", "share", "nobody")]
    assert await admission.enter(CallClass.HEALTH_WATCH, None, "ipv4:10.0.0.2")
    assert await admission.enter(CallClass.HEALTH, None, "ipv4:10.0.0.1") is None
    assert counts.in_progress["HEALTH_WATCH"]() == 4
    assert places[0] is not None
    places[0].leave()
    assert await admission.enter(CallClass.HEALTH_WATCH, None, "ipv4:10.0.0.1")
