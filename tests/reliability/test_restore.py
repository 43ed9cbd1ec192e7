"""A backup that was taken under load is restored, and every caller asks again: one effect each.

``make rehearse-recovery`` shows the second of the two ways: recovery to a point in time.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest

from dev.postgres import owner_url
from dev.programs import program
from marketplace.payments.v1 import payments_pb2
from tests.reliability import proving
from tests.reliability.archive import Archive
from tests.reliability.system import System, running_system
from tests.support.books import check_books
from tests.support.requests import capture_request, refund_request
from tests.support.steps.dashboard import days_pass, keep_at_stripe
from tests.support.world import IN_ESCROW, World, until

_CALLERS = proving.by_profile(4, 8)
#: How many payments each caller has begun when the backup is taken, and when the load ends.
_BEFORE = proving.by_profile(1, 20)
_AFTER = proving.by_profile(3, 60)
_MODES = (payments_pb2.ESCROW_MODE_CARD_HOLD, payments_pb2.ESCROW_MODE_PLATFORM_HOLD)


@dataclass
class Load:
    """Callers that keep every request that was answered with OK."""

    world: World
    chance: random.Random
    calls: list[tuple[str, Any]] = field(default_factory=list)
    begun: int = 0

    async def life(self, expert: str) -> None:
        """One payment after the other, ended in one of the ways that there are."""
        while self.begun < _CALLERS * _AFTER:
            self.begun += 1
            mode, amount = self.chance.choice(_MODES), self.chance.randrange(50, 900) * 100
            initiation = self.world.initiation(expert, amount, escrow_mode=mode)
            answer = payments_pb2.InitiatePaymentResponse.FromString(
                await self._call("InitiatePayment", initiation)
            )
            payment_id = answer.payment.payment_id
            if self.chance.random() < 0.8:
                await self.world.confirm(answer)
                await self.world.in_state(payment_id, IN_ESCROW)
                await self._end(payment_id, amount, mode)

    async def _end(self, payment_id: str, amount: int, mode: int) -> None:
        way = self.chance.randrange(4)
        if way == 0:
            await self._call("RefundPayment", refund_request(payment_id))
            return
        part = amount // 2 if mode == payments_pb2.ESCROW_MODE_PLATFORM_HOLD else 0
        await self._call("CapturePayment", capture_request(payment_id, part, notes="half"))
        if way > 1:
            await self._call("RefundPayment", refund_request(payment_id, amount // 4))
        if way > 2 and part:
            await self._call("RefundPayment", refund_request(payment_id))

    async def _call(self, method: str, request: Any) -> bytes:
        reply = await self.world.until_answered(method, request)
        assert reply.code == "OK", (method, reply.refused)
        self.calls.append((method, request))
        return reply.body


Between = Callable[[], Awaitable[None]]


class Backup(Protocol):
    """A way to have the database of a former moment again."""

    async def take(self, between: Between) -> datetime:
        """Takes the backup, calls ``between``, and returns the moment that is restored later."""

    def restore(self) -> None:
        """Puts the database of that moment in the place of the present one."""


class Dump:
    """pg_dump and psql. What happens after the dump has begun is not in it."""

    def __init__(self, system: System, file: Path) -> None:
        self._system, self._file = system, file

    async def take(self, between: Between) -> datetime:
        since = datetime.now(UTC)
        await asyncio.to_thread(_dump, self._system, self._file)
        return since

    def restore(self) -> None:
        _restore(self._system, self._file)


class PointInTime:
    """A base backup and the archived log, which lead to any later moment."""

    def __init__(self, archive: Archive, world: World) -> None:
        self._archive, self._world = archive, world
        self._moment = datetime.now(UTC)
        self._then: set[str] = set()

    async def take(self, between: Between) -> datetime:
        await asyncio.to_thread(self._archive.take_base)
        proving.progress(f"base backup with at most {len(self._payments())} payments")
        await between()
        self._moment = await asyncio.to_thread(self._archive.moment)
        self._then = self._payments()
        return self._moment

    def restore(self) -> None:
        self._archive.complete()
        self._archive.restore(self._moment)
        restored = self._payments()
        proving.progress(f"restored to {self._moment}, with {len(restored)} payments")
        # Those of the calls that were under way in that moment may be missing or not.
        assert len(restored ^ self._then) <= _CALLERS

    def _payments(self) -> set[str]:
        return {payment_id for (payment_id,) in self._world.sql("SELECT payment_id FROM payments")}


@pytest.mark.timeout(proving.by_profile(600, 3600))
async def test_a_backup_taken_under_load_repeats_nothing(tmp_path: Path) -> None:
    with running_system() as system:
        async with system.worlds() as worlds:
            await _prove(system, worlds, Dump(system, tmp_path / "backup.sql"))


@pytest.mark.timeout(proving.by_profile(600, 3600))
async def test_recovery_to_a_point_in_time_repeats_nothing() -> None:
    with running_system(durable=True) as system:
        archive = Archive(system)
        archive.switch_on()
        for replica in range(len(system.stack.services)):
            system.stack.wait_until_serving(replica)
        async with system.worlds() as worlds:
            await _prove(system, worlds, PointInTime(archive, worlds[0]))


async def _prove(system: System, worlds: list[World], backup: Backup) -> None:
    world = worlds[0]
    load = Load(world, random.Random(proving.SEED))
    await keep_at_stripe(world)
    experts = [await world.expert() for _ in range(2)]
    owing = await world.escrowed(await world.expert(), escrow_mode=_MODES[1])
    lives = [asyncio.create_task(load.life(load.chance.choice(experts))) for _ in range(_CALLERS)]

    async def warm() -> bool:
        return load.begun >= _CALLERS * _BEFORE or any(life.done() for life in lives)

    await until(warm, "enough payments before the backup", 300)
    proving.progress(f"{load.begun} payments; the backup is taken while calls continue")
    in_the_log = world.initiation(experts[0], 6_600)

    async def between() -> None:
        await load._call("InitiatePayment", in_the_log)

    since = await backup.take(between)
    late = asyncio.create_task(world.expert("late-expert"))
    await asyncio.gather(late, *lives)
    late_payment = world.initiation("late-expert", 7_700)
    await load._call("InitiatePayment", late_payment)
    await load._call("CapturePayment", capture_request(owing.payment_id))
    await load._call("RefundPayment", refund_request(owing.payment_id))
    await world.settle_down()
    # What refunds could not take back from the experts is collected, and that is lost too.
    assert world.sql(_DEBTS)
    await days_pass(world)
    await _collected(world)
    assert await world.stripe.effects("reversed")
    effects = _counted(await world.stripe.effects())
    payments = world.sql(_SUMMARY)

    for replica in range(len(worlds)):
        await system.end(replica)
    world.close()
    proving.progress(f"{len(payments)} payments; the database is lost, and the backup restored")
    await asyncio.to_thread(backup.restore)
    assert len(world.sql(_SUMMARY)) < len(payments), "the backup has everything: it proves nothing"
    said = await asyncio.to_thread(_recover, system, since)
    proving.progress(said)
    proving.progress("the callers repeat every call")
    assert "recovered expert late-expert" in said
    again = await asyncio.to_thread(_recover, system, since)
    assert "recovered 0 experts and 0 payments, changed 0 of" in again, again
    for replica in range(len(worlds)):
        await system.begin(replica)

    await world.settle_down()  # What Stripe refused is asked for again, and refused again.
    await _collected(world)
    assert world.sql(_SUMMARY) == payments
    for method, request in load.calls:
        reply = await worlds[1].until_answered(method, request)
        assert reply.code == "OK", (method, request, reply.refused)
    await world.settle_down()
    assert _counted(await world.stripe.effects()) == effects
    assert world.sql(_SUMMARY) == payments
    assert not await world.discrepancies()
    await check_books(world)
    lost = said.count("recovered payment")
    proving.figure(
        "R", f"restore: {len(load.calls)} calls repeated, {lost} payments recovered, none twice"
    )


#: What the callers see of each payment; operations and versions are recorded anew.
_SUMMARY = (
    "SELECT payment_id, state, held, charged, captured, refunded_after_capture, "
    "refunded_from_escrow, net_commission, commission, escrow_mode, charge_model, on_deadline, "
    "destination_account_id, payment_intent_id FROM payments ORDER BY payment_id"
)


#: What each expert owes, if it is anything.
_DEBTS = (
    "SELECT account, currency, sum(minor_units) FROM postings "
    "WHERE starts_with(account, 'expert_debt:') "
    "GROUP BY account, currency HAVING sum(minor_units) <> 0"
)


async def _collected(world: World) -> None:
    """Waits until nothing is owed any more, with rounds of the collection that come at once."""

    async def probe() -> bool:
        world.sql("UPDATE debt_checks SET next_time = now(), pause = interval '0'")
        return not world.sql(_DEBTS)

    await until(probe, "no debt left", 120)
    await world.settle_down()


def _counted(effects: list[Any]) -> Counter[str]:
    return Counter(effect["kind"] for effect in effects)


def _dump(system: System, backup: Path) -> None:
    with backup.open("wb") as out:
        subprocess.run(
            [str(program("pg_dump")), owner_url(system.stack.database_url)],
            stdout=out,
            check=True,
            timeout=60,
        )


def _restore(system: System, backup: Path) -> None:
    """Puts the backup in the place of the database."""
    server, url = system.stack.postgres, system.stack.database_url
    assert server is not None
    database = url.rpartition("/")[2]
    server.drop_database(database)
    server.create_database(database)
    subprocess.run(
        [str(program("psql")), owner_url(url), "-q", "-v", "ON_ERROR_STOP=1", "-f", str(backup)],
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=120,
    )


def _recover(system: System, since: datetime) -> str:
    """Runs the command with a replica's environment, as the runbook says."""
    early = since - timedelta(minutes=1)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "payment_service", "recover-after-restore"),
            *("--since", early.strftime("%Y-%m-%dT%H:%M:%SZ")),
        ],
        env=dict(system.survivor.environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
