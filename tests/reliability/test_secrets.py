"""Recognisable secrets, addresses and names in every input.

None reaches a log, an error, a metric or a trace.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import psycopg2
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc import aio
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from dev.postgres import owner_url
from dev.settings import StackSettings
from dev.stack import Stack
from marketplace.payments.v1 import experts_pb2
from stripe_simulator.webhooks import sign
from tests.support.contract import METHODS, path_of
from tests.support.stripe import Stripe
from tests.support.traces import Collector, running_collector
from tests.support.valid_requests import valid_requests
from tests.support.world import CHANNEL_OPTIONS, World

_PLATFORM_SECRET = "whsec_canaryPlatform4711"
_CONNECT_SECRET = "whsec_canaryConnect4712"
_NAME = "Canaria Fledgling"
_EMAIL = "canary.fledgling@example.com"
_TEXT = "canaryText4713"
_TOKEN = "canaryToken4714" + "A" * 20
_BEARER = "canaryBearer4715"
#: An error names the caller's own key, but no line of the log does.
_KEY = "canaryKey4716"
#: None of them may be in a log, a metric or a trace.
_CANARIES = [_PLATFORM_SECRET, _CONNECT_SECRET, _NAME, _EMAIL, _TEXT, _TOKEN, _BEARER, _KEY]
#: Ids that callers choose are no secrets: lines and errors name them.
_IDS = {"payment_id", "expert_id", "client_id", "gig_id", "user_id", "operation_id", "event_id"}
_IDS |= {"dispute_id", "discrepancy_id", "warning_id", "former_account_id", "currency_code"}
_IDS |= {"country", "continue_url", "page_token", "adjustment_id"}


@dataclass
class Listener:
    """Everything that the processes write, by the name of the process."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def hear(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    def of_ours(self) -> list[str]:
        return [line for name, line in self.lines if not name.startswith(("simulator", "postgres"))]


def _spoiled(request: Message) -> Iterator[Message]:
    """Yields the request with a canary in each text, one at a time, and in all of them."""
    everything = type(request)()
    everything.CopyFrom(request)
    for message, name, value in _texts(everything):
        setattr(message, name, value)
        yield everything
    for place in range(len(list(_texts(request)))):
        one = type(request)()
        one.CopyFrom(request)
        message, name, value = list(_texts(one))[place]
        setattr(message, name, value)
        yield one


def _texts(message: Any) -> Iterator[tuple[Any, str, Any]]:
    for each in message.DESCRIPTOR.fields:
        if each.type == FieldDescriptor.TYPE_MESSAGE and not each.is_repeated:
            if each.message_type.full_name.startswith("marketplace"):
                yield from _texts(getattr(message, each.name))
        elif each.type == FieldDescriptor.TYPE_STRING and not each.is_repeated:
            if each.name not in _IDS:
                chosen = {
                    "email": _EMAIL,
                    "name": _NAME,
                    "onboarding_token": _TOKEN,
                    "idempotency_key": _KEY,
                }
                yield message, each.name, chosen.get(each.name, _TEXT)
        elif each.type == FieldDescriptor.TYPE_BYTES:
            yield message, each.name, json.dumps({"id": _TEXT, "email": _EMAIL}).encode()


