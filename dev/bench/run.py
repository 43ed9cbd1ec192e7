"""One run: starts the stack and the bare handlers, and measures them side by side."""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc

from dev.bench.calls import Answers, Call, bare_initiate, bare_read, closed_loop, open_loop
from dev.bench.costs import Cost, Meter, counted, cpu_seconds
from dev.bench.stand import SERVICE, Say, Stand, started
from marketplace.payments.v1 import payments_pb2, payments_pb2_grpc

_IDLE_SECONDS: Final = 4.0
#: Payments that are not measured: a dozen connections are opened, each prepares its statements, and
#: PostgreSQL plans each of them five times before it keeps a plan. A service does so once a day.
_WARM_UP: Final = 240
_READS: Final = 1200
#: Its cost divides all others. It falls with the number of calls, so the number is always the same.
_BARE_INITIATIONS: Final = 80


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    #: Payments of the comparison, each initiated, confirmed, captured and refunded.
    payments: int
    at_once: int
    rounds: int
    counted: int
    starts: int
    in_flight: Sequence[int]
    cell_seconds: float
    total_seconds: float
    #: Whether the cheapest round counts in place of the mean: other users of the machine only add.
    cheapest: bool = False


FULL: Final = Size(
    payments=240,
    at_once=16,
    rounds=3,
    counted=12,
    starts=3,
    in_flight=(1, 16, 128, 512),
    cell_seconds=3.0,
    total_seconds=540.0,
)
QUICK: Final = Size(
    payments=90,
    at_once=16,
    rounds=3,
    counted=0,
    starts=0,
    in_flight=(),
    cell_seconds=0.0,
    total_seconds=300.0,
    cheapest=True,
)


