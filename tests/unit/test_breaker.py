"""The breaker before Stripe: fails fast after a row of failures, probes, and closes again."""

import asyncio

import pytest

from payment_service.adapters.stripe.breaker import Breaker, BulkheadFull, CircuitOpen


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Probe:
    """Stands for Stripe: answers or not, and may let the question wait."""

    def __init__(self) -> None:
        self.answers = False
        self.asked = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self) -> bool:
        self.asked += 1
        await self.may_end.wait()
        return self.answers


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def breaker(probe: Probe, clock: Clock) -> Breaker:
    return Breaker(2, probe, clock)


def is_open(breaker: Breaker) -> bool:
    return breaker.is_open


def shows_open(breaker: Breaker) -> bool:
    """Returns what the metric shows."""
    return breaker.has_opened


async def call(breaker: Breaker, *, answers: bool) -> None:
    async with breaker.call():
        (breaker.answered if answers else breaker.failed)()


async def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        await call(breaker, answers=False)


async def test_nine_failures_in_a_row_ask_nothing(breaker: Breaker, probe: Probe) -> None:
    await fail(breaker, 9)
    await call(breaker, answers=True)
    await fail(breaker, 9)
    await call(breaker, answers=True)
    assert not is_open(breaker)
    assert not probe.asked


async def test_ten_failures_and_a_failed_probe_open_it(breaker: Breaker, probe: Probe) -> None:
    await fail(breaker, 10)
    for _ in range(3):
        with pytest.raises(CircuitOpen):
            await call(breaker, answers=True)
    assert is_open(breaker)
    assert probe.asked == 1


async def test_objects_that_stripe_cannot_show_do_not_open_it(
    breaker: Breaker, probe: Probe
) -> None:
    probe.answers = True
    await fail(breaker, 100)
    assert not is_open(breaker)
    assert probe.asked == 9, "one for each ten failures"


async def test_one_probe_a_second_finds_out(breaker: Breaker, probe: Probe, clock: Clock) -> None:
    await fail(breaker, 10)
    probe.may_end.clear()
    first = asyncio.create_task(call(breaker, answers=True))
    await asyncio.sleep(0)
    assert is_open(breaker)
    with pytest.raises(CircuitOpen):  # Others do not wait for the probe's answer.
        await call(breaker, answers=True)
    probe.may_end.set()
    with pytest.raises(CircuitOpen):
        await first
    assert is_open(breaker)
    clock.now += 1.1
    assert shows_open(breaker), "a second without a call is no answer"
    probe.answers = True
    await call(breaker, answers=True)
    assert not is_open(breaker)
    assert not shows_open(breaker)
    assert probe.asked == 2
    await call(breaker, answers=True)


async def test_more_calls_than_places_are_refused_unsent(
    breaker: Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payment_service.adapters.stripe.breaker._ADMISSION_SECONDS", 0.02)
    released = asyncio.Event()

    async def long() -> None:
        async with breaker.call():
            await released.wait()

    tasks = [asyncio.create_task(long()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFull):
        await call(breaker, answers=True)
    released.set()
    await asyncio.gather(*tasks)
    await call(breaker, answers=True)