class Canaries:
    """Drives the service with them, and keeps every error."""

    def __init__(self, world: World, http: aiohttp.ClientSession) -> None:
        self.errors: list[str] = []
        self.secrets: set[str] = set()
        self.called: set[str] = set()
        self._world = world
        self._http = http

    async def every_text_of_every_call(self) -> int:
        requests = await valid_requests(self._world)
        sent = 0
        for method in METHODS:
            if method.server_streaming:
                continue
            for request in _spoiled(requests[method.name]):
                await self._send(path_of(method), request)
                sent += 1
        return sent

    async def _send(self, path: str, request: Message) -> None:
        call: aio.UnaryUnaryMultiCallable[bytes, bytes] = self._world.channel.unary_unary(path)
        self.called.add(path)
        metadata = (("authorization", f"Bearer {_BEARER}"), ("traceparent", _TEXT))
        try:
            await call(request.SerializeToString(), timeout=20, metadata=metadata)
        except aio.AioRpcError as error:
            trailers = b" ".join(
                value if isinstance(value, bytes) else value.encode()
                for _, value in error.trailing_metadata() or ()
            )
            self.errors.append(f"{path} {error.details()} {trailers!r}")

    async def a_life(self) -> None:
        """An expert with a name and an address, and payments that succeed, fail and are repaid."""
        world = self._world
        answer = await world.experts.CreateExpertAccount(
            experts_pb2.CreateExpertAccountRequest(expert_id="bird", name=_NAME, email=_EMAIL)
        )
        token = answer.onboarding_url.rpartition("/")[2]
        self.secrets.add(token)
        refreshed = await world.experts.RefreshOnboarding(
            experts_pb2.RefreshOnboardingRequest(expert_id="bird")
        )
        self.secrets.add(refreshed.onboarding_url.rpartition("/")[2])
        account = answer.expert.stripe_account_id
        await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding")
        await world.expert_status("bird", experts_pb2.EXPERT_STATUS_READY)
        for card in ("pm_card_visa", "pm_card_visa_chargeDeclined"):
            initiated = await world.initiate("bird", description=_TEXT)
            self.secrets.add(initiated.client_secret)
            await world.confirm(initiated, card)
        paid = await world.captured("bird")
        await world.refund(paid.payment_id, 100, reason=_TEXT)

    async def the_gateway(self) -> None:
        """Deliveries that are forged, authentic, or no event; and pages with a wrong token."""
        url = f"{self._world.gateway_url}/api/v1/webhooks/stripe"
        body = json.dumps({"id": "evt_1", "object": "event", "type": _TEXT, "email": _EMAIL})
        now = int(time.time())
        for signature in (
            sign(body, (_PLATFORM_SECRET,), now),
            sign(body, (f"{_PLATFORM_SECRET}x",), now),
            f"t={now},v1={_TOKEN}",
            _TOKEN,
        ):
            self.secrets.add(signature)
            async with self._http.post(
                f"{url}?token={_TOKEN}", data=body, headers={"Stripe-Signature": signature}
            ) as answer:
                self.errors.append(await answer.text())
        base = f"{self._world.gateway_url}/onboarding"
        for page in ("return", "refresh", _TOKEN):
            async with self._http.get(f"{base}/{page}", params={"token": _TOKEN}) as answer:
                await answer.text()  # A page's form holds its own token.
            async with self._http.post(f"{base}/{page}", data={"token": _TOKEN}) as answer:
                await answer.text()

    async def a_database_that_refuses_rows(self, database_url: str) -> None:
        """PostgreSQL's own message would show the whole row."""
        connection = psycopg2.connect(owner_url(database_url))
        connection.autocommit = True
        cursor = connection.cursor()
        for table in ("experts", "payments", "operations"):
            cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT canary CHECK (false) NOT VALID")
        request = experts_pb2.CreateExpertAccountRequest(
            expert_id="another", name=_NAME, email=_EMAIL
        )
        await self._send("/marketplace.payments.v1.ExpertService/CreateExpertAccount", request)
        initiation = self._world.initiation("bird", description=_TEXT)
        await self._send("/marketplace.payments.v1.PaymentService/InitiatePayment", initiation)
        for table in ("experts", "payments", "operations"):
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT canary")
        connection.close()

    async def a_stripe_that_answers_nonsense(self) -> None:
        stripe = self._world.stripe
        for action in ("malformed", "truncated", "reset"):
            await stripe.fault("/v1/payment_intents", action)
            await self._send(
                "/marketplace.payments.v1.PaymentService/InitiatePayment",
                self._world.initiation("bird", description=_TEXT),
            )
            await stripe.clear_faults()


