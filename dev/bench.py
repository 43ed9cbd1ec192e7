"""`make bench`: what one worker carries while Stripe is slow. Ends by itself in a minute.

Not a test: the figures depend on the machine, which makes the load as well.
"""

import asyncio
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc

from dev.settings import StackSettings
from dev.stack import Stack
from dev.story import Story
from marketplace.payments.channel import connect
from marketplace.payments.v1 import (
    experts_pb2,
    experts_pb2_grpc,
    money_pb2,
    payments_pb2,
    payments_pb2_grpc,
)

_EXPERT = "expert-bench"
_IDLE_SECONDS = 2.0
_LOAD_SECONDS = 8.0
_PREPARE_SECONDS = 12.0
_CAPTURES = 800
_TOTAL_SECONDS = 50.0
_READ_PAUSE_SECONDS = 0.01
_MEDIAN_BOUND_MS = 100.0


@dataclass
class Figures:
    """Durations of the answered calls, and the outcomes of the others."""

    name: str
    calls: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    async def measure(self, into: list[float], call: Callable[[], Awaitable[object]]) -> bool:
        """Whether the call was answered."""
        began = time.perf_counter()
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            self.refused[error.code().name] += 1
            return False
        into.append(time.perf_counter() - began)
        return True


class Bench:
    """One expert, many payments, and the requested number of concurrent calls."""

    def __init__(
        self, channel: grpc.aio.Channel, web: aiohttp.ClientSession, simulator_url: str
    ) -> None:
        # The stub of an asyncio channel has a type of its own, though no class of its own.
        self._payments: payments_pb2_grpc.PaymentServiceAsyncStub = (
            payments_pb2_grpc.PaymentServiceStub(channel)
        )
        self._experts: experts_pb2_grpc.ExpertServiceAsyncStub = experts_pb2_grpc.ExpertServiceStub(
            channel
        )
        self._web = web
        self._control_url = f"{simulator_url}/_simulator"
        self._number = 0
        self._made: list[payments_pb2.Payment] = []
        self._read_id = ""

    async def prepare(self) -> None:
        """Creates an expert who can be paid, and a payment to read."""
        request = experts_pb2.CreateExpertAccountRequest(
            expert_id=_EXPERT, name="Ada Lovelace", email="ada@example.com"
        )
        account = (await self._experts.CreateExpertAccount(request)).expert.stripe_account_id
        await self.control(f"accounts/{account}/complete_onboarding", {"outcome": "complete"})
        read = experts_pb2.GetExpertRequest(expert_id=_EXPERT)
        for _ in range(200):
            expert = (await self._experts.GetExpert(read)).expert
            if expert.status == experts_pb2.EXPERT_STATUS_READY:
                break
            await asyncio.sleep(0.05)
        await self._initiate()
        self._read_id = self._made[0].payment_id

    async def idle(self) -> Figures:
        figures = Figures("nothing else", seconds=_IDLE_SECONDS)
        with_reads = asyncio.create_task(self._read_on(figures))
        await asyncio.sleep(_IDLE_SECONDS)
        await _cancel(with_reads)
        return figures

    async def initiations(self, at_once: int) -> Figures:
        figures = Figures("InitiatePayment")
        end = time.monotonic() + _LOAD_SECONDS

        async def work() -> None:
            while time.monotonic() < end:
                await figures.measure(figures.calls, self._initiate)

        await self._under_load(figures, [work() for _ in range(at_once)])
        return figures

    async def authorize(self) -> int:
        """Confirms payments as clients, waits for the webhooks, and returns how many arrived."""
        end = time.monotonic() + _PREPARE_SECONDS
        made, self._made = self._made[:_CAPTURES], []
        wanted: list[payments_pb2.Payment] = []

        async def confirm() -> None:
            while made and time.monotonic() < end - _PREPARE_SECONDS / 2:
                payment = made.pop()
                path = f"payment_intents/{payment.payment_intent_id}/confirm"
                await self.control(path, {"payment_method": "pm_card_visa"})
                wanted.append(payment)

        await asyncio.gather(*(confirm() for _ in range(8)))
        while wanted and time.monotonic() < end:
            payment = wanted[-1]
            read = payments_pb2.GetPaymentStatusRequest(payment_id=payment.payment_id)
            answer = await self._payments.GetPaymentStatus(read)
            if answer.state == payments_pb2.PAYMENT_STATE_IN_ESCROW:
                self._made.append(wanted.pop())
            else:
                wanted.insert(0, wanted.pop())
                await asyncio.sleep(0.002)
        return len(self._made)

    async def captures(self, at_once: int) -> Figures:
        figures = Figures("CapturePayment")
        end = time.monotonic() + _LOAD_SECONDS

        async def work() -> None:
            while self._made and time.monotonic() < end:
                await figures.measure(figures.calls, self._capture)

        await self._under_load(figures, [work() for _ in range(at_once)])
        return figures

    async def control(self, path: str, body: dict[str, Any]) -> None:
        async with self._web.post(f"{self._control_url}/{path}", json=body) as answer:
            answer.raise_for_status()
            await answer.read()

    async def _initiate(self) -> None:
        self._number += 1
        request = payments_pb2.InitiatePaymentRequest(
            client_id=f"client-{self._number % 100}",
            expert_id=_EXPERT,
            gig_id=f"gig-{self._number}",
            amount=money_pb2.Money(minor_units=10_000, currency_code="USD"),
            idempotency_key=f"initiate-{self._number}",
        )
        self._made.append((await self._payments.InitiatePayment(request)).payment)

    async def _capture(self) -> None:
        payment_id = self._made.pop().payment_id
        request = payments_pb2.CapturePaymentRequest(
            payment_id=payment_id, idempotency_key=f"capture-{payment_id}"
        )
        await self._payments.CapturePayment(request)

    async def _under_load(self, figures: Figures, workers: list[Coroutine[Any, Any, None]]) -> None:
        reading = asyncio.create_task(self._read_on(figures))
        began = time.monotonic()
        await asyncio.gather(*workers)
        figures.seconds = time.monotonic() - began
        await _cancel(reading)

    async def _read_on(self, figures: Figures) -> None:
        """Reads a payment repeatedly, as one caller."""
        request = payments_pb2.GetPaymentRequest(payment_id=self._read_id)

        async def read() -> None:
            await self._payments.GetPayment(request)

        while True:
            await figures.measure(figures.reads, read)
            await asyncio.sleep(_READ_PAUSE_SECONDS)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def measure(stack: Stack, story: Story, at_once: int, latency_ms: int) -> list[Figures]:
    """Reads alone, then while payments are initiated, then while they are captured."""
    opened = connect(*stack.settings.grpc_addresses, tls=stack.access.tls, token=stack.access.token)
    async with aiohttp.ClientSession() as web, opened as channel:
        bench = Bench(channel, web, stack.simulator_url)
        await bench.prepare()
        figures = [await bench.idle()]
        await bench.control("settings", {"latency_ms": latency_ms})
        story.note(f"initiating for {_LOAD_SECONDS:.0f} s, {at_once} at once ...")
        figures.append(await bench.initiations(at_once))
        await bench.control("settings", {"latency_ms": 0})
        story.note(f"confirming some of them, for at most {_PREPARE_SECONDS:.0f} s ...")
        ready = await bench.authorize()
        await bench.control("settings", {"latency_ms": latency_ms})
        story.note(f"capturing {ready}, {at_once} at once ...")
        figures.append(await bench.captures(at_once))
        # Webhooks that are not applied yet must not delay the end.
        await bench.control("settings", {"latency_ms": 0})
    return figures


