"""Wherever the process dies, or its line to PostgreSQL is cut in the middle of a COMMIT, everything
converges, and every effect happens once."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Sequence

import pytest
from grpc import aio

from tests.reliability import proving
from tests.reliability.crash import Case, NotReachedError, Run, Told, discover
from tests.reliability.relay import Relay
from tests.reliability.scenarios import BESIDES, DESTINATION, SEPARATE, Scenario
from tests.reliability.system import SURVIVOR, VICTIM, System

#: A scenario is run twice to know its places, so that not all are.
_SAMPLED_KILLS, _SAMPLED_CUTS, _SAMPLED_SCENARIOS = 6, 2, 3
#: What happens by itself does not pass the same places every time: so many may not be met.
_UNMET = 0.05
#: All books are read each time, so more often costs more than the cases.
_BETWEEN_CHECKS = 100
#: By the target, a full sweep has at least so many cases.
_LEAST_CASES = 120
#: In full each can be run alone: -k besides; and of it the scenarios with a word in their names:
#: SCENARIO=debt.
_IN_FULL: dict[str, Sequence[Scenario]] = {
    "destination": DESTINATION,
    "separate": SEPARATE,
    "besides": BESIDES,
}
_GROUPS = _IN_FULL if proving.FULL else {"sample": (*DESTINATION, *SEPARATE, *BESIDES)}


@pytest.mark.timeout(proving.by_profile(180, 7200))
@pytest.mark.parametrize("group", list(_GROUPS))
def test_killed_at_every_barrier(system: System, group: str) -> None:
    with (
        Relay(system.victim.environment["DATABASE_URL"]) as relay,
        system.quick_starts(victim_database=relay.url),
    ):
        asyncio.run(_sweep(system, relay, group, _GROUPS[group]))


def _sample(chance: random.Random, cases: Sequence[Case]) -> list[Case]:
    kills = [case for case in cases if not case.is_cut]
    cuts = [case for case in cases if case.is_cut]
    return chance.sample(kills, _SAMPLED_KILLS) + chance.sample(cuts, _SAMPLED_CUTS)


async def _sweep(system: System, relay: Relay, group: str, scenarios: Sequence[Scenario]) -> None:
    chance = random.Random(proving.SEED)
    wanted = os.environ.get("SCENARIO", "")
    scenarios = [scenario for scenario in scenarios if wanted in scenario.name]
    if not proving.FULL:
        scenarios = chance.sample(scenarios, _SAMPLED_SCENARIOS)
    async with system.worlds() as worlds:
        run = Run(system, worlds, await worlds[VICTIM].expert(), Told(), chance, relay)
        await system.end(SURVIVOR)  # Traced alone, so that every place is the victim's.
        cases, outcomes = await discover(run, scenarios)
        assert {case.scenario.name for case in cases} == {one.name for one in scenarios}
        assert len(cases) >= _LEAST_CASES or wanted or not proving.FULL
        proving.progress(f"crash sweep: {len(cases)} cases discovered, seed {proving.SEED}")
        chosen = cases if proving.FULL else _sample(chance, cases)
        # First all that the same replica must finish, alone; then those with another beside it.
        chosen.sort(key=lambda case: case.how == "other")
        seconds: list[float] = []
        failures: list[str] = []
        unmet: list[str] = []
        for number, case in enumerate(chosen, 1):
            if case.how == "other":
                await system.begin(SURVIVOR)
            began = time.monotonic()
            strike = run.cut if case.is_cut else run.killed
            try:
                seconds.append(await strike(case, outcomes[case.scenario.name]))
            except NotReachedError:
                unmet.append(str(case))
                proving.progress(f"{case}: the place was not reached")
            except (AssertionError, TimeoutError, aio.AioRpcError) as error:
                failures.append(f"{case}: {error!r}")
                proving.progress(failures[-1])
                await run.recover()
            proving.progress(
                f"crash {number}/{len(chosen)} {case}: {time.monotonic() - began:.1f} s, "
                f"{len(failures)} failed"
            )
            if number % _BETWEEN_CHECKS == 0:
                await run.check_everything()
        await run.check_everything()
        await system.begin(SURVIVOR)
    assert not failures, "\n".join(failures)
    assert len(unmet) <= max(1, _UNMET * len(chosen)), unmet
    proving.figure(
        "B",
        f"crash sweep, {group}: {len(chosen)} of {len(cases)} places x ways, of which "
        f"{sum(case.is_cut for case in chosen)} cut COMMITs, all converge ({len(unmet)} not met); "
        f"median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s",
    )
