"""What a test needs of the running system, wherever that runs; tests.support.running starts one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import psycopg2
from google.protobuf.message import Message
from grpc import aio

from dev.postgres import owner_url
from marketplace.payments.v1 import (
    disputes_pb2_grpc,
    events_pb2_grpc,
    experts_pb2,
    experts_pb2_grpc,
    ledger_pb2_grpc,
    onboarding_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    payments_pb2,
    payments_pb2_grpc,
    webhooks_pb2_grpc,
)
from stripe_simulator import RunningSimulator
from tests.support.errors import Refused, Reply
from tests.support.kinds import kind_of
from tests.support.requests import capture_request, money, new_key, new_name, refund_request
from tests.support.service import Service
from tests.support.stripe import Stripe

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
        with contextlib.closing(psycopg2.connect(owner_url(self.database_url))) as connection:
            connection.autocommit = False
            with connection.cursor() as cursor:
                yield cursor
            connection.rollback()

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """One statement of the owner, committed. Never one that could wait for the service."""
        try:
            return self._sql(query, values)
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            self.close()  # A test ended all sessions, this one included.
            return self._sql(query, values)

    def _sql(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = psycopg2.connect(owner_url(self.database_url))
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
        """How many rows every table has. A job books the opening balance in its own time."""
        tables = (
            "experts expert_events payments events movements discrepancies operations "
            "idempotency_keys webhook_events onboarding_tokens payouts disputes postings"
        ).split()
        one = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in tables)  # noqa: S608 - names of ours
        one += " WHERE kind <> 'opening_balance'"
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

    async def until_answered(self, method: str, request: Message) -> Reply:
        """Repeats the call with the same key until there is an answer, as the contract asks."""

        async def probe() -> Reply | None:
            reply = await self.bytes_of(method, request)
            again = reply.code in ("UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED")
            return None if again else reply

        return await until(probe, f"an answer to {method}")

    # ---- experts ----

    async def expert(self, expert_id: str = "", *, ready: bool = True, **fields: Any) -> str:
        """Creates an expert with an account, ready to be paid by default."""
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
        """Returns the discrepancies; ``escrow_underfunded`` is among them only with ``cover``.

        Stripe's fees leave too little on a platform without funds of its own.
        """
        request = operations_pb2.ListDiscrepanciesRequest(payment_id=payment_id)
        found = (await self.operations.ListDiscrepancies(request)).discrepancies
        return [one for one in found if cover or kind_of(one) != "escrow_underfunded"]

    async def pause_webhooks(self) -> None:
        """Pauses webhooks, and the reads of Stripe's lists of events too."""
        await self.stripe.control("POST", "/webhooks", {"paused": True})
        self.sql("UPDATE event_cursors SET next_time = now() + interval '1 hour'")

    async def settle_down(self) -> None:
        """Waits until every webhook has come and no work is left."""
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
