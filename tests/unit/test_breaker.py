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


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(2, clock)


def is_open(breaker: Breaker) -> bool:
    return breaker.is_open


async def call(breaker: Breaker, *, answers: bool) -> None:
    async with breaker.call():
        (breaker.answered if answers else breaker.failed)()


async def test_nine_failures_in_a_row_change_nothing(breaker: Breaker) -> None:
    for _ in range(9):
        await call(breaker, answers=False)
    assert not is_open(breaker)
    await call(breaker, answers=True)
    for _ in range(9):
        await call(breaker, answers=False)
    assert not is_open(breaker)


async def test_ten_failures_in_a_row_open_it(breaker: Breaker) -> None:
    for _ in range(10):
        await call(breaker, answers=False)
    assert is_open(breaker)
    with pytest.raises(CircuitOpen):
        await call(breaker, answers=True)


async def test_one_probe_a_second_finds_out(breaker: Breaker, clock: Clock) -> None:
    for _ in range(10):
        await call(breaker, answers=False)
    clock.now += 1.1
    async with breaker.call():
        with pytest.raises(CircuitOpen):  # Others wait for the probe's answer.
            await call(breaker, answers=True)
        breaker.failed()
    assert is_open(breaker)
    clock.now += 1.1
    await call(breaker, answers=True)
    assert not is_open(breaker)
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
