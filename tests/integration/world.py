"""The whole system in one event loop: simulator, PostgreSQL, service and gateway, all of them real.

Everything goes over sockets: gRPC into the service, Stripe's SDK to the simulator, webhooks through
the gateway. Only the processes are missing; test_crash.py has those.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import hmac
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import aiohttp
import grpc
import psycopg2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from gateway.app import running as running_gateway
from gateway.settings import Settings as GatewaySettings
from marketplace.payments.v1 import (
    disputes_pb2_grpc,
    events_pb2_grpc,
    experts_pb2,
    experts_pb2_grpc,
    ledger_pb2_grpc,
    money_pb2,
    onboarding_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    payments_pb2,
    payments_pb2_grpc,
    webhooks_pb2,
    webhooks_pb2_grpc,
)
from payment_service.application.app import App
from payment_service.application.jobs.scheduler import run_background
from payment_service.bootstrap import Wired, add_services, wire
from payment_service.config import Settings
from payment_service.rpc.errors import ErrorInterceptor
from payment_service.server import OPTIONS
from stripe_simulator import Config, RunningSimulator, start

T = TypeVar("T")
Payment = payments_pb2.Payment
State: TypeAlias = payments_pb2.PaymentState.ValueType

PENDING = payments_pb2.PAYMENT_STATE_PENDING
FAILED = payments_pb2.PAYMENT_STATE_FAILED
IN_ESCROW = payments_pb2.PAYMENT_STATE_IN_ESCROW
CAPTURING = payments_pb2.PAYMENT_STATE_CAPTURING
CANCELING = payments_pb2.PAYMENT_STATE_CANCELING
REFUNDING = payments_pb2.PAYMENT_STATE_REFUNDING
CAPTURED = payments_pb2.PAYMENT_STATE_CAPTURED
CANCELED = payments_pb2.PAYMENT_STATE_CANCELED
EXPIRED = payments_pb2.PAYMENT_STATE_EXPIRED
REFUNDED = payments_pb2.PAYMENT_STATE_REFUNDED

PLATFORM_SECRET = "whsec_platform_of_tests"
CONNECT_SECRET = "whsec_connect_of_tests"
SECRET_KEY = "sk_test_simulator"
PUBLISHABLE_KEY = "pk_test_simulator"
_PACKAGE = "marketplace.payments.v1"

#: Generous: nothing here is a measurement, a test only waits for what must come.
PATIENCE = 30.0

#: No retries of gRPC's own, so that a call is a call; and a new server is found at once.
CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)

#: The service's pauses between tries, shortened, so that a test sees many; nothing else.
IMPATIENT: Mapping[str, Any] = {
    "retry_first_seconds": 0.1,
    "unsent_pause_seconds": (0.05, 0.1, 0.2),
    # The minute after which Stripe is believed to have done nothing.
    "arrival_seconds": 0.5,
}

_numbers = itertools.count(1)


async def until(
    probe: Callable[[], Awaitable[T | None]], what: str, seconds: float = PATIENCE
) -> T:
    """Wait for a probe to give something; fail with the sentence if it never does."""
    deadline = time.monotonic() + seconds
    pause = 0.02
    while True:
        found = await probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"never came: {what}"
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, 0.2)


def new_name(prefix: str) -> str:
    """A name that no other test of this run uses."""
    return f"{prefix}-{next(_numbers)}"


def new_key() -> str:
    return secrets.token_hex(8)


def money(minor_units: int, currency: str = "") -> money_pb2.Money:
    return money_pb2.Money(minor_units=minor_units, currency_code=currency)


@dataclass(frozen=True)
class Refused:
    """An error as the caller gets it, with the raw bytes of its details."""

    code: str
    sentence: str
    reason: str
    facts: Mapping[str, str]
    fields: Mapping[str, str]
    raw: bytes

    @classmethod
    def of(cls, error: aio.AioRpcError) -> Refused:
        trailers = dict(error.trailing_metadata() or ())
        raw = trailers.get("grpc-status-details-bin", b"")
        assert isinstance(raw, bytes)
        status = status_pb2.Status.FromString(raw)
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
        return cls(
            code=error.code().name,
            sentence=error.details() or "",
            reason=info.reason,
            facts=dict(info.metadata),
            fields={fault.field: fault.description for fault in bad.field_violations},
            raw=raw,
        )


async def refusal(call: Awaitable[object]) -> Refused:
    """The error of a call that must be refused."""
    try:
        answer = await call
    except aio.AioRpcError as error:
        return Refused.of(error)
    raise AssertionError(f"was not refused: {answer!r}")


@dataclass(frozen=True)
class Reply:
    """An answer as bytes: of the response, or of the status."""

    code: str
    body: bytes
    refused: Refused | None = None


class Service:
    """The payment service inside this process. Stopped and started again, it keeps its address."""

    def __init__(self, settings: Settings, **policy: Any) -> None:
        self.settings = settings
        self._policy = {**IMPATIENT, **policy}
        self._server: aio.Server | None = None
        self._background: asyncio.Task[None] | None = None
        self.wired: Wired | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def app(self) -> App:
        assert self.wired is not None
        return self.wired.app

    async def start(self, *, loops: bool = True) -> None:
        """``loops=False`` leaves the background loops out, for tests that are the background."""
        wired = wire(self.settings)
        app = replace(wired.app, policy=replace(wired.app.policy, **self._policy))
        self.wired = replace(wired, app=app)
        self._server = aio.server(
            interceptors=[ErrorInterceptor(wired.metrics.observe_rpc)], options=OPTIONS
        )
        add_services(self._server, self.wired)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        if loops:
            self.start_loops()

    def start_loops(self) -> None:
        assert self._background is None
        self._background = asyncio.create_task(run_background(self.app))

    async def stop(self) -> None:
        """As ``server.serve`` ends: callers answered, operations drained, connections closed."""
        if self.wired is None or self._server is None:
            return
        self.wired.app.feed.ending.set()
        if self._background is not None:
            self._background.cancel()
            await asyncio.gather(self._background, return_exceptions=True)
            self._background = None
        await self._server.stop(5)
        self.wired.operations.close()
        await self.wired.operations.drain(10)
        await self.wired.stripe.close()
        await asyncio.get_running_loop().run_in_executor(None, self.wired.database.close)
        self.wired = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()


class Stripe:
    """The simulator, as a browser, an operator at the dashboard, and a test see it."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self._http = http

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        """The control API; a refusal fails the test."""
        async with self._http.request(method, f"{self.url}/_simulator{path}", json=body) as answer:
            given = await answer.json()
            assert answer.status == 200, given
            return given

    async def api(
        self, method: str, path: str, *, account: str = "", publishable: bool = False, **params: Any
    ) -> Any:
        """Stripe's own API, as somebody else than the service uses it. Any status is an answer."""
        key = PUBLISHABLE_KEY if publishable else SECRET_KEY
        headers = {"Authorization": f"Bearer {key}"}
        if account:
            headers["Stripe-Account"] = account
        given = {name: str(value) for name, value in params.items()}
        reads = method == "GET"
        async with self._http.request(
            method,
            f"{self.url}/v1{path}",
            headers=headers,
            params=given if reads else None,
            data=None if reads else given,
        ) as answer:
            return await answer.json()

    async def fault(
        self, path: str, action: str, when: str = "before", *, times: int | None = 1, **more: Any
    ) -> None:
        """A rule about POSTs to a path (a pattern), which strikes so often."""
        match = {"method": "POST", "path": path, **more.pop("match", {})}
        given = {"match": match, "when": when, "action": action, **more}
        if times is not None:
            given["times"] = times
        await self.control("POST", "/faults", given)

    async def clear_faults(self) -> None:
        await self.control("DELETE", "/faults")

    async def fired(self) -> int:
        rules = (await self.control("GET", "/faults"))["rules"]
        return sum(rule["fired"] for rule in rules)

    async def effects(self, kind: str = "", payment_intent: str = "") -> list[Any]:
        """What really happened; replays do not count."""
        query = "&".join(
            f"{name}={value}"
            for name, value in (("kind", kind), ("payment_intent", payment_intent))
            if value
        )
        return list((await self.control("GET", f"/effects?{query}"))["effects"])

    async def requests(self, path: str = "", method: str = "POST") -> list[Any]:
        """The requests to a path that ends so, oldest first."""
        found = (await self.control("GET", "/requests?limit=5000"))["requests"]
        return [one for one in found if one["method"] == method and one["path"].endswith(path)]

    async def advance(self, seconds: float) -> None:
        await self.control("POST", "/clock", {"advance_seconds": seconds})

    async def lines(self, account: str = "") -> list[Any]:
        """All balance transactions of an account (the platform's own by default)."""
        found: list[Any] = []
        more: dict[str, Any] = {}
        while True:
            page = await self.api(
                "GET", "/balance_transactions", account=account, limit=100, **more
            )
            found += page["data"]
            if not page["has_more"]:
                return found
            more = {"starting_after": found[-1]["id"]}


