"""Whatever place the process dies at, everything converges, and every effect happens once."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence

import pytest

from tests.reliability import proving
from tests.reliability.crash import BESIDES, DESTINATION, SEPARATE, Run, Scenario, Told, discover
from tests.reliability.system import SURVIVOR, VICTIM, System

#: Of each group; a scenario is run twice to know its places, so that not all are.
_SAMPLE, _SAMPLED_SCENARIOS = 4, 2
#: All books are read each time, so more often costs more than the cases.
_BETWEEN_CHECKS = 100
#: By the target, a full sweep has at least so many cases.
_LEAST_CASES = 120
#: Each can be run alone: -k besides.
_GROUPS = {"destination": DESTINATION, "separate": SEPARATE, "besides": BESIDES}


@pytest.mark.timeout(proving.by_profile(180, 3600))
@pytest.mark.parametrize("group", list(_GROUPS))
def test_killed_at_every_barrier(system: System, group: str) -> None:
    with system.quick_starts():
        asyncio.run(_sweep(system, group, _GROUPS[group]))


async def _sweep(system: System, group: str, scenarios: Sequence[Scenario]) -> None:
    chance = random.Random(proving.SEED)
    if not proving.FULL:
        scenarios = chance.sample(scenarios, _SAMPLED_SCENARIOS)
    async with system.worlds() as worlds:
        run = Run(system, worlds, await worlds[VICTIM].expert(), Told(), chance)
        await system.end(SURVIVOR)  # Traced alone, so that every place is the victim's.
        cases, outcomes = await discover(run, scenarios)
        assert {case.scenario.name for case in cases} == {one.name for one in scenarios}
        assert len(cases) >= _LEAST_CASES or not proving.FULL
        proving.progress(f"crash sweep: {len(cases)} cases discovered, seed {proving.SEED}")
        chosen = cases if proving.FULL else chance.sample(cases, _SAMPLE)
        # First all that the same replica must finish, alone; then those with another beside it.
        chosen.sort(key=lambda case: case.by != "same")
        seconds: list[float] = []
        failures: list[str] = []
        for number, case in enumerate(chosen, 1):
            if case.by == "other":
                await system.begin(SURVIVOR)
            began = time.monotonic()
            try:
                seconds.append(await run.killed(case, outcomes[case.scenario.name]))
            except (AssertionError, TimeoutError) as error:
                failures.append(f"{case}: {error!r}")
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
    proving.figure(
        "B",
        f"crash sweep, {group}: {len(chosen)} of {len(cases)} places x ways, all converge; "
        f"median {statistics.median(seconds):.1f} s, longest {max(seconds):.1f} s",
    )
