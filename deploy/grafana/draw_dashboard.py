"""Draws the dashboard as SVG from what a running Prometheus answers, for those without Grafana.

    python deploy/grafana/draw_dashboard.py http://127.0.0.1:9090 3600 > dashboard.svg

The queries are the dashboard's own. The number is the seconds that are shown.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

DASHBOARD: Final = Path(__file__).with_name("escrow-payments.json")
_COLUMN, _LINE, _GAP = 58, 24, 6
_COLORS: Final = ("#5794f2", "#73bf69", "#ff9830", "#f2495c", "#b877d9", "#fade2a", "#8ab8ff")
_STEPS: Final = 120
_LEGENDS: Final = 5
_LEGEND_LETTERS: Final = 30

#: Answers a query of the HTTP API: its path below /api/v1/ and its parameters.
Ask = Callable[[str, dict[str, str]], dict[str, Any]]


class Series(NamedTuple):
    """One line of a panel: what it is called, and its points by time."""

    legend: str
    points: list[tuple[float, float]]


def asking(address: str) -> Ask:
    """Returns what asks a Prometheus at this address."""

    def ask(path: str, parameters: dict[str, str]) -> dict[str, Any]:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{address}/api/v1/{path}?{query}", timeout=30) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
        return found

    return ask


def series_of(panel: dict[str, Any], ask: Ask, until: float, seconds: float) -> list[Series]:
    """Returns what Prometheus answers to all queries of a panel."""
    found: list[Series] = []
    for target in panel.get("targets", ()):
        asked = {
            "query": target["expr"],
            "start": str(until - seconds),
            "end": str(until),
            "step": str(max(1, seconds / _STEPS)),
        }
        for one in ask("query_range", asked)["data"]["result"]:
            points = [(float(at), float(text)) for at, text in one["values"]]
            kept = [(at, value) for at, value in points if math.isfinite(value)]
            if kept:
                found.append(Series(_legend(target["legendFormat"], one["metric"]), kept))
    return found


def draw(ask: Ask, until: float, seconds: float) -> str:
    """Returns the picture."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = 24 * _COLUMN + _GAP, bottom * _LINE + 2 * _GAP
    size = f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f'<rect width="{width}" height="{height}" fill="#111217"/>',
    ]
    for panel in panels:
        parts += _panel(panel, ask, until, seconds)
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: dict[str, Any], ask: Ask, until: float, seconds: float) -> Iterator[str]:
    place = panel["gridPos"]
    x, y = place["x"] * _COLUMN + _GAP, place["y"] * _LINE + _GAP
    width, height = place["w"] * _COLUMN - _GAP, place["h"] * _LINE - _GAP
    if panel["type"] == "row":
        yield _text(x, y + 15, panel["title"], 14, "#ffffff", "bold")
        return
    yield f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="2" fill="#181b1f"/>'
    yield _text(x + 8, y + 16, panel["title"], 11, "#ccccdc", "bold")
    found = series_of(panel, ask, until, seconds)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if not found:
        yield _text(x + 8, y + height / 2 + 8, "no data: nothing of this kind", 10, "#6e7079")
    elif panel["type"] == "stat":
        yield from _values(panel, found, unit, (x, y, width))
    else:
        yield from _lines(found, unit, (x, y, width, height), (until - seconds, until))


def _values(
    panel: dict[str, Any], found: list[Series], unit: str, place: tuple[int, int, int]
) -> Iterator[str]:
    x, y, width = place
    shown = found[:3]
    each = (width - 8) / len(shown)
    for n, series in enumerate(shown):
        value = series.points[-1][1]
        color, left = _color_of(panel, value), x + 8 + n * each
        yield _text(left, y + 52, _number(value, unit), 24 if len(shown) < 3 else 18, color, "bold")
        yield _text(left, y + 74, series.legend[: max(6, int(each / 6))], 9, "#8e8e9a")


def _lines(
    found: list[Series],
    unit: str,
    place: tuple[int, int, int, int],
    times: tuple[float, float],
) -> Iterator[str]:
    x, y, width, height = place
    left, top = x + 44, y + 26
    right, below = x + width - 10, y + height - 12 * min(len(found), _LEGENDS) - 12
    most = max(value for series in found for _, value in series.points) or 1.0
    for part in (0, 0.5, 1):
        at = below - part * (below - top)
        yield f'<path d="M{left} {at:.0f}H{right}" stroke="#2c2e33"/>'
        yield _text(x + 6, at + 3, _number(part * most, unit), 8, "#8e8e9a")
    first, last = times
    # The highest lines are the ones with a legend.
    for n, series in enumerate(sorted(found, key=lambda one: -one.points[-1][1])):
        color = _COLORS[n % len(_COLORS)]
        path = " ".join(
            f"{left + (at - first) / (last - first) * (right - left):.0f},"
            f"{below - max(0.0, value) / most * (below - top):.0f}"
            for at, value in series.points
        )
        yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        if n < _LEGENDS:
            at = below + 14 + 12 * n
            legend = series.legend[:_LEGEND_LETTERS]
            yield f'<rect x="{x + 8}" y="{at - 6}" width="8" height="3" fill="{color}"/>'
            value = _number(series.points[-1][1], unit)
            yield _text(x + 20, at, f"{legend}  {value}", 8.5, "#ccccdc")


def _color_of(panel: dict[str, Any], value: float) -> str:
    shown = {"green": "#73bf69", "yellow": "#fade2a", "red": "#f2495c"}
    color = "#5794f2"
    for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", ()):
        if step["value"] is None or value >= step["value"]:
            color = shown[step["color"]]
    return color


def _legend(form: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), form).strip()


def _number(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value * 100:.1f} %"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    number = f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 100 else f"{value:.3g}"
    return f"{number}/s" if unit == "reqps" else number


def _text(x: float, y: float, said: str, size: float, color: str, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{color}" '
        f'font-weight="{weight}">{escape(said)}</text>'
    )


if __name__ == "__main__":
    sys.stdout.write(draw(asking(sys.argv[1]), time.time(), float(sys.argv[2])))