def bench(*, at_once: int = 128, latency_ms: int = 300) -> None:
    """Starts a stack with one worker, loads it, and prints a table."""
    story = Story()
    story.introduce(
        "One worker under load",
        f"Stripe is simulated and takes {latency_ms} ms for each call; {at_once} callers have a "
        "call in flight at any time, and one more reads a payment every 10 ms.",
    )
    directory = Path(tempfile.mkdtemp(prefix="payments-bench-"))
    directory.chmod(0o711)  # PostgreSQL's user must be able to enter it
    try:
        settings = StackSettings.on_free_ports(directory / "data")
        # One caller is all the load there is. Asked is what is carried, not what is admitted.
        limits = {"MONEY_RATE": "0", "MONEY_CALLS": str(2 * at_once)}
        environment = {**settings.environment, **limits}
        with Stack(replace(settings, environment=environment)) as stack:
            limited = asyncio.wait_for(
                measure(stack, story, at_once, latency_ms), timeout=_TOTAL_SECONDS
            )
            told(story, asyncio.run(limited))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def told(story: Story, figures: list[Figures]) -> None:
    """Prints the table, and whether reads stay fast."""
    idle = statistics.median(figures[0].reads)
    rows = []
    figures = [phase for phase in figures if phase.reads]
    for phase in figures:
        read, slow_read = _percentiles(phase.reads)
        call, slow_call = _percentiles(phase.calls)
        refused = ", ".join(f"{count} {code}" for code, count in phase.refused.items())
        rows.append(
            [
                phase.name,
                f"{len(phase.calls) / phase.seconds:.0f}" if phase.calls else "",
                call,
                slow_call,
                read,
                slow_read,
                f"{statistics.median(phase.reads) / idle:.1f}",
                refused,
            ]
        )
    columns = ["meanwhile", "a second>", "p50 ms>", "p95 ms>"]
    columns += ["GetPayment p50>", "p95>", "to idle>", "refused"]
    story.table("", columns, rows)
    slowest = max(statistics.median(phase.reads) for phase in figures) * 1000
    story.verdict(
        f"GetPayment's median is {slowest:.0f} ms at most (it must stay under "
        f"{_MEDIAN_BOUND_MS:.0f} ms).",
        good=slowest < _MEDIAN_BOUND_MS,
    )


def _percentiles(durations: list[float]) -> tuple[str, str]:
    if len(durations) < 2:
        return "", ""
    cut = statistics.quantiles(durations, n=20)
    return f"{cut[9] * 1000:.1f}", f"{cut[18] * 1000:.1f}"