def _judge_traces(collector: Collector, canaries: Canaries) -> None:
    """Looks at all that was sent: names, attributes, events, statuses, links and resources."""
    assert {seen.service for seen in collector.spans} >= {"payment_service", "payment_gateway"}
    names = {seen.name for seen in collector.spans}
    assert names >= {path[1:] for path in canaries.called}
    failed = {
        seen.name for seen in collector.spans if seen.span.status.code == Status.STATUS_CODE_ERROR
    }
    # What PostgreSQL refused, and what Stripe answered with nonsense, is where texts come from.
    assert any(name.endswith("/CreateExpertAccount") for name in failed), failed
    assert any(name.startswith("stripe ") for name in failed), failed
    secrets = (*_CANARIES, *canaries.secrets)
    shown = {secret for secret in secrets if secret.encode() in collector.sent}
    assert not shown, [
        (seen.name, secret)
        for seen in collector.spans
        for secret in shown
        if secret in str(seen.span)
    ][:5]
    # An exception's record has its text and the trace through our files.
    assert [seen.name for seen in collector.spans if seen.span.events] == []


@pytest.mark.timeout(240)
def test_no_secret_and_no_persons_data_leaves_the_processes() -> None:
    heard = Listener()
    directory = Path(tempfile.mkdtemp(prefix="payments-canary-"))
    directory.chmod(0o711)  # Under root, PostgreSQL runs as another user.
    settings = StackSettings.on_free_ports(directory / "data")
    environment = {
        **settings.environment,
        "OTEL_BSP_SCHEDULE_DELAY": "500",  # Milliseconds: no span is lost to a full queue.
        "STRIPE_WEBHOOK_SECRET": _PLATFORM_SECRET,
        "STRIPE_CONNECT_WEBHOOK_SECRET": _CONNECT_SECRET,
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "json",
        "MONEY_RATE": "0",
    }

    async def run() -> tuple[Canaries, Collector]:
        async with running_collector() as collector:
            traced = {**environment, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}
            stack = Stack(replace(settings, environment=traced), sink=heard.hear)
            try:
                await asyncio.to_thread(stack.start)
                canaries = await fly(stack)
            finally:
                # The last spans are sent when the processes end.
                await asyncio.to_thread(stack.stop)
            return canaries, collector

    async def fly(stack: Stack) -> Canaries:
        async with (
            aiohttp.ClientSession() as http,
            aio.insecure_channel(stack.settings.grpc_addresses[0], CHANNEL_OPTIONS) as channel,
        ):
            world = World(
                address=stack.settings.grpc_addresses[0],
                database_url=stack.database_url,
                stripe=Stripe(stack.simulator_url, http),
                channel=channel,
                gateway_url=stack.gateway_url,
            )
            canaries = Canaries(world, http)
            await canaries.a_life()
            sent = await canaries.every_text_of_every_call()
            assert sent > 50
            await canaries.the_gateway()
            await canaries.a_stripe_that_answers_nonsense()
            assert stack.postgres is not None
            owner = stack.postgres.admin_url(stack.database_url.rpartition("/")[2])
            await canaries.a_database_that_refuses_rows(owner)
            async with http.get(f"http://127.0.0.1:{stack.settings.metrics_port}/metrics") as page:
                heard.hear("metrics", await page.text())
            world.close()
            return canaries

    try:
        canaries, collector = asyncio.run(run())
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    written = "\n".join(heard.of_ours())
    assert '"phase_failed"' in written, "the database refused nothing"
    assert "payments_rpc_seconds_bucket" in written
    assert '"request"' in written, "the gateway wrote nothing"
    shown = {secret for secret in (*_CANARIES, *canaries.secrets) if secret in written}
    assert not shown, [line for line in heard.of_ours() if any(one in line for one in shown)][:5]
    _judge_traces(collector, canaries)
    assert len(canaries.errors) > 20
    assert len(canaries.secrets) >= 8
    said = "\n".join(canaries.errors)
    private = {*_CANARIES, *canaries.secrets} - {_KEY}
    leaks = [one for one in canaries.errors if any(secret in one for secret in private)]
    assert not leaks, leaks[:5]
    assert _KEY in said, "no error was recognised"