@dataclass
class World:
    """What a test needs of the running system, and the walks of several steps."""

    address: str
    database_url: str
    stripe: Stripe
    channel: aio.Channel
    service: Service | None = None
    simulator: RunningSimulator | None = None
    gateway_url: str = ""
    _connection: Any = None
    payments: payments_pb2_grpc.PaymentServiceAsyncStub = field(init=False)
    experts: experts_pb2_grpc.ExpertServiceAsyncStub = field(init=False)
    disputes: disputes_pb2_grpc.DisputeServiceAsyncStub = field(init=False)
    events: events_pb2_grpc.EventServiceAsyncStub = field(init=False)
    ledger: ledger_pb2_grpc.LedgerServiceAsyncStub = field(init=False)
    operations: operations_pb2_grpc.OperationsServiceAsyncStub = field(init=False)
    webhooks: webhooks_pb2_grpc.WebhookServiceAsyncStub = field(init=False)
    onboarding: onboarding_pb2_grpc.OnboardingServiceAsyncStub = field(init=False)

    def __post_init__(self) -> None:
        channel = self.channel
        self.payments = payments_pb2_grpc.PaymentServiceStub(channel)
        self.disputes = disputes_pb2_grpc.DisputeServiceStub(channel)
        self.experts = experts_pb2_grpc.ExpertServiceStub(channel)
        self.events = events_pb2_grpc.EventServiceStub(channel)
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(channel)
        self.operations = operations_pb2_grpc.OperationsServiceStub(channel)
        self.webhooks = webhooks_pb2_grpc.WebhookServiceStub(channel)
        self.onboarding = onboarding_pb2_grpc.OnboardingServiceStub(channel)

    # ---- the database ----

    @contextlib.contextmanager
    def session(self) -> Iterator[Any]:
        """A cursor of a session of the test's own, in a transaction that is rolled back."""
        with contextlib.closing(psycopg2.connect(self.database_url)) as connection:
            connection.autocommit = False
            with connection.cursor() as cursor:
                yield cursor
            connection.rollback()

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """One statement, committed. Never one that could wait for the service: it would hang."""
        try:
            return self._sql(query, values)
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            self.close()  # A test ended all sessions, this one included.
            return self._sql(query, values)

    def _sql(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = psycopg2.connect(self.database_url)
            self._connection.autocommit = True
        with self._connection.cursor() as cursor:
            cursor.execute(query, values)
            if cursor.description:
                return list(cursor.fetchall())
            # psycopg2 has no rows to fetch where there are no columns: `SELECT FROM payments`.
            return [()] * cursor.rowcount if cursor.statusmessage.startswith("SELECT") else []

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def counts(self) -> dict[str, int]:
        """How many rows every table has."""
        tables = (
            "experts expert_events payments events postings movements discrepancies operations "
            "idempotency_keys webhook_events onboarding_tokens payouts disputes"
        ).split()
        one = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in tables)  # noqa: S608 - names of ours
        return {name: int(count) for name, count in self.sql(one)}

    # ---- raw calls ----

    async def raw(self, method: str, request: bytes, timeout: float = 60) -> Reply:  # noqa: ASYNC109 - gRPC's own
        """A call by its path, in bytes and out."""
        call: aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            f"/{_PACKAGE}.{method}"
        )
        try:
            return Reply("OK", await call(request, timeout=timeout))
        except aio.AioRpcError as error:
            refused = Refused.of(error)
            return Reply(refused.code, refused.raw, refused)

    async def bytes_of(self, method: str, request: Message) -> Reply:
        """A call of PaymentService, answered as the bytes on the wire."""
        return await self.raw(f"PaymentService/{method}", request.SerializeToString())

    async def patiently(self, method: str, request: Message) -> Reply:
        """As the contract tells callers: ask again with the same key until there is an answer."""

        async def probe() -> Reply | None:
            reply = await self.bytes_of(method, request)
            again = reply.code in ("UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED")
            return None if again else reply

        return await until(probe, f"an answer to {method}")

    # ---- experts ----

    async def expert(self, expert_id: str = "", *, ready: bool = True, **fields: Any) -> str:
        """An expert with an account; ready to be paid unless told otherwise."""
        expert_id = expert_id or new_name("expert")
        answer = await self.experts.CreateExpertAccount(
            experts_pb2.CreateExpertAccountRequest(
                expert_id=expert_id,
                name="Ann Expert",
                email=f"{expert_id}@example.com",
                **fields,
            )
        )
        if ready:
            account = answer.expert.stripe_account_id
            await self.stripe.control("POST", f"/accounts/{account}/complete_onboarding")
            await self.expert_status(expert_id, experts_pb2.EXPERT_STATUS_READY)
        return expert_id

    async def expert_status(
        self, expert_id: str, *statuses: experts_pb2.ExpertStatus.ValueType
    ) -> experts_pb2.Expert:
        """Wait until the expert stands so, as the service itself says."""

        async def probe() -> experts_pb2.Expert | None:
            request = experts_pb2.GetExpertRequest(expert_id=expert_id)
            expert = (await self.experts.GetExpert(request)).expert
            return expert if expert.status in statuses else None

        return await until(probe, f"{expert_id} in {statuses}")

    def account_of(self, expert_id: str) -> str:
        [(account,)] = self.sql(
            "SELECT stripe_account_id FROM experts WHERE expert_id = %s", expert_id
        )
        return str(account)

    # ---- payments ----

    def initiation(
        self, expert_id: str, amount: int = 10_000, currency: str = "USD", **fields: Any
    ) -> payments_pb2.InitiatePaymentRequest:
        given: dict[str, Any] = {
            "client_id": "client-1",
            "expert_id": expert_id,
            "gig_id": "gig-1",
            "amount": money(amount, currency),
            "description": "A website",
            "idempotency_key": new_key(),
        }
        return payments_pb2.InitiatePaymentRequest(**{**given, **fields})

    async def initiate(
        self, expert_id: str, amount: int = 10_000, currency: str = "USD", **fields: Any
    ) -> payments_pb2.InitiatePaymentResponse:
        return await self.payments.InitiatePayment(
            self.initiation(expert_id, amount, currency, **fields)
        )

    async def confirm(
        self, initiated: payments_pb2.InitiatePaymentResponse, card: str = "pm_card_visa"
    ) -> Any:
        """What the client's browser does with the secret."""
        return await self.stripe.api(
            "POST",
            f"/payment_intents/{initiated.payment.payment_intent_id}/confirm",
            publishable=True,
            client_secret=initiated.client_secret,
            payment_method=card,
        )

    async def get(self, payment_id: str) -> Payment:
        request = payments_pb2.GetPaymentRequest(payment_id=payment_id)
        return (await self.payments.GetPayment(request)).payment

    async def in_state(self, payment_id: str, *states: State) -> Payment:
        """Wait until the payment stands so, with nothing left to wait for."""

        async def probe() -> Payment | None:
            payment = await self.get(payment_id)
            return payment if payment.state in states else None

        return await until(probe, f"{payment_id} in {states}")

    async def escrowed(
        self,
        expert_id: str = "",
        amount: int = 10_000,
        currency: str = "USD",
        card: str = "pm_card_visa",
        **fields: Any,
    ) -> Payment:
        """A payment whose money is in escrow."""
        expert_id = expert_id or await self.expert()
        initiated = await self.initiate(expert_id, amount, currency, **fields)
        shown = await self.confirm(initiated, card)
        on_platform = initiated.payment.escrow_mode == payments_pb2.ESCROW_MODE_PLATFORM_HOLD
        expected = "succeeded" if on_platform else "requires_capture"
        assert shown.get("status") == expected, shown
        return await self.in_state(initiated.payment.payment_id, IN_ESCROW)

    async def captured(
        self,
        expert_id: str = "",
        amount: int = 10_000,
        currency: str = "USD",
        card: str = "pm_card_visa",
        **fields: Any,
    ) -> Payment:
        """A payment that was captured whole."""
        payment = await self.escrowed(expert_id, amount, currency, card, **fields)
        return await self.capture(payment.payment_id)

    async def capture(self, payment_id: str, amount: int = 0, **fields: Any) -> Payment:
        return (
            await self.payments.CapturePayment(capture_request(payment_id, amount, **fields))
        ).payment

    async def refund(self, payment_id: str, amount: int = 0, **fields: Any) -> Payment:
        return (
            await self.payments.RefundPayment(refund_request(payment_id, amount, **fields))
        ).payment

    # ---- what is left to do ----

    async def discrepancies(
        self, payment_id: str = "", *, cover: bool = False
    ) -> list[operations_pb2.Discrepancy]:
        """What was found. Stripe's fees leave too little on a platform that nobody funds: that it
        does not ``cover`` what it holds is only told where it is asked for."""
        request = operations_pb2.ListDiscrepanciesRequest(payment_id=payment_id)
        found = (await self.operations.ListDiscrepancies(request)).discrepancies
        return [one for one in found if cover or one.kind != "escrow_underfunded"]

    async def deafen(self) -> None:
        """From now on no webhook comes, and Stripe's lists of events are not read either."""
        await self.stripe.control("POST", "/webhooks", {"paused": True})
        self.sql("UPDATE event_cursors SET next_time = now() + interval '1 hour'")

    async def quiet(self) -> None:
        """Wait until every webhook has come and nothing is waiting to be done."""
        paused = (await self.stripe.control("GET", "/webhooks?limit=0"))["settings"]["paused"]
        if not paused:
            settled = await self.stripe.control("POST", "/webhooks/settle", {"seconds": PATIENCE})
            assert settled["settled"], "webhooks are still on their way"

        async def probe() -> bool:
            [(waiting,)] = self.sql(
                "SELECT (SELECT count(*) FROM webhook_events WHERE state = 'WAITING') + "
                "(SELECT count(*) FROM operations WHERE state IN ('STARTED', 'UNKNOWN'))"
            )
            return int(waiting) == 0

        await until(probe, "nothing left to do")


