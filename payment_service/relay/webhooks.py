"""Sends webhooks: for each endpoint a worker of its own, with connections of its own."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import aiohttp
import structlog

from payment_service.relay import deliveries
from payment_service.relay.addresses import AddressRefused, GuardedResolver, check_literal
from payment_service.relay.cloud_events import CONTENT_TYPE, Outgoing
from payment_service.relay.deliveries import DELIVERED, Due, Outcome
from payment_service.relay.endpoints import Endpoint
from payment_service.relay.metrics import RelayMetrics
from payment_service.relay.places import Place
from payment_service.relay.signatures import headers_of, read_keys
from payment_service.relay.store import Sql, Store

log = structlog.get_logger(__name__)

_TIMEOUT: Final = aiohttp.ClientTimeout(total=15, connect=5)
#: Deliveries of one endpoint at once, each of another payment.
_AT_ONCE: Final = 8
#: After which pause a worker looks for deliveries whose time has come.
_LOOK_SECONDS: Final = 0.5
_SUCCESS: Final = range(200, 300)
_REDIRECTS: Final = range(300, 400)


class WebhookTarget:
    """Takes an event by recording its deliveries, in the transaction that moves the cursor."""

    name: Final = "webhooks"

    def __init__(self, store: Store, endpoints: tuple[Endpoint, ...]) -> None:
        self._store = store
        self._endpoints = endpoints
        self.wakes = {endpoint.name: asyncio.Event() for endpoint in endpoints}

    async def take(self, event: Outgoing, cursor: str) -> None:
        """Records the deliveries of an event."""
        place = Place(self.name)

        def phase(sql: Sql) -> None:
            if not place.knows(sql, event):
                deliveries.enqueue(sql, event, self._endpoints)
            place.move(sql, event, cursor)

        await self._store.run(phase)
        for wake in self.wakes.values():
            wake.set()


class Worker:
    """Delivers what is due to one endpoint."""

    def __init__(
        self,
        store: Store,
        endpoint: Endpoint,
        wake: asyncio.Event,
        metrics: RelayMetrics,
        patience: float,
    ) -> None:
        self._store = store
        self._endpoint = endpoint
        self._wake = wake
        self._metrics = metrics
        self._patience = patience
        self._tries: dict[asyncio.Task[None], str] = {}

    async def run(self) -> None:
        """Delivers until it is cancelled. Raises StoreLost."""
        await self._store.run(lambda sql: deliveries.introduce(sql, self._endpoint.name))
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=GuardedResolver(self._endpoint.networks),
                use_dns_cache=False,
                limit=_AT_ONCE,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_TIMEOUT,
            auto_decompress=False,
        ) as session:
            try:
                while True:
                    self._wake.clear()
                    await self._begin(session)
                    await self._pause()
            finally:
                for one in self._tries:
                    one.cancel()
                await asyncio.gather(*self._tries, return_exceptions=True)

    async def _begin(self, session: aiohttp.ClientSession) -> None:
        busy = list(self._tries.values())
        free = _AT_ONCE - len(busy)
        if not free:
            return
        found = await self._store.run(
            lambda sql: deliveries.due(sql, self._endpoint.name, busy, free)
        )
        for one in found:
            task = asyncio.create_task(self._deliver(session, one))
            self._tries[task] = one.payment_id

    async def _pause(self) -> None:
        """Waits until a try has ended, an event has come, or it is time to look."""
        waking = asyncio.create_task(self._wake.wait())
        try:
            ended, _ = await asyncio.wait(
                {waking, *self._tries},
                timeout=_LOOK_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            waking.cancel()
        for one in [one for one in self._tries if one in ended]:
            del self._tries[one]
            one.result()

    async def _deliver(self, session: aiohttp.ClientSession, due: Due) -> None:
        outcome = await send(session, self._endpoint, due)
        verdict = await self._store.run(
            lambda sql: deliveries.record(sql, self._endpoint.name, due.id, outcome, self._patience)
        )
        name = self._endpoint.name
        self._metrics.deliveries.labels(name, outcome.word).inc()
        if verdict.parked:
            log.error("relay_delivery_parked", endpoint=name, delivery=due.id, outcome=outcome.word)
        if verdict.disabled:
            log.error("relay_endpoint_disabled", endpoint=name, outcome=outcome.word)


async def send(session: aiohttp.ClientSession, endpoint: Endpoint, due: Due) -> Outcome:
    """Sends one webhook. Nothing of the answer is read except its status and its wish."""
    body = due.body.encode()
    try:
        check_literal(endpoint.host, endpoint.networks)
        keys = await asyncio.to_thread(read_keys, endpoint.secret_files)
        signed = headers_of(due.event_id, int(time.time()), body, keys)
        async with session.post(
            endpoint.url,
            data=body,
            headers={**signed, "content-type": CONTENT_TYPE, "user-agent": "payments-relay/1"},
            allow_redirects=False,
        ) as answer:
            return _outcome_of(answer)
    except (TimeoutError, aiohttp.ServerTimeoutError):
        return Outcome("TIMEOUT")
    except AddressRefused:
        return Outcome("ADDRESS_REFUSED")
    except aiohttp.ClientSSLError:
        return Outcome("TLS_FAILED")
    except aiohttp.ClientConnectorError as error:
        refused = isinstance(error.os_error, AddressRefused)
        return Outcome("ADDRESS_REFUSED" if refused else "NOT_CONNECTED")
    except (aiohttp.ClientError, OSError):
        return Outcome("CONNECTION_LOST")
    except ValueError:
        return Outcome("SECRET_UNREADABLE")


def _outcome_of(answer: aiohttp.ClientResponse) -> Outcome:
    if answer.status in _SUCCESS:
        return Outcome(DELIVERED)
    if answer.status in _REDIRECTS:
        return Outcome("REDIRECT")
    wish = answer.headers.get("Retry-After", "")
    seconds = float(wish) if wish.isascii() and wish.isdigit() and len(wish) < 7 else 0.0
    return Outcome(f"STATUS_{answer.status}", seconds)
