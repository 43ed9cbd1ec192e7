"""Prints what a run measured, keeps it in docs/performance, and compares a run with that."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dev.settings import ROOT
from dev.story import Story

PLACE: Final = ROOT / "docs" / "performance"
#: The figures of the last `make bench`, and those from before the first reduction.
KEPT: Final = PLACE / "bench.json"
BEFORE: Final = PLACE / "before.json"
CHART: Final = PLACE / "costs.svg"

#: What each multiple is to be at most.
GOALS: Final[Mapping[str, float]] = {
    "GetPayment": 1.4,
    "InitiatePayment": 1.3,
    "to IN_ESCROW": 1.0,
    "CapturePayment": 1.7,
    "RefundPayment": 3.0,
    "PostgreSQL": 2.0,
}
#: A multiple may grow by this much between two runs: machines differ, and so do their loads.
GROWTH: Final = 4 / 3

_LOAD: Final = (
    *("call", "Stripe ms>", "in flight>", "a second>", "CPU ms>"),
    *("offered>", "p50 ms>", "p95>", "p99>", "refused"),
)
_UNIT: Final = {"GetPayment": "a bare read"}
_TITLE: Final = "Processor time of a call, as a multiple of a bare handler"
_WIDTH, _LEFT, _RIGHT, _ROW = 760, 150, 70, 46


def show(story: Story, result: Mapping[str, Any]) -> None:
    """Prints the tables of a run."""
    before = _read(BEFORE).get("multiples", {})
    rows = [
        [
            name,
            _UNIT.get(name, "a bare initiation"),
            f"{before[name]:.1f}" if name in before else "",
            f"{value:.2f}",
            f"{GOALS[name]:.1f}",
            *_counts(result, name),
        ]
        for name, value in result["multiples"].items()
    ]
    columns = ["call", "as a multiple of", "before>", "now>", "goal>", "statements>"]
    story.table("Processor time of a call", [*columns, "round trips>"], rows)
    if "load" in result:
        title = "Under load; latencies at half of what it carries"
        story.table(title, _LOAD, list(map(_row, result["load"])))
    if "workers" in result:
        show_workers(story, result["workers"])
    rest = result["at_rest"]
    story.note(
        f"At rest the service uses {rest['process_ms_per_second']:.0f} ms of a second, and "
        f"PostgreSQL for it {rest['postgres_ms_per_second']:.0f} ms; both are left out above."
    )
    if "start" in result:
        start = result["start"]
        story.note(
            f"The first answer comes {start['seconds']:.2f} s after the start, for "
            f"{start['cpu_seconds']:.2f} s of processor time."
        )


def show_workers(story: Story, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints what one worker and several carry."""
    cells = [[str(row["workers"]), *_row(row)] for row in rows]
    story.table("Workers on one machine", ["workers>", *_LOAD], cells)


def _row(cell: Mapping[str, Any]) -> list[str]:
    return [
        cell["call"],
        str(cell["stripe_ms"]),
        str(cell["in_flight"]),
        f"{cell['per_second']:.0f}",
        f"{cell['cpu_ms']:.1f}",
        f"{cell['offered_per_second']:.0f}",
        *(f"{cell[name]:.0f}" for name in ("p50_ms", "p95_ms", "p99_ms")),
        ", ".join(f"{count} {code}" for code, count in cell["refused"].items()),
    ]


def _counts(result: Mapping[str, Any], name: str) -> list[str]:
    found = result.get("statements", {}).get(name)
    return [f"{found['statements']:.0f}", f"{found['round_trips']:.0f}"] if found else ["", ""]


def keep(result: Mapping[str, Any]) -> None:
    """Writes the figures and the chart."""
    PLACE.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(result, indent=1) + "\n")
    CHART.write_text(chart(_read(BEFORE).get("multiples", {}), result["multiples"]))


def grown(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns each multiple that is a third larger than the one that is kept, with a sentence."""
    kept = _read(KEPT).get("multiples", {})
    return {
        name: f"{name} costs {value:.2f} times its measure; {kept[name]:.2f} are kept"
        for name, value in result["multiples"].items()
        if name in kept and value > kept[name] * GROWTH
    }


def chart(before: Mapping[str, float], now: Mapping[str, float]) -> str:
    """Returns a drawing: for each call the multiple before, now, and the goal."""
    longest = max([*before.values(), *now.values(), *GOALS.values()])
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    height = _ROW * len(now) + 60
    size = f'width="{_WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
        f'<rect {size} fill="#fff"/>',
        f'<text x="12" y="22" font-weight="bold">{_TITLE}</text>',
    ]
    for row, (name, value) in enumerate(now.items()):
        top = 36 + row * _ROW
        parts.append(f'<text x="12" y="{top + 20}">{name}</text>')
        bars = [("#bbb", before.get(name), 6), ("#2a6", value, 20)]
        for colour, length, below in bars:
            if length is None:
                continue
            parts.append(
                f'<rect x="{_LEFT}" y="{top + below - 4}" width="{length * scale:.1f}" '
                f'height="12" fill="{colour}"/>'
                f'<text x="{_LEFT + length * scale + 6:.1f}" y="{top + below + 6}" '
                f'font-size="11">{length:.1f}</text>'
            )
        goal = _LEFT + GOALS[name] * scale
        parts.append(
            f'<path d="M{goal:.1f} {top - 2}v36" stroke="#c22" stroke-width="2" fill="none"/>'
        )
    parts.append(
        f'<text x="12" y="{height - 8}" font-size="11" fill="#555">grey: before the reductions; '
        "green: now; red line: the goal</text></svg>\n"
    )
    return "\n".join(parts)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    read: dict[str, Any] = json.loads(path.read_text())
    return read
