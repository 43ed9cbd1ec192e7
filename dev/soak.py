"""`make soak`: workers under a steady load, on loopback; their memory must stay small and flat.

The load is whole payments: initiated, confirmed, captured, refunded, so that each worker does all
that a worker does, its jobs included. Memory is what Linux says. RSS counts in each worker what all
share; PSS divides it, so the sum of the PSS is what the machine needs, and PSS is judged.
"""

import asyncio
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import grpc

from dev.bench.calls import Call, Marketplace
from dev.demo import Failed
from dev.processes import children_of
from dev.scratch import scratch
from dev.settings import StackSettings
from dev.stack import Stack
from dev.story import Story
from marketplace.payments.channel import connect

#: The goals: megabytes of one worker, and by how much it may grow from the second quarter to the
#: last. The first minutes are not judged: pools fill, and connections open.
MOST_MB: Final = 110.0
MOST_GROWTH_MB: Final = 5.0
_JUDGED_FROM_SECONDS: Final = 300.0
_SAMPLES: Final = 60
_PATIENCE_SECONDS: Final = 60.0
#: How many payments may be on their way at once.
_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes of one process at one time."""

    rss: float
    pss: float
    private: float


def memory_of(pid: int) -> Memory:
    """Returns what Linux says of a process. Raises OSError if it has ended."""
    sizes = {
        name: int(rest.split()[0]) / 1024
        for name, _, rest in (
            line.partition(":")
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        )
    }
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return Memory(sizes["Rss"], sizes["Pss"], private)


class Soak:
    """The load, and what it was answered."""

    def __init__(self, market: Marketplace) -> None:
        self._market = market
        self.answers: Counter[str] = Counter()

    async def load(self, per_second: float, seconds: float) -> None:
        """Begins payments at fixed times, and waits until all have ended."""
        began, tasks = time.monotonic(), set[asyncio.Task[None]]()
        while time.monotonic() - began < seconds:
            tasks = {task for task in tasks if not task.done()}
            if len(tasks) < _AT_ONCE:
                tasks.add(asyncio.create_task(self._payment()))
            await asyncio.sleep(1 / per_second)
        await asyncio.gather(*tasks)

    async def _payment(self) -> None:
        market = self._market
        try:
            payment = await market.initiated()
            await market.confirm(payment)()
            await market.held(payment.payment_id)
            for call in (market.capture(payment), market.refund(payment)):
                await self._count(call)
            await self._count(market.read(payment.payment_id))
        except TimeoutError:
            self.answers["no escrow"] += 1
        except grpc.aio.AioRpcError as error:
            self.answers[error.code().name] += 1
        else:
            self.answers["payments"] += 1

    async def _count(self, call: Call) -> None:
        await call()
        self.answers["calls"] += 1


async def measure(
    stack: Stack, seconds: float, per_second: float
) -> tuple[Soak, list[list[Memory]]]:
    """Returns the answers, and the memory of each worker at even times."""
    samples: list[list[Memory]] = []
    workers = stack.settings.workers

    async def watch() -> None:
        while True:
            # The process that serves the pages is forked after the workers.
            service = stack.services[0].pid
            pids = children_of(service)[:workers] if workers > 1 else [service]
            with contextlib.suppress(OSError):
                samples.append([memory_of(pid) for pid in pids])
            await asyncio.sleep(seconds / _SAMPLES)

    async with aiohttp.ClientSession() as web, connect(*stack.settings.grpc_addresses) as channel:
        market = Marketplace(channel, web, stack.simulator_url)
        await market.prepare()
        soak, watching = Soak(market), asyncio.create_task(watch())
        try:
            await asyncio.wait_for(soak.load(per_second, seconds), seconds + 2 * _PATIENCE_SECONDS)
        finally:
            watching.cancel()
    return soak, samples


def growth(samples: Sequence[float]) -> float:
    """Returns by how much the median of the last quarter is above that of the second one."""
    quarter = len(samples) // 4
    return statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter])


def soak(*, seconds: float, workers: int, per_second: float) -> None:
    """Starts a stack, loads it, and prints the memory of its workers."""
    story = Story()
    story.introduce(
        f"{workers} workers for {seconds:.0f} s",
        f"{per_second:g} payments a second, each initiated, confirmed, captured and refunded. "
        f"At most {MOST_MB:.0f} MB a worker, and no growth.",
    )
    with (
        scratch("payments-soak-") as data,
        Stack(StackSettings.on_free_ports(data, workers=workers)) as stack,
    ):
        found, samples = asyncio.run(measure(stack, seconds, per_second))
    rows, course, good = [], [], found.answers["payments"] > 0
    for worker, memories in enumerate(zip(*samples, strict=True)):
        rss, pss = [one.rss for one in memories], [one.pss for one in memories]
        private = [one.private for one in memories]
        grown = growth(private)
        good = good and max(pss) <= MOST_MB
        good = good and (seconds < _JUDGED_FROM_SECONDS or grown <= MOST_GROWTH_MB)
        course.append(" ".join(f"{one:.0f}" for one in private[:: max(1, len(private) // 12)]))
        figures = (rss[0], max(rss), max(pss), max(private), grown)
        rows.append([str(worker), *(f"{figure:.1f}" for figure in figures)])
    columns = ["worker", "RSS at first>", "RSS>", "PSS>", "private>", "growth of private>"]
    story.table("megabytes", columns, rows)
    for worker, line in enumerate(course):
        story.note(f"private memory of worker {worker} over time: {line}")
    story.note(f"answers: {dict(found.answers)}")
    story.verdict(
        f"A worker takes at most {MOST_MB:.0f} MB and grows by at most {MOST_GROWTH_MB:.0f} MB.",
        good=good,
    )
    if not good:
        raise Failed
