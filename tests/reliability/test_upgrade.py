"""An upgrade under load: a release migrates and takes over from the former one, and goes back.

``make rehearse-upgrade FROM=<commit>`` upgrades that commit's code to this tree's. Without FROM,
this tree's code is upgraded to a next release with a migration and a field of its own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from dev.probes import answers, serves
from dev.settings import COMMANDS
from marketplace.payments.v1 import operations_pb2
from tests.reliability import proving, releases
from tests.reliability.callers import Load, calling
from tests.reliability.releases import commands_of, former_release, next_release
from tests.reliability.system import SURVIVOR, VICTIM, System, running_system
from tests.support.books import check_books
from tests.support.world import World, until

_FROM = os.environ.get("FROM", "")
#: How long the callers call in each phase, and of which kind each at least once.
_SECONDS = proving.by_profile(1.0, 10.0)
_CALLERS = 2
_CALLS = ("initiate", "capture", "refund", "read")
Commands = Mapping[str, Sequence[str]]


@pytest.mark.timeout(600)
async def test_an_upgrade_under_load_loses_no_call(tmp_path: Path) -> None:
    former: Commands = COMMANDS
    new: Commands = COMMANDS
    if _FROM:
        former_release(_FROM, tmp_path / "former")
        former = commands_of(tmp_path / "former")
    else:
        next_release(tmp_path / "next")
        new = commands_of(tmp_path / "next")
    proving.progress(f"upgrade: from {_FROM or 'this tree'} to {'this tree' if _FROM else 'next'}")
    with running_system(former) as system:
        async with system.worlds() as worlds:
            await _upgrade(system, worlds[SURVIVOR], former, new)


async def _upgrade(system: System, world: World, former: Commands, new: Commands) -> None:
    async with calling(system, world, _CALLERS) as load:
        await _phase(load, "the former release serves")
        await asyncio.to_thread(_migrate, system, new)
        await _phase(load, "the database is migrated, and the former release serves")
        await system.roll(VICTIM, new["service"])
        await _phase(load, "both releases serve")
        await system.roll(SURVIVOR, new["service"])
        await _phase(load, "the new release serves")
        await asyncio.to_thread(_migrate, system, former)  # As systemd and `kubectl apply` do.
        await system.roll(VICTIM, former["service"])
        await _phase(load, "one replica went back to the former release")
        await system.roll(VICTIM, new["service"])
        await asyncio.to_thread(_replace_gateway, system, new["gateway"])
        await _phase(load, "the new release serves, and its gateway")
    assert not load.failures, "\n".join(load.failures[:20])
    await world.settle_down()
    await _check(world)
    proving.figure(
        "U",
        f"upgrade: {load.calls.total()} calls ({dict(load.calls)}) while it was migrated and a "
        f"replica replaced four times, 0 failed, slowest {max(load.seconds):.2f} s",
    )
    if not _FROM:
        await _contract(system, world, former)


async def _phase(load: Load, what: str) -> None:
    """Lets the callers call for a while, in which each kind of call is made."""
    before = load.calls.copy()
    began = time.monotonic()

    async def called() -> bool:
        made = load.calls - before
        enough = all(made[name] for name in _CALLS) and time.monotonic() - began >= _SECONDS
        return enough or bool(load.failures)

    await until(called, f"calls of every kind while {what}", 120)
    proving.progress(f"upgrade: {what}; {(load.calls - before).total()} calls")
    assert not load.failures, "\n".join([what, *load.failures[:20]])


def _migrate(system: System, new: Commands) -> None:
    assert system.stack.postgres is not None
    done = subprocess.run(
        new["migrate"],
        env={**system.survivor.environment, **system.stack.postgres.migrating},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _replace_gateway(system: System, command: Sequence[str]) -> None:
    """Stripe delivers again what comes meanwhile."""
    gateway = system.stack.gateway
    assert gateway is not None
    gateway.ask_to_stop()
    assert gateway.wait(20), "the gateway does not stop"
    gateway.command = list(command)
    gateway.start()
    deadline = time.monotonic() + 60
    while not answers(system.stack.settings.gateway_port, "/health"):
        assert time.monotonic() < deadline, "the gateway does not come up"
        time.sleep(0.1)


async def _check(world: World) -> None:
    await check_books(world)
    report = await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())
    assert not [one.name for one in report.invariants if one.violations]
    assert not await world.discrepancies()


async def _contract(system: System, world: World, former: Commands) -> None:
    """Both wrote; now the former release is excluded, as a later migration does."""
    wrote = world.sql(
        "SELECT DISTINCT body::jsonb -> 'digests' ->> 'writer' FROM events ORDER BY 1"
    )
    assert wrote == [("1",), ("2",)]
    filled = dict(world.sql("SELECT next_note, count(*) FROM payments GROUP BY 1"))
    assert filled.keys() == {"", "of the next release"}, filled
    world.sql("UPDATE releases SET minimum_writer = 2")
    await system.end(VICTIM)
    system.victim.command = list(former["service"])
    system.victim.start()

    async def refused() -> bool:
        return any("release_too_old" in line for line in system.victim.tail)

    await until(refused, "the former release says that it is too old", 90)
    assert not serves(system.address(VICTIM))
    await world.captured()
    await _check(world)


def test_an_upgrade_from_another_schema_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No migration leads from a first schema that has been edited since."""
    repository = tmp_path / "repository"
    schema = repository / "payment_service" / "migrations" / "0001.py"
    schema.parent.mkdir(parents=True)
    schema.write_text("former")
    git = (shutil.which("git") or "", "-c", "user.name=x", "-c", "user.email=x@example.com")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "former")):
        subprocess.run([*git, *command], cwd=repository, check=True)
    monkeypatch.setattr(releases, "ROOT", repository)
    schema.write_text("edited")
    with pytest.raises(releases.Unsuitable, match=r"0001\.py: changed since HEAD"):
        releases.former_release("HEAD", tmp_path / "former")
    with pytest.raises(releases.Unsuitable, match="is no commit here"):
        releases.former_release("1234567", tmp_path / "other")