class Bench:
    """Measures what stands there."""

    def __init__(self, stand: Stand) -> None:
        self.stack, self.backends, self.market = stand.stack, stand.backends, stand.market
        self.stand, self._bare = stand, stand.bare
        self.service, self.bare_meter = stand.service_meter, stand.bare_meter

    async def costs(self, size: Size, say: Say) -> dict[str, Cost]:
        """Returns the cost of each call, webhooks of the call included, and of the bare ones."""
        rounds: dict[str, list[Cost]] = {}
        count = size.payments // size.rounds
        say("measuring the service at rest, and warming up")
        await self.service.rest(_IDLE_SECONDS)
        await self._round(_WARM_UP, size.at_once)
        for turn in range(size.rounds):
            say(f"comparing costs, round {turn + 1} of {size.rounds}")
            for name, cost in (await self._round(count, size.at_once)).items():
                rounds.setdefault(name, []).append(cost)
        chosen = min if size.cheapest else statistics.fmean
        return {
            name: Cost(
                chosen([cost.process for cost in costs]),
                chosen([cost.postgres for cost in costs]),
            )
            for name, costs in rounds.items()
        }

    async def _round(self, count: int, at_once: int) -> dict[str, Cost]:
        costs: dict[str, Cost] = {}
        market = self.market
        market.made.clear()

        async def work(calls: Sequence[Call], state: str = "") -> None:
            answers = await closed_loop(calls, at_once)
            if answers.refused:
                raise RuntimeError(f"refused: {dict(answers.refused)}")
            ids = [payment.payment_id for payment in market.made] if state else []
            await market.rest(self.backends, state, ids)

        async def bare(calls: Sequence[Call]) -> None:
            answers = await closed_loop(calls, at_once)
            if answers.refused:
                raise RuntimeError(f"refused: {dict(answers.refused)}")

        creations = [bare_initiate(self._bare, market)] * _BARE_INITIATIONS
        costs["bare initiation"] = await self.bare_meter.cost(
            partial(bare, creations), _BARE_INITIATIONS
        )
        initiations = [market.initiate] * count
        costs["InitiatePayment"] = await self.service.cost(partial(work, initiations), count)
        some = [payment.payment_id for payment in market.made]
        reads = [some[number % count] for number in range(_READS)]
        bare_reads = [bare_read(self._bare, one) for one in reads]
        own_reads = [market.read(one) for one in reads]
        for meter, calls, name in (
            (self.bare_meter, bare_reads, "bare read"),
            (self.service, own_reads, "GetPayment"),
        ):
            await closed_loop(calls[:100], at_once)  # Both have their connections open now.
            costs[name] = await meter.cost(partial(bare, calls), _READS)
        for name, act, state in (
            ("to IN_ESCROW", market.confirm, "IN_ESCROW"),
            ("CapturePayment", market.capture, "CAPTURED"),
            ("RefundPayment", market.refund, "REFUNDED"),
        ):
            calls = [act(payment) for payment in market.made]
            costs[name] = await self.service.cost(partial(work, calls, state), count)
        return costs

    async def statements(self, count: int, say: Say) -> dict[str, dict[str, float]]:
        """Returns what each call sends to PostgreSQL, its webhooks included."""
        say("counting statements")
        assert self.stack.postgres is not None
        log, found = self.stack.postgres.log, {}
        market = self.market
        market.made.clear()
        for name, state in (
            ("InitiatePayment", ""),
            ("to IN_ESCROW", "IN_ESCROW"),
            ("CapturePayment", "CAPTURED"),
            ("RefundPayment", "REFUNDED"),
        ):
            acts = {
                "to IN_ESCROW": market.confirm,
                "CapturePayment": market.capture,
                "RefundPayment": market.refund,
            }
            act = acts.get(name)
            calls = [act(p) for p in market.made] if act else [market.initiate] * count
            offset = log.stat().st_size
            with self.backends.logged():
                await closed_loop(calls, 1)
                ids = [p.payment_id for p in market.made] if state else []
                await market.rest(self.backends, state, ids)
                await asyncio.sleep(1.5)  # What a job still does for these payments.
            marks = [p.payment_id for p in market.made] + [p.payment_intent_id for p in market.made]
            in_all = counted(log, offset, SERVICE, marks)
            found[name] = {
                "statements": round(in_all.statements / count, 1),
                "round_trips": round(in_all.round_trips / count, 1),
                "transactions": round(in_all.transactions / count, 1),
            }
        return found

    async def first_answers(self, count: int, say: Say) -> dict[str, float]:
        """Starts the service anew, and returns the best time to its first answer, and its cost."""
        say("starting the service anew")
        seconds, used = [], []
        service = self.stack.services[0]
        request = payments_pb2.GetPaymentRequest(payment_id="pay_none")
        for _ in range(count):
            await asyncio.to_thread(service.kill)
            began = time.perf_counter()
            await asyncio.to_thread(service.start)
            while True:
                async with grpc.aio.insecure_channel(
                    self.stack.grpc_target,
                    options=[("grpc.use_local_subchannel_pool", 1)],
                ) as channel:
                    stub: payments_pb2_grpc.PaymentServiceAsyncStub = (
                        payments_pb2_grpc.PaymentServiceStub(channel)
                    )
                    try:
                        await stub.GetPayment(request, timeout=1)
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.UNAVAILABLE:
                            break
                await asyncio.sleep(0.01)
            seconds.append(time.perf_counter() - began)
            used.append(cpu_seconds(service.pid))
            await asyncio.to_thread(self.stack.wait_until_serving)
        return {"seconds": round(min(seconds), 2), "cpu_seconds": round(min(used), 2)}

    async def cells(self, size: Size, latency_ms: int, say: Say) -> list[dict[str, Any]]:
        """Returns throughput and latencies under load, for each number of calls in flight."""
        found = []
        market = self.market
        for at_once in size.in_flight:
            say(f"Stripe takes {latency_ms} ms, {at_once} in flight")
            market.made.clear()
            await self.stand.slow_down(latency_ms)
            plenty = 20_000
            creations = [bare_initiate(self._bare, market)] * plenty
            found.append(
                await self._cell("bare initiation", creations, at_once, size, self.bare_meter)
            )
            made = [market.initiate] * plenty
            found.append(await self._cell("InitiatePayment", made, at_once, size, self.service))
            await self.stand.slow_down(0)
            await market.rest(self.backends)
            chosen = market.made[: max(16, min(at_once * 2, 192))]
            market.made[:] = chosen
            await closed_loop([market.confirm(one) for one in chosen], 8)
            await market.rest(self.backends, "IN_ESCROW", [one.payment_id for one in chosen])
            await self.stand.slow_down(latency_ms)
            captures = [market.capture(one) for one in chosen]
            found.append(await self._cell("CapturePayment", captures, at_once, size, self.service))
            await self.stand.slow_down(0)
            await market.rest(self.backends)
            if not latency_ms:
                reads = [market.read(chosen[0].payment_id)] * plenty
                found.append(await self._cell("GetPayment", reads, at_once, size, self.service))
        return [{"stripe_ms": latency_ms, **cell} for cell in found]

    async def _cell(
        self, name: str, calls: Sequence[Call], at_once: int, size: Size, meter: Meter
    ) -> dict[str, Any]:
        """First as many as there is room for; then half of that at fixed times, for latencies."""
        half = len(calls) // 2
        answers = Answers()

        async def load() -> None:
            nonlocal answers
            answers = await closed_loop(calls[:half], at_once, size.cell_seconds)

        cost = await meter.cost(load, 1)
        rate = max(answers.per_second / 2, 0.5)
        timed = await open_loop(calls[half:][: max(int(rate * size.cell_seconds), 4)], rate)
        return {
            "call": name,
            "in_flight": at_once,
            "per_second": round(answers.per_second, 1),
            "cpu_ms": round(cost.process / max(len(answers.seconds), 1), 2),
            "offered_per_second": round(rate, 1),
            "p50_ms": round(timed.milliseconds(50), 1),
            "p95_ms": round(timed.milliseconds(95), 1),
            "p99_ms": round(timed.milliseconds(99), 1),
            "refused": dict(answers.refused + timed.refused),
        }


