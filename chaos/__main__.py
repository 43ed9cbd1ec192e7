"""`python -m chaos`: what `make chaos` and `make mutants` call."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from chaos.mutants import MUTANTS, SHORT, copied, judge, trial
from chaos.plan import plan_of
from chaos.report import Report, conclude, say, show
from chaos.run import FOUND
from chaos.run import run as run_once

#: In a full run, which has several seeds, every kind of fault must have struck this often.
_LEAST_IN_FULL = 5
_FULL_SECONDS = 120

app = typer.Typer(
    help="Faults on real processes, then every promise checked.",
    add_completion=False,
    no_args_is_help=True,
)


@app.callback()
def chaos() -> None:
    """Faults on real processes, then every promise checked."""


@app.command()
def run(
    seed: Annotated[int, typer.Option(help="What befalls whom, and when.")] = 1,
    seconds: Annotated[float, typer.Option(min=4, max=600, help="How long faults last.")] = 30,
    callers: Annotated[int, typer.Option(min=1, max=64)] = 24,
    patience: Annotated[float, typer.Option(help="Seconds in which it must come to rest.")] = 90,
    seeds: Annotated[int, typer.Option(min=1, help="Run so many seeds, from `seed` on.")] = 1,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what the seed does, and end.")
    ] = False,
    logs: Annotated[Path | None, typer.Option(help="Keep all children's lines here.")] = None,
    found: Annotated[Path, typer.Option(help="Keep below it what was violated.")] = FOUND,
) -> None:
    """Exit status 0 only if every check holds."""
    if plan:
        for line in plan_of(seed, seconds).lines():
            say(line)
        return
    totals = {"calls": 0, "kills": 0, "stops": 0, "violations": 0}
    injected: Counter[str] = Counter()
    slowest = 0.0
    failed: list[Report] = []
    for number in range(seed, seed + seeds):
        report = run_once(
            number, seconds, callers=callers, patience=patience, logs=logs, found=found
        )
        show(report)
        failed += [] if report.holds else [report]
        totals["calls"] += report.evidence.history.operations
        totals["kills"] += report.kills
        totals["stops"] += report.stops
        totals["violations"] += len(report.violations)
        injected += report.evidence.injected
        slowest = max(slowest, report.converged_after or patience)
    if seeds > 1:
        say(
            f"\n{seeds} seeds: {totals['calls']} calls, {totals['kills']} SIGKILLs, "
            f"{totals['stops']} SIGSTOPs, at rest within {slowest:.1f} s, "
            f"{totals['violations']} violations"
        )
        for kind in [kind for kind in injected if injected[kind] < _LEAST_IN_FULL]:
            say(f"  {kind} struck only {injected[kind]} times in all")
            totals["violations"] += seeds * seconds >= _FULL_SECONDS
        for report in failed:
            conclude(report)
    sys.exit(1 if totals["violations"] else 0)


@app.command()
def mutants(
    only: Annotated[
        list[str] | None, typer.Option(help="Names, or parts of names, of mutants.")
    ] = None,
    short: Annotated[
        bool, typer.Option("--short", help="Only the few that every test run has.")
    ] = False,
) -> None:
    """Puts bugs into copies of the tree; exit status 0 only if each is caught."""
    chosen = [
        mutant
        for mutant in MUTANTS
        if (not short or mutant.name in SHORT)
        and (not only or any(part in mutant.name for part in only))
    ]
    failed = 0
    # All mutants use the same tree, even if somebody edits it meanwhile.
    with copied() as tree:
        for target in dict.fromkeys(mutant.target for mutant in chosen):
            verdict = judge(tree, target)
            sound = verdict.ran and not verdict.caught_by
            failed += not sound
            by = "passes" if sound else f"FAILS: {', '.join(verdict.caught_by)}"
            say(f"the tree as it is: {target or 'chaos'} {by} ({verdict.seconds:.1f} s)")
            if not sound:
                say(verdict.output[-4000:])
        for mutant in chosen:
            verdict = trial(mutant, tree)
            caught = bool(verdict.ran and verdict.caught_by)
            failed += not caught
            missed = "NOT CAUGHT" if verdict.ran else "DID NOT RUN"
            by = ", ".join(verdict.caught_by) if caught else missed
            say(f"{mutant.name:40s} {verdict.seconds:6.1f} s  {by}")
            if not verdict.ran:
                say(verdict.output[-3000:])
    say(f"{len(chosen)} mutants, {failed} faults")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    app()
