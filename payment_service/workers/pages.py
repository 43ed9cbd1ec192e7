"""The pages of METRICS_PORT for all workers, served by a process of its own.

Each worker serves its pages on a Unix socket that only this user can open. Every series gets the
label ``worker``. So the counters of a worker that was restarted begin at zero under their label, as
those of a replica do, and Prometheus' ``rate`` and ``increase`` know what that means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from payment_service.config import Settings
from payment_service.metrics_site import METRICS_PATH, READY_PATH, runner_of
from payment_service.server import CannotListen
from payment_service.workers.worker import Tie

#: A worker that does not answer within it is left out of a page.
_PATIENCE_SECONDS: Final = 2.0
#: After it without a beat, the parent does not supervise any more.
_SILENCE_SECONDS: Final = 30.0
_LABEL: Final = "worker"


class WorkerPages:
    """The three pages of all workers."""

    def __init__(self, sockets: Mapping[int, Path]) -> None:
        self._sockets = sockets
        self._sessions: dict[int, aiohttp.ClientSession] = {}
        self._parent_beat = time.monotonic()
        self._runner = runner_of(metrics=self._metrics, live=self._live, ready=self._ready)

    async def start(self, host: str, port: int) -> None:
        """Listens. Raises OSError if the port is taken."""
        patience = aiohttp.ClientTimeout(total=_PATIENCE_SECONDS)
        self._sessions = {
            number: aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(path)), timeout=patience
            )
            for number, path in self._sockets.items()
        }
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()

    async def stop(self) -> None:
        await self._runner.cleanup()
        for session in self._sessions.values():
            await session.close()

    def parent_beats(self) -> None:
        """Notes that the parent supervises."""
        self._parent_beat = time.monotonic()

    async def _metrics(self, _: web.Request) -> web.Response:
        answers = await self._ask(METRICS_PATH)
        pages = {number: text for number, (status, text) in answers.items() if status == 200}
        if not pages:
            return web.Response(status=503, text="no worker answers\n")
        return web.Response(body=merged(pages), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _live(self, _: web.Request) -> web.Response:
        """Says whether the parent supervises: it restarts a worker that does not work."""
        alive = time.monotonic() - self._parent_beat < _SILENCE_SECONDS
        return _said(alive, "ok" if alive else "the parent does not supervise")

    async def _ready(self, _: web.Request) -> web.Response:
        """Says whether at least one worker accepts calls: callers leave the others."""
        answers = await self._ask(READY_PATH)
        states = {
            str(number): answers.get(number, (0, ""))[0] == 200 for number in sorted(self._sockets)
        }
        ready = any(states.values())
        return _said(ready, "ok" if ready else "not ready", states)

    async def _ask(self, path: str) -> dict[int, tuple[int, str]]:
        """Returns status and text of a page of each worker that answers."""

        async def ask(number: int) -> tuple[int, int, str] | None:
            try:
                async with self._sessions[number].get(f"http://worker{path}") as answer:
                    return number, answer.status, await answer.text()
            except (aiohttp.ClientError, TimeoutError):
                return None  # It is being restarted, or is stuck: the parent looks after it.

        answers = await asyncio.gather(*map(ask, self._sessions))
        return {found[0]: found[1:] for found in answers if found is not None}


def merged(pages: Mapping[int, str]) -> bytes:
    """Returns one metrics page of those of the workers, with the label ``worker``."""
    families: dict[str, Metric] = {}
    for number, text in sorted(pages.items()):
        for family in text_string_to_metric_families(text):
            into = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            into.samples += [
                Sample(sample.name, {**sample.labels, _LABEL: str(number)}, sample.value)
                for sample in family.samples
            ]
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


async def serve_pages(settings: Settings, sockets: Mapping[int, Path], tie: Tie) -> None:
    """Serves the pages until the parent closes its end. Raises :class:`CannotListen`."""
    pages, ended = WorkerPages(sockets), asyncio.Event()
    keeping = asyncio.create_task(tie.keep(ended.set, pages.parent_beats))
    try:
        await pages.start(settings.metrics_host, settings.metrics_port)
    except OSError:
        await pages.stop()
        raise CannotListen.of_metrics(settings) from None
    await ended.wait()
    keeping.cancel()
    await pages.stop()


class _Families(Collector):
    """Collects what was read already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _said(good: bool, status: str, workers: Mapping[str, bool] | None = None) -> web.Response:
    body: dict[str, object] = {"status": status}
    if workers is not None:
        body["workers"] = {number: "ok" if ok else "not ready" for number, ok in workers.items()}
    return web.json_response(body, status=200 if good else 503)
