"""The whole stack, once for all tests that only call it; and a few people who live in it."""

import itertools
import json
import secrets
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psycopg2
import pytest

from dev.postgres import owner_url
from dev.settings import StackSettings
from dev.stack import Stack
from marketplace.payments.channel import connect_sync
from marketplace.payments.v1 import (
    experts_pb2,
    experts_pb2_grpc,
    money_pb2,
    payments_pb2,
    payments_pb2_grpc,
)
from tests.acceptance.browser import Page, submit
from tests.support.databases import Databases
from tests.support.nursery import Nursery

T = TypeVar("T")

APP = "https://app.example.com"
WEBHOOK_SECRETS = {
    "STRIPE_WEBHOOK_SECRET": "whsec_acceptance_platform",
    "STRIPE_CONNECT_WEBHOOK_SECRET": "whsec_acceptance_connect",
}
_SECONDS = 20.0
_numbers = itertools.count(1)


@dataclass
class World:
    """A running stack and short ways to what a test needs to exist."""

    stack: Stack
    channel: grpc.Channel
    payments: payments_pb2_grpc.PaymentServiceStub = field(init=False)
    experts: experts_pb2_grpc.ExpertServiceStub = field(init=False)

    def __post_init__(self) -> None:
        self.payments = payments_pb2_grpc.PaymentServiceStub(self.channel)
        self.experts = experts_pb2_grpc.ExpertServiceStub(self.channel)

    @property
    def address(self) -> str:
        return self.stack.grpc_target

    def new_expert(self, continue_url: str = "") -> experts_pb2.CreateExpertAccountResponse:
        name = new_name("expert")
        request = experts_pb2.CreateExpertAccountRequest(
            expert_id=name, name="Ada", email=f"{name}@example.com", continue_url=continue_url
        )
        return self.experts.CreateExpertAccount(request)

    def ready_expert(self) -> str:
        """An expert who can be paid."""
        created = self.new_expert()
        submit(created.onboarding_url)
        read = experts_pb2.GetExpertRequest(expert_id=created.expert.expert_id)
        until(
            lambda: self.experts.GetExpert(read).expert.status == experts_pb2.EXPERT_STATUS_READY,
            "the expert is ready",
        )
        return created.expert.expert_id

    def initiated(
        self, expert_id: str, minor_units: int = 10_000, currency: str = "USD"
    ) -> payments_pb2.InitiatePaymentResponse:
        request = payments_pb2.InitiatePaymentRequest(
            client_id="client-1",
            expert_id=expert_id,
            gig_id="gig-1",
            amount=money_pb2.Money(minor_units=minor_units, currency_code=currency),
            idempotency_key=new_name("key"),
        )
        return self.payments.InitiatePayment(request)

    def in_escrow(self, expert_id: str) -> payments_pb2.Payment:
        made = self.initiated(expert_id)
        self.pay(made.client_secret)
        return self.await_state(made.payment.payment_id, payments_pb2.PAYMENT_STATE_IN_ESCROW)

    def captured(self, expert_id: str) -> payments_pb2.Payment:
        payment_id = self.in_escrow(expert_id).payment_id
        request = payments_pb2.CapturePaymentRequest(
            payment_id=payment_id, idempotency_key=new_name("key")
        )
        return self.payments.CapturePayment(request).payment

    def pay(self, client_secret: str, number: str = "4242424242424242") -> Page:
        """As a person does it, on the pay page."""
        url = f"{self.stack.simulator_url}/_pages/pay"
        return submit(url, client_secret=client_secret, number=number)

    def await_state(
        self, payment_id: str, state: payments_pb2.PaymentState.ValueType
    ) -> payments_pb2.Payment:
        read = payments_pb2.GetPaymentRequest(payment_id=payment_id)
        until(
            lambda: self.payments.GetPayment(read).payment.state == state,
            payments_pb2.PaymentState.Name(state),
        )
        return self.payments.GetPayment(read).payment

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask, or set a clock forward in, the database itself."""
        url = owner_url(self.stack.database_url)
        with psycopg2.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
        connection.close()
        return rows

    def control(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The simulator's control API."""
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.stack.simulator_url}/_simulator/{path}"
        with urllib.request.urlopen(url, data, timeout=_SECONDS) as answer:  # noqa: S310 - ours
            return json.load(answer)


def until(probe: Callable[[], T | None], what: str, seconds: float = _SECONDS) -> T:
    """Wait until a probe gives something true, and return it, or fail by its name."""
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return found


def new_name(kind: str) -> str:
    """Never twice, in this session or another."""
    return f"{kind}-{next(_numbers)}-{secrets.token_hex(3)}"


@pytest.fixture(scope="package")
def world(
    databases: Databases, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """For the tests of this directory: its idle processes would slow down those of the others."""
    directory: Path = tmp_path_factory.mktemp("acceptance")
    settings = StackSettings.on_free_ports(directory)
    told = {
        **WEBHOOK_SECRETS,
        "DATABASE_URL": databases.take(),
        "ALLOWED_ORIGINS": APP,
        "MONEY_RATE": "0",  # A test makes more calls than any caller.
    }
    settings = StackSettings.on_free_ports(directory, environment={**settings.environment, **told})
    with (
        Stack(settings, spawn=nursery.spawn) as stack,
        connect_sync(stack.grpc_target) as channel,
    ):
        yield World(stack, channel)


@pytest.fixture(scope="package")
def expert(world: World) -> str:
    """An expert who can be paid, shared by those who do not change them."""
    return world.ready_expert()
