"""Publishes events to NATS JetStream, one after another, each acknowledged before the next."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final

import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from payment_service.config.settings import WrongSettings
from payment_service.relay.cloud_events import CONTENT_TYPE, Outgoing
from payment_service.relay.metrics import RelayMetrics
from payment_service.relay.places import Place
from payment_service.relay.settings import RelaySettings
from payment_service.relay.store import Store

log = structlog.get_logger(__name__)

SUBJECTS: Final = "payments.>"
_ACK_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 2.0
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
#: For how long JetStream drops an event that it has: a relay that takes over repeats the last one.
_DUPLICATE_SECONDS: Final = 600.0


class JetStreamTarget:
    """Takes an event by publishing it. The cursor moves when JetStream has stored the event."""

    name: Final = "nats"

    def __init__(self, store: Store, settings: RelaySettings, metrics: RelayMetrics) -> None:
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._client: Client | None = None
        self._failing = False

    async def take(self, event: Outgoing, cursor: str) -> None:
        """Publishes an event, however long it takes, unless JetStream has it already."""
        place = Place(self.name)
        # This also fails if the lock is lost, before anything is published.
        if not await self._store.run(lambda sql: place.knows(sql, event)):
            await self._publish(event)
        await self._store.run(lambda sql: place.move(sql, event, cursor))

    async def close(self) -> None:
        """Ends the connection."""
        client, self._client = self._client, None
        if client is not None:
            # A server that has stopped does not answer the end of a connection either.
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await client.close()

    async def _publish(self, event: Outgoing) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                ack = await (await self._stream()).publish(
                    f"payments.{event.kind}",
                    event.body.encode(),
                    timeout=_ACK_SECONDS,
                    stream=self._settings.relay_nats_stream,
                    headers={"Nats-Msg-Id": event.id, "content-type": CONTENT_TYPE},
                )
            except (nats.errors.Error, TimeoutError, OSError) as error:
                self._failed(error)
                # A new connection sends nothing that the old one had kept back.
                await self.close()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                # Another relay may be active by now, and further on.
                await self._store.run(lambda sql: sql.one("SELECT 1"))
                continue
            self._failing = False
            self._metrics.published.labels("DUPLICATE" if ack.duplicate else "PUBLISHED").inc()
            return

    def _failed(self, error: Exception) -> None:
        self._metrics.published.labels("FAILED").inc()
        if not self._failing:
            log.warning("relay_nats_waits", error=type(error).__name__)
        self._failing = True

    async def _stream(self) -> JetStreamContext:
        if self._client is None or self._client.is_closed:
            client = self._client = _StrictClient()
            await client.connect(
                self._settings.nats_servers(),
                name="payments-relay",
                tls=tls_of(self._settings),
                connect_timeout=5,
                allow_reconnect=False,
                error_cb=_ignore,
            )
            if not self._settings.is_production:
                await self._ensure_stream(client.jetstream())
        return self._client.jetstream()

    async def _ensure_stream(self, stream: JetStreamContext) -> None:
        """Makes the stream in development.

        In production people decide how often it is stored, and the relay may only publish.
        """
        name = self._settings.relay_nats_stream
        try:
            await stream.stream_info(name)
        except nats.js.errors.NotFoundError:
            config = StreamConfig(
                name=name, subjects=[SUBJECTS], duplicate_window=_DUPLICATE_SECONDS
            )
            await stream.add_stream(config)


class _StrictClient(Client):
    """Sends nothing in plain text to a server that was named with TLS.

    NATS's client asks the server whether TLS is wanted, so anybody between the two could answer no
    and read the password.
    """

    def _connect_command(self) -> bytes:
        """Returns the first bytes to the server, which have the password."""
        server = self._current_server
        wanted = "tls" in self.options or (server is not None and server.uri.scheme == "tls")
        if wanted and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return super()._connect_command()


def tls_of(settings: RelaySettings) -> ssl.SSLContext | None:
    """Returns what TLS with NATS needs. Raises WrongSettings if a file cannot be used."""
    if settings.relay_nats_ca_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=str(settings.relay_nats_ca_file))
        if settings.relay_nats_certificate_file and settings.relay_nats_key_file:
            context.load_cert_chain(
                settings.relay_nats_certificate_file, settings.relay_nats_key_file
            )
    except (OSError, ssl.SSLError) as error:
        raise WrongSettings(
            f"RELAY_NATS_CA_FILE and its companions cannot be used ({type(error).__name__})"
        ) from None
    return context


async def _ignore(_: Exception) -> None:
    """Leaves out the client's own report: the failed publication says it."""
