"""Writes escrow-payments.json from the panels beside it: `python deploy/grafana/make_dashboard.py`.

A dashboard in Grafana's own JSON repeats each setting in each panel, so nobody can read what has
changed in it. The panels say only what differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).parent
PANELS: Final = HERE / "escrow-payments.panels.yaml"
DASHBOARD: Final = HERE / "escrow-payments.json"
_SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
_WIDTH: Final = 24
_HEIGHTS: Final = {"stat": 4, "timeseries": 8}


def dashboard() -> dict[str, Any]:
    """Returns the dashboard in Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in yaml.safe_load(PANELS.read_text()).items():
        panels.append(_row(title, y))
        y += 1
        x, height = 0, 0
        for given in row:
            wanted, width = _HEIGHTS[given.get("kind", "timeseries")], given.get("width", 6)
            if x + width > _WIDTH or (height and wanted != height):
                y, x = y + height, 0
            height = wanted
            panels.append(_panel(given, {"x": x, "y": y, "w": width, "h": height}))
            x += width
        y += height
    source = {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": "escrow-payments",
        "title": "Escrow payments",
        "description": "Is the service healthy, how much money, what is stuck.",
        "tags": ["payments"],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def _row(title: str, y: int) -> dict[str, Any]:
    place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
    return {"type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(given: dict[str, Any], place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": given.get("unit", "short")}
    if "limits" in given:
        colors = zip(("green", "yellow", "red"), (None, *given["limits"]), strict=True)
        steps = [{"color": color, "value": value} for color, value in colors]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "type": given.get("kind", "timeseries"),
        "title": given["title"],
        "description": given["says"],
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(65 + n), "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
            for n, (legend, expr) in enumerate(given["asks"].items())
        ],
    }


def text() -> str:
    """Returns what the file holds."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text())
