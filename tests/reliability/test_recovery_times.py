"""How long callers are held up when something dies: a benchmark with generous bounds.

Eight callers ask in the moment of the blow, half of them for a read and half for a new payment,
through a channel as the client package opens it; whoever is told UNAVAILABLE asks again with the
same key. The figure is how long the slowest of each half waited for its answer.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import grpc
import pytest

from marketplace.payments.channel import connect
from marketplace.payments.v1 import payments_pb2, payments_pb2_grpc
from tests.reliability import proving
from tests.reliability.system import SURVIVOR, VICTIM, System
from tests.support.world import World

_REPETITIONS = proving.by_profile(1, 20)
_POSTMASTER_REPETITIONS = proving.by_profile(1, 8)
#: On a machine that is too busy for all repetitions, a kind of blow ends after so long.
_SECONDS_EACH = proving.by_profile(60.0, 150.0)
_CALLERS = 8
_BOUND = 30.0
_ASK_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED)


@dataclass(frozen=True)
class Blow:
    """What dies, what its supervisor does at once, and what must run before the next blow."""

    name: str
    addresses: list[str]
    kill: Callable[[], None]
    revive: Callable[[], object]
    repair: Callable[[], Awaitable[None]]
    times: int = _REPETITIONS


@dataclass
class Victims:
    """Callers over a channel, and what they have waited."""

    system: System
    world: World
    expert: str
    chance: random.Random
    known: str = ""
    waited: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    async def suffer(self, blow: Blow) -> None:
        began = time.monotonic()
        done = 0
        while done < blow.times and (not done or time.monotonic() - began < _SECONDS_EACH):
            await self._strike(blow)
            await blow.repair()
            done += 1
            proving.progress(f"recovery: {blow.name}, {done} of {blow.times}")

    async def _strike(self, blow: Blow) -> None:
        async with connect(*blow.addresses) as channel:
            payments = payments_pb2_grpc.PaymentServiceStub(channel)
            for reads in (True, False):  # The channel is in use already.
                await self._answer(payments, reads=reads)
            began = time.monotonic()
            blow.kill()
            reviving = asyncio.create_task(asyncio.to_thread(blow.revive))
            waits = await asyncio.gather(
                *(self._caller(payments, began, number % 2 == 0) for number in range(_CALLERS))
            )
            await reviving
        self.waited[blow.name, "reads"].append(max(waits[0::2]))
        self.waited[blow.name, "new payments"].append(max(waits[1::2]))

    async def _caller(
        self, payments: payments_pb2_grpc.PaymentServiceAsyncStub, began: float, reads: bool
    ) -> float:
        await self._answer(payments, reads=reads)
        return time.monotonic() - began

    async def _answer(
        self, payments: payments_pb2_grpc.PaymentServiceAsyncStub, *, reads: bool
    ) -> None:
        """Ask until there is an answer, as the contract tells callers to."""
        deadline = time.monotonic() + _BOUND
        initiation = self.world.initiation(self.expert, self.chance.randrange(1_000, 100_000))
        while True:
            left = deadline - time.monotonic()
            assert left > 0, f"no answer within {_BOUND:.0f} s"
            try:
                if reads:
                    request = payments_pb2.GetPaymentRequest(payment_id=self.known)
                    await payments.GetPayment(request, timeout=left)
                else:
                    await payments.InitiatePayment(initiation, timeout=left)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() not in _ASK_AGAIN:
                    raise
                await asyncio.sleep(0.02)


@pytest.mark.timeout(proving.by_profile(240, 1800))
def test_recovery_after_every_kind_of_failure_is_fast(system: System) -> None:
    async def run() -> None:
        async with system.worlds() as worlds:
            world = worlds[SURVIVOR]
            chance = random.Random(proving.SEED)
            victims = Victims(system, world, await world.expert(), chance)
            initiated = await world.initiate(victims.expert)
            victims.known = initiated.payment.payment_id
            for blow in _blows_to_two_replicas(victims):
                await victims.suffer(blow)
            await system.end(SURVIVOR)
            await victims.suffer(_only_replica(system))
            await system.begin(SURVIVOR)
        for (name, what), waits in victims.waited.items():
            proving.figure("J", _row(name, what, waits))

    asyncio.run(run())


def _nothing() -> None:
    return


def _blows_to_two_replicas(victims: Victims) -> Iterator[Blow]:
    system, postgres = victims.system, victims.system.stack.postgres
    assert postgres is not None
    both = list(system.stack.settings.grpc_addresses)

    def kill_backend() -> None:
        """PostgreSQL then ends all sessions, and recovers as from a crash."""
        backends = victims.world.sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'payment_service'"
        )
        os.kill(int(victims.chance.choice(sorted(backends))[0]), signal.SIGKILL)

    async def both_serve() -> None:
        for replica in (VICTIM, SURVIVOR):
            await system.begin(replica)

    yield Blow("nothing, for comparison", both, _nothing, _nothing, both_serve)
    yield Blow("PostgreSQL backend (wanted 1 s)", both, kill_backend, _nothing, both_serve)
    yield Blow(
        "PostgreSQL postmaster (wanted 5 s)",
        both,
        postgres.kill,
        postgres.start,
        both_serve,
        _POSTMASTER_REPETITIONS,
    )
    yield Blow(
        "replica, one of two (wanted 0.25 s)", both, system.victim.kill, _nothing, both_serve
    )


def _only_replica(system: System) -> Blow:
    """Its supervisor starts it again at once."""

    async def serves() -> None:
        await system.begin(VICTIM)

    return Blow(
        "replica, the only one (wanted 1.5 s)",
        [system.address(VICTIM)],
        system.victim.kill,
        system.victim.start,
        serves,
    )


def _row(name: str, what: str, waits: list[float]) -> str:
    ordered = sorted(waits)

    def at(part: float) -> float:
        return ordered[min(int(len(ordered) * part), len(ordered) - 1)]

    return (
        f"{name:37} {what:12} p50 {at(0.5):5.2f} s   p99 {at(0.99):5.2f} s   "
        f"max {ordered[-1]:5.2f} s   of {len(ordered)}"
    )
