"""The relay's process: stands by until it has the lock, then publishes until it loses it."""

from __future__ import annotations

import asyncio
import signal
from typing import Final

import structlog
from grpc import aio

from payment_service.config.settings import WrongSettings
from payment_service.metrics_site import MetricsSite
from payment_service.relay import deliveries
from payment_service.relay.follower import Follower, Target
from payment_service.relay.jetstream import JetStreamTarget, tls_of
from payment_service.relay.metrics import RelayMetrics
from payment_service.relay.places import forget
from payment_service.relay.settings import RelaySettings
from payment_service.relay.store import NoSchema, Store, StoreLost
from payment_service.relay.tasks import together
from payment_service.relay.webhooks import WebhookTarget, Worker

log = structlog.get_logger(__name__)

_STANDBY_SECONDS: Final = 1.0
_MEASURE_SECONDS: Final = 5.0
_FORGET_SECONDS: Final = 3600.0
_AGAIN_SECONDS: Final = 1.0
_AFTER_A_BUG_SECONDS: Final = 5.0


class Relay:
    """One relay. Several may run: one of them is active."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._endpoints = settings.endpoints()
        tls_of(settings)
        if settings.relay_nats_url is None and not self._endpoints:
            raise WrongSettings(
                "there is nowhere to publish to: set RELAY_NATS_URL, or RELAY_ENDPOINTS_FILE with "
                "an endpoint in it"
            )
        self.metrics = RelayMetrics()
        self._store = Store(settings.require_database_url())
        self._has_store = False
        self._is_lost = False

    @property
    def is_ready(self) -> bool:
        """Returns whether this relay is active or could become it."""
        return self._has_store

    async def run(self) -> None:
        """Runs until it is cancelled. Raises NoSchema."""
        channel = self._settings.open_channel()
        try:
            while True:
                pause = _AGAIN_SECONDS
                try:
                    await self._be_active(channel)
                except (NoSchema, WrongSettings):
                    raise
                except StoreLost:
                    if not self._is_lost:
                        log.warning("relay_store_lost")
                    self._is_lost = True
                except Exception as error:  # noqa: BLE001 - its text may hold what it must not say
                    log.error("unexpected_error", error=type(error).__name__)
                    pause = _AFTER_A_BUG_SECONDS
                finally:
                    self._has_store = False
                    self.metrics.active.set(0)
                await asyncio.sleep(pause)
        finally:
            await self._store.close()
            await channel.close()

    async def _be_active(self, channel: aio.Channel) -> None:
        await self._store.open()
        self._has_store, self._is_lost = True, False
        await self._stand_by()
        log.info("relay_active")
        self.metrics.active.set(1)
        await self._publish(channel)

    async def _stand_by(self) -> None:
        said = False
        while not await self._store.take_lock():
            if not said:
                log.info("relay_stands_by")
            said = True
            await asyncio.sleep(_STANDBY_SECONDS)

    async def _publish(self, channel: aio.Channel) -> None:
        """Runs everything that needs the lock. Ends with the first of it that fails."""
        settings, store = self._settings, self._store
        webhooks = WebhookTarget(store, self._endpoints)
        jetstream = JetStreamTarget(store, settings, self.metrics)
        targets: list[Target] = [
            *([jetstream] if settings.relay_nats_url is not None else []),
            *([webhooks] if self._endpoints else []),
        ]
        followers = [
            Follower(channel, store, target, self.metrics, settings.relay_source)
            for target in targets
        ]
        workers = [
            Worker(
                store,
                endpoint,
                webhooks.wakes[endpoint.name],
                self.metrics,
                settings.relay_retry_seconds,
            )
            for endpoint in self._endpoints
            if not endpoint.disabled
        ]
        try:
            await together(
                *(follower.run() for follower in followers),
                *(worker.run() for worker in workers),
                self._measure(followers),
                self._forget(),
            )
        finally:
            await jetstream.close()

    async def _measure(self, followers: list[Follower]) -> None:
        while True:
            for follower in followers:
                follower.measure()
            if self._endpoints:
                for line in await self._store.run(deliveries.backlog):
                    self._show(line)
            # Also notices soon that the session with the lock is gone.
            await self._store.run(lambda sql: sql.one("SELECT 1"))
            await asyncio.sleep(_MEASURE_SECONDS)

    def _show(self, line: deliveries.Backlog) -> None:
        if line.endpoint not in {endpoint.name for endpoint in self._endpoints}:
            return
        self.metrics.lag_events.labels(line.endpoint).set(line.waiting)
        self.metrics.lag_seconds.labels(line.endpoint).set(line.oldest_seconds)
        self.metrics.parked.labels(line.endpoint).set(line.parked)
        self.metrics.disabled.labels(line.endpoint).set(line.disabled)

    async def _forget(self) -> None:
        names = [endpoint.name for endpoint in self._endpoints]
        while True:
            await self._store.run(lambda sql: forget(sql, names))
            await asyncio.sleep(_FORGET_SECONDS)


async def serve(settings: RelaySettings) -> None:
    """Runs a relay and its pages until SIGTERM. Raises WrongSettings, NoSchema or OSError."""
    relay = Relay(settings)
    site = MetricsSite(relay.metrics.registry, lambda: relay.is_ready)
    if settings.relay_metrics_port:
        await site.start(settings.relay_metrics_host, settings.relay_metrics_port)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    running = asyncio.create_task(relay.run())
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        running.cancel()
        waiting.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await site.stop()
