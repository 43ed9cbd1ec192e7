"""The rules and the dashboard: they parse, they fire, and they speak of metrics that exist."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics as GatewayMetrics
from payment_service.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "escrow-payments.rules.yaml"
CASES = PROMETHEUS / "escrow-payments.test.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "escrow-payments.json"
_NAME = re.compile(r"\b(?:payments|gateway|process)_[a-z_0-9]+\b")
_RECORDED = re.compile(r"\bpayments:[a-z_0-9:]+\b")
_LABELS = re.compile(r"\b(payments_[a-z_]+|gateway_[a-z_]+)\{([^}]*)\}")

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing; Debian has it in prometheus"
)


def rules() -> list[dict[str, Any]]:
    read = yaml.safe_load(RULES.read_text())
    return [rule for group in read["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panel_expressions() -> list[str]:
    return [
        target["expr"]
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def families() -> dict[str, set[str]]:
    """Every series of a service and a gateway, with its labels."""
    found: dict[str, set[str]] = {}
    for registry in (Metrics().registry, GatewayMetrics().registry):
        found |= _families_of(registry)
    return found


def _families_of(registry: CollectorRegistry) -> dict[str, set[str]]:
    # Without a sample a family with labels shows nothing, so its own description is read.
    found: dict[str, set[str]] = {}
    for collector, names in registry._collector_to_names.items():
        labels = set(getattr(collector, "_labelnames", ()))
        for name in names:
            found[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    # What describes itself only by its samples: the process.
    found |= {s.name: set(s.labels) for f in registry.collect() for s in f.samples if not s.labels}
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for expression in panel_expressions():
        yield "dashboard", expression


@promtool
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", str(RULES)),
        ("test", "rules", str(CASES)),
        ("check", "config", str(RULES.with_name("local.yaml"))),
    ],
    ids=" ".join,
)
def test_prometheus_accepts_the_rules_and_each_alert_fires(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *arguments],  # noqa: S607
        env={
            **os.environ,
            "GOGC": "400",
        },  # It lives for seconds, a fifth of which goes to its garbage.
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_firing() -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    seen = {
        name
        for case in cases
        for test in case.get("promql_expr_test", ())
        for sample in test["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    } | {
        test["alertname"]
        for case in cases
        for test in case.get("alert_rule_test", ())
        if test["exp_alerts"]
    }
    assert {alert["alert"] for alert in alerts()} == seen


def test_what_the_rules_and_the_dashboard_name_exists() -> None:
    known = families()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for place, expression in expressions():
        unknown = set(_NAME.findall(expression)) - set(known)
        assert not unknown, (place, unknown)
        assert set(_RECORDED.findall(expression)) <= recorded, (place, expression)


def test_each_label_that_is_asked_for_is_one_of_the_metric() -> None:
    known = families()
    for place, expression in expressions():
        for name, matchers in _LABELS.findall(expression):
            asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) - {"job", "instance"}
            assert asked <= known[name], (place, name, asked - known[name])


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"page", "ticket", "info"}
    assert alert["annotations"]["summary"].endswith(".")
    path, _, anchor = alert["annotations"]["runbook"].partition("#")
    page = ROOT / path
    assert path.startswith("docs/runbook/"), path
    assert page.is_file(), path
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
    assert not anchor or anchor in anchors, alert["annotations"]["runbook"]


def _base(name: str) -> str:
    return re.sub(r"_(total|bucket|count|sum|created|info)$", "", name)


def test_the_dashboard_is_made_of_its_panels() -> None:
    path = DASHBOARD.with_name("make_dashboard.py")
    spec = importlib.util.spec_from_file_location("make_dashboard", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.text() == DASHBOARD.read_text(), "run: python deploy/grafana/make_dashboard.py"


def test_no_metric_of_ours_goes_unwatched() -> None:
    """What is measured is on the dashboard or in a rule; otherwise nobody would look at it."""
    named = {_base(name) for _, expression in expressions() for name in _NAME.findall(expression)}
    ours = {_base(name) for name in families() if name.startswith(("payments_", "gateway_"))}
    assert ours - named == set()
