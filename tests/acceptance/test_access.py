"""Real processes that authenticate: certificates on every hop, rotated while calls are made."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from dev import probes
from dev.access import Access
from dev.caller import call_of
from dev.settings import StackSettings
from dev.stack import Stack
from marketplace.payments.channel import connect_sync
from marketplace.payments.credentials import Tls
from marketplace.payments.errors import refusal_of
from marketplace.payments.v1 import payments_pb2, payments_pb2_grpc
from tests.acceptance.conftest import WEBHOOK_SECRETS
from tests.support.certificates import SERVER, Authority, put
from tests.support.databases import Databases
from tests.support.nursery import Nursery

GATEWAY = "spiffe://example.org/ns/shop/sa/gateway"
#: Retries may use up the deadline.
_NO_CONNECTION = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
OPERATOR = "spiffe://example.org/ns/shop/sa/operator"


class Certified:
    """A stack with ``AUTH=mtls``, and the authority of its certificates."""

    def __init__(self, directory: Path, database_url: str, nursery: Nursery) -> None:
        self.directory = directory
        self.authority = Authority()
        put(directory / "ca.pem", self.authority.pem)
        for name, names in (("server", SERVER), ("gateway", [GATEWAY]), ("operator", [OPERATOR])):
            self.authority.write(directory, name, *names)
        callers = [
            {"identity": GATEWAY, "name": "gateway", "roles": ["GATEWAY"]},
            {"identity": OPERATOR, "name": "ann", "roles": ["OPERATOR"]},
        ]
        put(directory / "callers.json", json.dumps({"callers": callers}).encode())
        told = {
            **WEBHOOK_SECRETS,
            "DATABASE_URL": database_url,
            "AUTH": "mtls",
            "AUTH_CALLERS_FILE": str(directory / "callers.json"),
            "GRPC_TLS_CERTIFICATE_FILE": str(directory / "server.pem"),
            "GRPC_TLS_KEY_FILE": str(directory / "server-key.pem"),
            "GRPC_TLS_CLIENT_CA_FILE": str(directory / "ca.pem"),
            "CORE_TLS_CA_FILE": str(directory / "ca.pem"),
            "CORE_TLS_CERTIFICATE_FILE": str(directory / "gateway.pem"),
            "CORE_TLS_KEY_FILE": str(directory / "gateway-key.pem"),
        }
        plain = StackSettings.on_free_ports(directory / "data")
        settings = StackSettings.on_free_ports(
            directory / "data", environment={**plain.environment, **told}
        )
        self.stack = Stack(settings, spawn=nursery.spawn)

    def tls(self, name: str) -> Tls:
        return Tls(
            self.directory / "ca.pem",
            self.directory / f"{name}.pem",
            self.directory / f"{name}-key.pem",
        )


@pytest.fixture
def certified(databases: Databases, nursery: Nursery, tmp_path: Path) -> Iterator[Certified]:
    made = Certified(tmp_path, databases.take(), nursery)
    with made.stack:
        yield made


@pytest.mark.slow
def test_every_hop_shows_a_certificate_and_takes_new_ones(certified: Certified) -> None:
    stack = certified.stack
    request = payments_pb2.ListPaymentsRequest(user_id="client-1")
    # Nobody comes in without a certificate of the authority.
    for tls in (None, Tls(certified.directory / "ca.pem")):
        with (
            connect_sync(stack.grpc_target, tls=tls) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            payments_pb2_grpc.PaymentServiceStub(channel).ListPayments(request, timeout=3)
        assert call_of(caught.value).code() in _NO_CONNECTION
        assert not probes.serves(stack.grpc_target, tls)
    # Its authority knows the stranger, and the list of callers does not.
    certified.authority.write(certified.directory, "stranger", "spiffe://example.org/stranger")
    with (
        connect_sync(stack.grpc_target, tls=certified.tls("stranger")) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        payments_pb2_grpc.PaymentServiceStub(channel).ListPayments(request, timeout=5)
    assert call_of(caught.value).code() is grpc.StatusCode.UNAUTHENTICATED
    assert refusal_of(caught.value).reason == "UNAUTHENTICATED"
    with connect_sync(stack.grpc_target, tls=certified.tls("operator")) as channel:
        payments = payments_pb2_grpc.PaymentServiceStub(channel)
        ending, failures, calls = threading.Event(), list[str](), 0

        def keep_calling() -> None:
            nonlocal calls
            while not ending.is_set():
                try:
                    payments.ListPayments(request, timeout=10)
                except grpc.RpcError as error:
                    failures.append(str(error))
                if not probes.answers(stack.settings.gateway_port, "/health"):
                    failures.append("the gateway does not reach the core")
                calls += 1
                ending.wait(0.02)  # Else the calls alone keep two processors busy.

        traffic = threading.Thread(target=keep_calling)
        traffic.start()
        for name, names in (("server", SERVER), ("gateway", [GATEWAY]), ("operator", [OPERATOR])):
            certified.authority.write(certified.directory, name, *names)
            time.sleep(1.5)
        ending.set()
        traffic.join(20)
    assert failures == []
    assert calls > 10


class _Keys(http.server.BaseHTTPRequestHandler):
    """Answers with the key set of the directory that the server has."""

    content = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's
        pass


@pytest.mark.slow
def test_a_service_without_keys_is_not_healthy_until_it_has_them(
    databases: Databases, nursery: Nursery, tmp_path: Path
) -> None:
    """The address of the keys is down at the start. It comes up once the service has said so."""
    issuing = Access.of(StackSettings(data_dir=tmp_path, environment={"AUTH": "jwt"}))
    issuing.prepare()
    _Keys.content = (issuing.directory / "jwks.json").read_bytes()
    server = http.server.HTTPServer(("127.0.0.1", 0), _Keys, bind_and_activate=False)
    server.server_bind()  # the port is ours, but nobody answers yet
    seen: list[str] = []

    def sink(name: str, line: str) -> None:
        if "access_source_failed" in line and not seen:
            seen.append(line)
            server.server_activate()
            threading.Thread(target=server.serve_forever, daemon=True).start()

    plain = StackSettings.on_free_ports(tmp_path / "data")
    told = {
        **WEBHOOK_SECRETS,
        "DATABASE_URL": databases.take(),
        "AUTH": "jwt",
        "AUTH_ISSUER": "development",
        "AUTH_JWKS": f"http://127.0.0.1:{server.server_port}/jwks.json",
        "CORE_TOKEN_FILE": str(issuing.directory / "gateway.token"),
    }
    settings = StackSettings.on_free_ports(
        tmp_path / "data", environment={**plain.environment, **told}
    )
    try:
        with (
            Stack(settings, sink=sink, spawn=nursery.spawn) as stack,
            connect_sync(stack.grpc_target, token=issuing.token) as channel,
        ):
            assert len(seen) == 1
            assert probes.answers(stack.settings.gateway_port, "/health")
            payments = payments_pb2_grpc.PaymentServiceStub(channel)
            payments.ListPayments(payments_pb2.ListPaymentsRequest(user_id="client-1"), timeout=10)
    finally:
        if seen:
            server.shutdown()
        server.server_close()
