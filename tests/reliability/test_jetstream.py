"""The relay and NATS: encrypted if it was named so, and never in the open by mistake."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marketplace.payments.v1 import events_pb2
from payment_service.relay.cloud_events import outgoing
from payment_service.relay.jetstream import JetStreamTarget
from payment_service.relay.metrics import RelayMetrics
from payment_service.relay.settings import RelaySettings
from payment_service.relay.store import Store
from tests.support.certificates import SERVER, Authority, put
from tests.support.nats_server import NatsServer
from tests.support.world import until

EVENT = outgoing(
    events_pb2.PaymentEvent(
        payment_id="pay_1", sequence=1, kind="payment.initiated", body_json="{}", hash=bytes(32)
    ),
    "/payments",
)

StartNats = Callable[..., NatsServer]


@pytest.fixture
def start_nats(nats_program: Path, tmp_path: Path) -> Iterator[StartNats]:
    """Starts a server with these options."""
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> NatsServer:
            server = NatsServer(nats_program, tmp_path / "jetstream", *options)
            server.start()
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority()
    put(tmp_path / "ca.pem", made.pem)
    return made


@contextlib.asynccontextmanager
async def publishing(
    server: NatsServer, database: str, scheme: str, **settings: Any
) -> AsyncIterator[RelayMetrics]:
    """Publishes one event, for as long as the test lasts."""
    given = RelaySettings(
        relay_nats_url=f"{scheme}://relay:secret@localhost:{server.port}",  # type: ignore[arg-type]
        **settings,
    )
    metrics, store = RelayMetrics(), Store(database)
    await store.open()
    target = JetStreamTarget(store, given, metrics)
    task = asyncio.create_task(target.take(EVENT, "cursor"))
    try:
        yield metrics
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await target.close()
        await store.close()


async def outcome(metrics: RelayMetrics, word: str) -> None:
    async def probe() -> bool:
        return published(metrics, word) > 0

    await until(probe, word)


def published(metrics: RelayMetrics, word: str) -> float:
    name = "payments_relay_published_total"
    return metrics.registry.get_sample_value(name, {"outcome": word}) or 0.0


async def test_an_event_is_published_over_tls(
    start_nats: StartNats, authority: Authority, relay_database: str, tmp_path: Path
) -> None:
    """Both sides show certificates."""
    certificate, key = authority.write(tmp_path, "nats", *SERVER)
    own_certificate, own_key = authority.write(tmp_path, "relay", "dns:payments-relay")
    server = start_nats(
        *("--tlsverify", "--tlscert", str(certificate), "--tlskey", str(key)),
        *("--tlscacert", str(tmp_path / "ca.pem"), "--user", "relay", "--pass", "secret"),
    )
    files = {
        "relay_nats_ca_file": tmp_path / "ca.pem",
        "relay_nats_certificate_file": own_certificate,
        "relay_nats_key_file": own_key,
    }
    async with publishing(server, relay_database, "tls", **files) as metrics:
        await outcome(metrics, "PUBLISHED")


async def test_a_server_that_somebody_else_vouches_for_gets_nothing(
    start_nats: StartNats, authority: Authority, relay_database: str, tmp_path: Path
) -> None:
    certificate, key = Authority("other").write(tmp_path, "nats", *SERVER)
    server = start_nats("--tls", "--tlscert", str(certificate), "--tlskey", str(key))
    ca = {"relay_nats_ca_file": tmp_path / "ca.pem"}
    async with publishing(server, relay_database, "tls", **ca) as metrics:
        await outcome(metrics, "FAILED")
        assert published(metrics, "PUBLISHED") == 0


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_a_server_without_tls_gets_no_password_if_tls_was_named(
    authority: Authority, relay_database: str, tmp_path: Path, scheme: str
) -> None:
    """NATS says in its first line whether it wants TLS, so anybody could say no in its name."""
    heard = bytearray()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.2","auth_required":true}\r\n')
        with contextlib.closing(writer):
            while line := await reader.readline():
                heard.extend(line)

    async with await asyncio.start_server(pretend, "127.0.0.1", 0) as listening:
        server = NatsServer(tmp_path, tmp_path)
        server.port = listening.sockets[0].getsockname()[1]
        ca = {"relay_nats_ca_file": tmp_path / "ca.pem"}
        async with publishing(server, relay_database, scheme, **ca) as metrics:
            await outcome(metrics, "FAILED")
    assert not heard
