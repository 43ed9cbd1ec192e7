"""Two workers of one machine, as real processes: they share calls, die, come back, and end."""

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import grpc
import pytest

from dev.caller import call_of
from dev.processes import children_of, started_at
from dev.settings import StackSettings
from dev.stack import Stack
from marketplace.payments.channel import connect_sync
from marketplace.payments.v1 import money_pb2, payments_pb2, payments_pb2_grpc
from tests.acceptance.browser import look
from tests.acceptance.conftest import WEBHOOK_SECRETS, World, new_name, until
from tests.acceptance.health import SERVING, check
from tests.support.databases import Databases
from tests.support.nursery import Nursery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
WORKERS = 2


@pytest.fixture
def pair(databases: Databases, nursery: Nursery, tmp_path: Path) -> Iterator[World]:
    """A stack whose one replica has two workers, and a channel over both."""
    settings = StackSettings.on_free_ports(tmp_path, workers=WORKERS)
    told = {**WEBHOOK_SECRETS, "DATABASE_URL": databases.take(), "MONEY_RATE": "0"}
    settings = StackSettings.on_free_ports(
        tmp_path, workers=WORKERS, environment={**settings.environment, **told}
    )
    ports = settings.grpc_ports(0)
    with (
        Stack(settings, spawn=nursery.spawn) as stack,
        connect_sync(f"127.0.0.1:{ports.start}-{ports.stop - 1}") as channel,
    ):
        yield World(stack, channel)


def read(world: World, times: int) -> None:
    """Asks for a payment that does not exist, which every worker can answer."""
    for _ in range(times):
        with pytest.raises(grpc.RpcError) as refused:
            world.payments.GetPayment(payments_pb2.GetPaymentRequest(payment_id="pay_none"))
        assert call_of(refused.value).code() is grpc.StatusCode.NOT_FOUND


def counted(world: World) -> dict[int, float]:
    """How many reads each worker has answered, by the one metrics page."""
    page = look(world.stack.metrics_urls[0]).text
    found = re.findall(
        r'^payments_rpc_seconds_count\{.*GetPayment",worker="(\d)"\} (\S+)$', page, re.MULTILINE
    )
    return {int(worker): float(count) for worker, count in found}


def starts(world: World) -> dict[str, float]:
    page = look(world.stack.metrics_urls[0]).text
    found = re.findall(r'^payments_worker_starts_total\{worker="(\d)"\} (\S+)$', page, re.MULTILINE)
    return {worker: float(count) for worker, count in found}


def test_a_killed_worker_comes_back_and_the_other_serves_meanwhile(pair: World) -> None:
    for port in pair.stack.settings.grpc_ports(0):
        with connect_sync(f"127.0.0.1:{port}") as channel:
            assert check(channel, "").status == SERVING
    read(pair, 40)
    before = counted(pair)
    assert set(before) == {0, 1}, "the client spreads its calls"
    assert min(before.values()) >= 10, before
    assert starts(pair) == {"0": 1.0, "1": 1.0}
    ready = pair.stack.metrics_urls[0].replace("/metrics", "/ready")
    assert look(ready).status == 200

    parent = pair.stack.services[0].pid
    os.kill(children_of(parent)[1], signal.SIGKILL)
    read(pair, 40)  # None fails: the client leaves the worker that died.
    assert look(ready).status == 200, "one worker is enough"
    until(lambda: starts(pair) == {"0": 1.0, "1": 2.0}, "the worker is back, and counted")
    pair.stack.wait_until_serving(0)
    read(pair, 40)
    after = counted(pair)
    assert after[0] > before[0], "a worker that lives keeps its counters"

    def gets_calls() -> bool:
        read(pair, 4)
        return counted(pair).get(1, 0) > 0

    until(gets_calls, "it gets calls again")
    assert pair.stack.services[0].running
    assert len(children_of(parent)) == WORKERS + 1