def capture_request(
    payment_id: str, amount: int | money_pb2.Money = 0, **fields: Any
) -> payments_pb2.CapturePaymentRequest:
    """An amount of zero means that none is named."""
    given: dict[str, Any] = {"idempotency_key": new_key()}
    if amount:
        given["amount"] = money(amount) if isinstance(amount, int) else amount
    return payments_pb2.CapturePaymentRequest(payment_id=payment_id, **{**given, **fields})


def refund_request(
    payment_id: str, amount: int | money_pb2.Money = 0, **fields: Any
) -> payments_pb2.RefundPaymentRequest:
    """An amount of zero means that none is named."""
    given: dict[str, Any] = {"idempotency_key": new_key()}
    if amount:
        given["amount"] = money(amount) if isinstance(amount, int) else amount
    return payments_pb2.RefundPaymentRequest(payment_id=payment_id, **{**given, **fields})


@contextlib.asynccontextmanager
async def running_world(
    database_url: str,
    *,
    policy: Mapping[str, Any] | None = None,
    simulator: Mapping[str, Any] | None = None,
    loops: bool = True,
    **settings: Any,
) -> AsyncIterator[World]:
    """Start everything on free ports; end everything, whatever the test did."""
    async with contextlib.AsyncExitStack() as stack:
        given: dict[str, Any] = {"port": 0, "seed": "tests", **(simulator or {})}
        simulated = await start(Config(**given))
        stack.push_async_callback(simulated.close)
        service = Service(
            Settings(
                **{
                    "database_url": database_url,
                    "stripe_secret_key": SECRET_KEY,
                    "stripe_publishable_key": PUBLISHABLE_KEY,
                    "stripe_api_base": simulated.base_url,
                    "stripe_webhook_secret": (PLATFORM_SECRET,),
                    "stripe_connect_webhook_secret": (CONNECT_SECRET,),
                    "platform_settlement_currencies": ("USD", "EUR", "GBP", "JPY"),
                    "metrics_port": 0,
                    **settings,
                }
            ),
            **(policy or {}),
        )
        await service.start(loops=loops)
        stack.push_async_callback(service.stop)
        gateway = await stack.enter_async_context(
            running_gateway(GatewaySettings(core_address=(service.address,), gateway_port=0))
        )
        http = await stack.enter_async_context(aiohttp.ClientSession())
        channel = await stack.enter_async_context(
            aio.insecure_channel(service.address, CHANNEL_OPTIONS)
        )
        stripe = Stripe(simulated.base_url, http)
        await stripe.control(
            "POST",
            "/webhooks",
            {"targets": webhook_targets(gateway), "retry_seconds": [0.2, 0.5, 1.0]},
        )
        world = World(
            address=service.address,
            database_url=database_url,
            stripe=stripe,
            channel=channel,
            service=service,
            simulator=simulated,
            gateway_url=gateway,
        )
        stack.callback(world.close)
        yield world


