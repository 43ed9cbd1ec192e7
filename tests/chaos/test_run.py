"""The chaos in short: a run with a fixed seed holds, and the mutants of a short list are caught."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from chaos.mutants import MUTANTS, SHORT, apply, copy_tree, trial
from chaos.plan import KILLS, REPLICAS, STOP_REPLICA, plan_of
from dev.settings import ROOT


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_twelve_seconds_of_chaos_hold() -> None:
    """In a process of its own: it forks, which gRPC's threads in ours would not bear."""
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "run", "--seed", "1", "--seconds", "12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    assert re.search(r"^seed 1, 12 s", done.stdout, re.MULTILINE)


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", SHORT)
def test_a_mutant_is_caught(name: str) -> None:
    [mutant] = [mutant for mutant in MUTANTS if mutant.name == name]
    verdict = trial(mutant)
    assert verdict.ran, verdict.output[-4000:]
    assert verdict.caught_by


def test_every_mutant_still_finds_its_text() -> None:
    """Code moves on; a mutant that changes nothing would be "not caught" for no fault of ours."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 14
    for mutant in MUTANTS:
        for edit in mutant.edits:
            text = (ROOT / edit.path).read_text()
            assert text.count(edit.old) == 1, f"{mutant.name}: {edit.path} has moved on"


def test_a_stale_mutant_is_refused(tmp_path: Path) -> None:
    copy_tree(tmp_path)
    mutant = next(mutant for mutant in MUTANTS if not mutant.target)
    apply(mutant, tmp_path)
    with pytest.raises(RuntimeError, match="0 times"):
        apply(mutant, tmp_path)


def test_a_plan_is_a_function_of_its_seed() -> None:
    assert plan_of(7, 30) == plan_of(7, 30)
    assert plan_of(7, 30) != plan_of(8, 30)
    assert list(plan_of(7, 30).lines()) == list(plan_of(7, 30).lines())


@pytest.mark.parametrize("seconds", [8.0, 12.0, 30.0])
def test_a_plan_has_every_kind_in_its_time(seconds: float) -> None:
    for seed in range(20):
        plan = plan_of(seed, seconds)
        assert all(0 < step.at < seconds for step in plan.steps)
        assert {step.kind for step in plan.steps} >= KILLS | {STOP_REPLICA}
        assert {step.target for step in plan.steps} <= set(range(REPLICAS))


def test_eight_full_runs_are_planned_to_be_enough() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(8):
        kinds.update(step.kind for step in plan_of(seed, 30).steps)
    assert sum(kinds[kind] for kind in KILLS) >= 120
    assert kinds[STOP_REPLICA] >= 40
    assert min(kinds.values()) >= 5
