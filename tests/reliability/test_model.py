"""The whole service against a model, step by step, in any order of calls, events and faults.

After every step nothing may have happened at Stripe that nobody asked for; whenever everything was
heard and healed, every answer, every row and every line of the books must be what the model says.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.errors import HypothesisException
from hypothesis.stateful import get_state_machine_test

from dev.postgres import EmbeddedPostgres
from tests.reliability import proving
from tests.reliability.backups import Backups
from tests.reliability.lab import Lab
from tests.reliability.model.machine import Machine
from tests.reliability.model.trouble import FAULTS, SEEN

_EXAMPLES = proving.by_profile(6, 210)
#: Each from a seed of its own, in a database and a simulator of its own: they can run side by side.
_HALVES = proving.by_profile([0], [0, 1])
_STEPS = proving.by_profile(40, 60)


@pytest.fixture
def lab(database_url: str, postgres: EmbeddedPostgres) -> Iterator[Lab]:
    name = database_url.rpartition("/")[2]
    opened = Lab(database_url, Backups(postgres.admin_url(name)))
    yield opened
    opened.close()


def _run(machine: type[Machine], how: settings) -> None:
    """Runs the machine. Its first failure is what counts.

    Hypothesis repeats what failed, and time is real: the repetition may pass or go another way, and
    then it would only be told that the model is flaky.
    """
    test: Any = get_state_machine_test(machine, settings=how)
    given = test.hypothesis.inner_test
    failures: list[Exception] = []

    def keeping(*arguments: Any, **named: Any) -> None:
        try:
            given(*arguments, **named)
        except Exception as failure:
            failures.append(failure)
            raise

    test.hypothesis.inner_test = keeping
    try:
        test()
    except HypothesisException:
        if not failures:
            raise
        raise failures[0] from None


@pytest.mark.timeout(proving.by_profile(240, 3600))
@pytest.mark.parametrize("half", _HALVES)
def test_the_service_is_what_the_model_says(lab: Lab, half: int) -> None:
    examples = itertools.count(1)

    @seed(proving.SEED + half)
    class Proved(Machine):
        def __init__(self) -> None:
            super().__init__()
            self.lab = lab
            number = next(examples)
            if number % 20 == 0:
                proving.progress(f"model {half}: {number} examples, {lab.steps} steps")

    _run(
        Proved,
        settings(
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
        assert all(lab.seen[what] >= 5 for what in SEEN), lab.seen
    seen = [f"{what} {lab.seen[what]} times" for what in SEEN]
    proving.figure(
        "C",
        f"model, seed {proving.SEED + half}: {lab.steps} steps, {next(examples) - 1} examples, "
        f"{fired} faults and {lab.bomb.went_off} crashes struck "
        f"({len(FAULTS)} kinds, each {least} times or more); {', '.join(seen)}",
    )
