"""What Prometheus and the orchestrator ask over HTTP, on METRICS_PORT.

Kubernetes cannot ask gRPC's health service through TLS, so readiness is answered here, too. The
pages run on the event loop that serves calls: a loop that is stuck does not answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

METRICS_PATH: Final = "/metrics"
#: Whether the process works at all. A restart is the remedy if it does not.
LIVE_PATH: Final = "/live"
#: Whether new calls may be sent here. It does not depend on the database: an outage of it would
#: otherwise remove all replicas at once, and callers would get no typed answer.
READY_PATH: Final = "/ready"


Page: TypeAlias = Callable[[web.Request], Awaitable[web.Response]]


def runner_of(*, metrics: Page, live: Page, ready: Page) -> web.AppRunner:
    """Returns what serves the three pages."""
    app = web.Application()
    app.router.add_get(METRICS_PATH, metrics)
    app.router.add_get(LIVE_PATH, live)
    app.router.add_get(READY_PATH, ready)
    return web.AppRunner(app, access_log=None, shutdown_timeout=1)


class MetricsSite:
    """The three pages. ``is_ready`` says whether this replica accepts new calls."""

    def __init__(self, registry: CollectorRegistry, is_ready: Callable[[], bool]) -> None:
        self._registry = registry
        self._is_ready = is_ready
        self._runner = runner_of(metrics=self._metrics, live=self._live, ready=self._ready)

    async def start(self, host: str, port: int) -> None:
        """Listens. Raises OSError if the port is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()

    async def start_on_socket(self, path: Path) -> None:
        """Listens on a Unix socket. One that a killed process has left is replaced."""
        await self._runner.setup()
        await web.UnixSite(self._runner, path).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, _: web.Request) -> web.Response:
        ready = self._is_ready()
        return web.json_response(
            {"status": "ok" if ready else "not ready"}, status=200 if ready else 503
        )