def test_a_port_that_is_taken_for_a_moment_ends_nobody(pair: World) -> None:
    """A connection to the database or to Stripe may get the port of a worker that has died."""
    service, port = pair.stack.services[0], pair.stack.settings.grpc_ports(0)[1]
    children = children_of(service.pid)
    os.kill(children[1], signal.SIGKILL)
    with closing(take(port)):
        until(lambda: sum("is taken" in line for line in service.tail) > 0, "a start that fails")
        read(pair, 8)
    pair.stack.wait_until_serving(0)
    assert children_of(service.pid)[0] == children[0], "the other one was left alone"


def take(port: int) -> socket.socket:
    """Listens on a port as soon as its process has left it."""
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def bound() -> bool:
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True

    until(bound, "the port")
    taken.listen()
    return taken


def test_all_drain_together(pair: World) -> None:
    """Calls are in progress in both workers when the parent is told to end."""
    expert = pair.ready_expert()
    pair.control("settings", {"latency_ms": 1500})
    service = pair.stack.services[0]
    children = children_of(service.pid)

    def pay(stub: payments_pb2_grpc.PaymentServiceStub) -> str:
        request = payments_pb2.InitiatePaymentRequest(
            client_id="client-1",
            expert_id=expert,
            gig_id="gig-1",
            amount=money_pb2.Money(minor_units=10_000, currency_code="USD"),
            idempotency_key=new_name("key"),
        )
        return stub.InitiatePayment(request).payment.payment_id

    with ExitStack() as channels, ThreadPoolExecutor(WORKERS) as pool:
        stubs = [
            payments_pb2_grpc.PaymentServiceStub(
                channels.enter_context(connect_sync(f"127.0.0.1:{port}"))
            )
            for port in pair.stack.settings.grpc_ports(0)
        ]
        paying = [pool.submit(pay, stub) for stub in stubs]
        until(
            lambda: (
                pair.query("SELECT count(*) FROM operations WHERE state = 'STARTED'")
                == [(WORKERS,)]
            ),
            "both are on their way to Stripe",
        )
        service.ask_to_stop()
        assert all(call.result(20).startswith("pay_") for call in paying)
    assert service.wait(20)
    assert service.returncode == 0
    assert all(started_at(pid) is None for pid in children)
    assert "Traceback" not in "\n".join(service.tail)
    pair.control("settings", {"latency_ms": 0})


def test_workers_end_with_their_parent(pair: World) -> None:
    parent = pair.stack.services[0].pid
    children = children_of(parent)
    assert len(children) == WORKERS + 1
    os.kill(parent, signal.SIGKILL)
    until(lambda: all(started_at(pid) is None for pid in children), "nobody is left behind")


def test_a_worker_that_cannot_start_ends_all(nursery: Nursery, pair: World) -> None:
    service = pair.stack.services[0]
    environment = service.environment | {"METRICS_PORT": "0"}
    service.ask_to_stop()
    assert service.wait(20)
    second = pair.stack.settings.grpc_ports(0)[1]
    with closing(socket.create_server(("127.0.0.1", second))):
        done = nursery.run("payment_service", "serve", "--workers", "2", env=environment)
    assert done.returncode == 2, done.stdout
    assert f"GRPC_PORT: 127.0.0.1:{second} is taken" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--workers", "2"], {"METRICS_PORT": "50052"}, "METRICS_PORT is among them"),
        (["--workers", "3"], {"GATEWAY_PORT": "50053"}, "GATEWAY_PORT is among them"),
        ([], {"WORKERS": "8"}, "WORKERS=8 with 21 connections each need 168"),
        (["--workers", "0"], {}, "WORKERS"),
    ],
)
def test_what_cannot_work_is_refused(
    nursery: Nursery, arguments: list[str], environment: dict[str, str], said: str
) -> None:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    given = {"DATABASE_URL": "postgresql://user@127.0.0.1:1/payments", "GRPC_PORT": "50051"}
    told = {**inherited, **given, **environment}
    done = nursery.run("payment_service", "serve", *arguments, env=told)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
