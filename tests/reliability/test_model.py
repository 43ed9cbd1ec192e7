"""The whole service against a model, step by step, in any order of calls, events and faults.

After every step nothing may have happened at Stripe that nobody asked for; whenever everything was
heard and healed, every answer, every row and every line of the books must be what the model says.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.reliability import proving
from tests.reliability.lab import Lab
from tests.reliability.model.convergence import Convergence
from tests.reliability.model.trouble import FAULTS

_EXAMPLES = proving.by_profile(6, 210)
#: Each from a seed of its own, in a database and a simulator of its own: they can run side by side.
_HALVES = proving.by_profile([0], [0, 1])
_STEPS = proving.by_profile(40, 60)


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    opened = Lab(database_url)
    yield opened
    opened.close()


@pytest.mark.timeout(proving.by_profile(240, 3600))
@pytest.mark.parametrize("half", _HALVES)
def test_the_service_is_what_the_model_says(lab: Lab, half: int) -> None:
    examples = itertools.count(1)

    @seed(proving.SEED + half)
    class Proved(Convergence):
        def __init__(self) -> None:
            super().__init__()
            self.lab = lab
            number = next(examples)
            if number % 20 == 0:
                proving.progress(f"model {half}: {number} examples, {lab.steps} steps")

    run_state_machine_as_test(
        Proved,
        settings=settings(
            max_examples=_EXAMPLES,
            stateful_step_count=_STEPS,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
    fired = sum(lab.faults_fired.values())
    least = min(lab.faults_fired.get(name, 0) for name in FAULTS)
    assert fired
    assert lab.bomb.went_off
    if proving.FULL:
        assert least >= 5, f"some fault hardly ever struck: {lab.faults_fired}"
    proving.figure(
        "C",
        f"model, seed {proving.SEED + half}: {lab.steps} steps, {next(examples) - 1} examples, "
        f"{fired} faults and {lab.bomb.went_off} crashes struck "
        f"({len(FAULTS)} kinds, each {least} times or more)",
    )