async def measure(size: Size, say: Say) -> dict[str, Any]:
    """Measures everything, within the time that the size allows."""
    async with asyncio.timeout(size.total_seconds), started(say) as stand:
        bench = Bench(stand)
        await bench.market.prepare()
        costs = await bench.costs(size, say)
        result: dict[str, Any] = {
            "multiples": multiples(costs),
            "milliseconds": {
                name: {"process": round(cost.process, 3), "postgres": round(cost.postgres, 3)}
                for name, cost in costs.items()
            },
            "at_rest": {
                "process_ms_per_second": round(bench.service.idle.process, 2),
                "postgres_ms_per_second": round(bench.service.idle.postgres, 2),
            },
        }
        if size.counted:
            result["statements"] = await bench.statements(size.counted, say)
        if size.in_flight:
            result["load"] = [
                *await bench.cells(size, 0, say),
                *await bench.cells(size, 300, say),
            ]
        if size.starts:
            result["start"] = await bench.first_answers(size.starts, say)
        return result


def multiples(costs: Mapping[str, Cost]) -> dict[str, float]:
    """Returns the costs as multiples of the bare handlers'."""
    unit, read = costs["bare initiation"], costs["bare read"]
    stages = ("InitiatePayment", "to IN_ESCROW", "CapturePayment")
    calls = (*stages, "RefundPayment")
    return {
        "GetPayment": round(costs["GetPayment"].process / read.process, 2),
        **{name: round(costs[name].process / unit.process, 2) for name in calls},
        # One bare initiation for each of the three.
        "PostgreSQL": round(
            sum(costs[name].postgres for name in stages) / unit.postgres / len(stages), 2
        ),
    }
