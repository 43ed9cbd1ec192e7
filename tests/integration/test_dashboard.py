"""The dashboard and the rules in a real Prometheus that scrapes a real service and gateway.

With DASHBOARD_PICTURE=path and DASHBOARD_SECONDS=240 the same run draws the picture of the docs.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import urllib.error
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from dev.ports import first_free_port
from payment_service.gauges import read_gauges
from payment_service.metrics_site import MetricsSite
from tests.support.running import running_world
from tests.support.world import World, until

ROOT: Final = Path(__file__).resolve().parents[2]
GRAFANA: Final = ROOT / "deploy" / "grafana"
RULES: Final = ROOT / "deploy" / "prometheus" / "escrow-payments.rules.yaml"

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is missing; Debian has it"
)


def _drawing() -> Any:
    spec = importlib.util.spec_from_file_location("draw", GRAFANA / "draw_dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@contextlib.asynccontextmanager
async def running_prometheus(folder: Path, targets: dict[str, int]) -> AsyncIterator[str]:
    port = first_free_port(1)
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{at}"]}]}
        for job, at in targets.items()
    ]
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": jobs,
    }
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(settings))  # JSON is YAML.
    process = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _traffic(world: World, seconds: float) -> None:
    """Payments of all kinds, and the gauges as often as a service reads them."""
    assert world.service is not None
    assert world.service.wired is not None
    wired = world.service.wired
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    expert = await world.expert()
    turn = 0
    while turn == 0 or loop.time() < end:
        turn += 1
        captured = await world.captured(expert, 9_000 + 500 * (turn % 7))
        if turn % 3 == 0:
            await world.refund(captured.payment_id, 2_000)
        if turn % 4 == 1:
            declined = await world.initiate(expert)
            await world.confirm(declined, "pm_card_visa_chargeDeclined")
        if turn % 10 == 1:
            await world.captured(expert, 7_000, card="pm_card_createDispute")
        if turn % 3 == 1:
            await world.escrowed(expert, 5_000)
        await read_gauges(wired.metrics, wired.database)
        await asyncio.sleep(0.2)


async def test_every_panel_is_answered_by_prometheus_after_real_traffic(
    new_database: Callable[[], str], tmp_path: Path
) -> None:
    drawing = _drawing()
    seconds = float(os.environ.get("DASHBOARD_SECONDS", "4"))
    first = first_free_port(2)
    ports = {"escrow-payments": first, "escrow-payments-gateway": first + 1}
    async with running_world(new_database(), gateway_metrics_port=first + 1) as world:
        assert world.service is not None
        assert world.service.wired is not None
        site = MetricsSite(world.service.wired.metrics.registry, lambda: True)
        await site.start("127.0.0.1", ports["escrow-payments"])
        lag = asyncio.create_task(world.service.wired.metrics.watch_loop())
        try:
            async with running_prometheus(tmp_path, ports) as address:
                ask = drawing.asking(address)

                async def scraped() -> bool:
                    with contextlib.suppress(urllib.error.URLError):
                        found = await asyncio.to_thread(ask, "query", {"query": "sum(up) == 2"})
                        return bool(found["data"]["result"])
                    return False

                await until(scraped, "Prometheus scrapes both")
                await _traffic(world, seconds)
                await asyncio.sleep(3)
                await asyncio.to_thread(_judge, drawing, ask, seconds)
        finally:
            lag.cancel()
            await site.stop()


def _judge(drawing: Any, ask: Any, seconds: float) -> None:
    now = float(ask("query", {"query": "time()"})["data"]["result"][1])
    panels = json.loads((GRAFANA / "escrow-payments.json").read_text())["panels"]
    found = {
        panel["title"]: drawing.series_of(panel, ask, now, max(10.0, seconds)) for panel in panels
    }
    for title in (
        *("Replicas", "Invariants broken", "In escrow", "At risk", "Captured in a day"),
        *("Commission in a day", "Calls", "Latency of the money calls", "Volume by step"),
        *("Overdue", "Oldest that is overdue", "Requests to Stripe", "Latency of Stripe"),
        *("Connections of the database", "Slowest transactions", "Webhooks", "Memory"),
    ):
        assert found[title], f"no data in the panel {title}"
    rules = ask("rules", {})["data"]["groups"]
    broken = [rule["name"] for group in rules for rule in group["rules"] if rule["health"] == "err"]
    assert broken == []
    firing = {alert["labels"]["alertname"] for alert in ask("alerts", {})["data"]["alerts"]}
    assert not firing & {"PaymentServiceDown", "InvariantBroken", "OutcomesUnknown", "QueueStuck"}
    picture = drawing.draw(ask, now, max(10.0, seconds))
    assert "In escrow" in picture
    if path := os.environ.get("DASHBOARD_PICTURE"):
        Path(path).write_text(picture)
