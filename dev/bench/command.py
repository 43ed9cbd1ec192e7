"""The commands behind `make bench` and `make bench-quick`."""

import asyncio

from dev.bench import report
from dev.bench.run import FULL, QUICK, measure
from dev.bench.workers import compare
from dev.demo import Failed
from dev.story import Story


def bench(*, quick: bool) -> None:
    """Measures, prints, and keeps the figures; the quick form compares with those that are kept."""
    story = Story()
    story.introduce(
        "What a call costs",
        "The service and two bare handlers in one run, by the processor time of their processes. "
        + ("About a minute." if quick else "About ten minutes."),
    )
    result = asyncio.run(measure(QUICK if quick else FULL, story.note))
    if not quick:
        result["workers"] = asyncio.run(compare(story.note))
    report.show(story, result)
    if not quick:
        report.keep(result)
        story.verdict(f"the figures are in {report.PLACE}", good=True)
        return
    larger = report.grown(result)
    if larger:
        # Whoever else uses the machine can make one run dear, but hardly the same call twice.
        story.note(f"measuring again: {', '.join(larger)}")
        again = asyncio.run(measure(QUICK, story.note))
        report.show(story, again)
        larger = {name: said for name, said in report.grown(again).items() if name in larger}
    for sentence in larger.values():
        story.fails(sentence)
    story.verdict("no call costs a third more than the figures that are kept", good=not larger)
    if larger:
        raise Failed