@contextlib.asynccontextmanager
async def replica(world: World, *, loops: bool = True, **settings: Any) -> AsyncIterator[World]:
    """Another service on the same database, with other settings if wished."""
    assert world.service is not None
    given = world.service.settings.model_copy(update=settings)
    service = Service(given)
    await service.start(loops=loops)
    try:
        async with aio.insecure_channel(service.address, CHANNEL_OPTIONS) as channel:
            other = dataclasses.replace(
                world, address=service.address, channel=channel, service=service, _connection=None
            )
            yield other
            other.close()
    finally:
        await service.stop()


def webhook_targets(gateway_url: str) -> Sequence[Mapping[str, object]]:
    return [
        {
            "scope": scope,
            "url": f"{gateway_url}/api/v1/webhooks/stripe{suffix}",
            "secrets": [secret],
        }
        for scope, suffix, secret in (
            ("platform", "", PLATFORM_SECRET),
            ("connect", "/connect", CONNECT_SECRET),
        )
    ]


def code_of(name: str) -> grpc.StatusCode:
    return grpc.StatusCode[name]


def signed(payload: bytes, secret: str, *, age: float = 0, scheme: str = "v1") -> str:
    """A Stripe-Signature header, as old as told."""
    moment = int(time.time() - age)
    digest = hmac.new(secret.encode(), f"{moment}.".encode() + payload, hashlib.sha256)
    return f"t={moment},{scheme}={digest.hexdigest()}"


def new_event(kind: str, shown: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """An event as Stripe sends it."""
    return {
        "id": f"evt_{secrets.token_hex(12)}",
        "object": "event",
        "type": kind,
        "livemode": False,
        "created": int(time.time()),
        "data": {"object": dict(shown)},
        **fields,
    }


def ingestion(
    event: Mapping[str, Any] | bytes,
    *,
    secret: str = PLATFORM_SECRET,
    endpoint: webhooks_pb2.WebhookEndpoint.ValueType = webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM,
    age: float = 0,
    scheme: str = "v1",
) -> webhooks_pb2.IngestEventRequest:
    payload = event if isinstance(event, bytes) else json.dumps(event).encode()
    signature = signed(payload, secret, age=age, scheme=scheme)
    return webhooks_pb2.IngestEventRequest(endpoint=endpoint, payload=payload, signature=signature)
