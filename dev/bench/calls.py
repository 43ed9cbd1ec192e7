"""The calls that are measured, and how load is put on them."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import grpc

from dev.bench.costs import Backends
from marketplace.payments.v1 import (
    experts_pb2,
    experts_pb2_grpc,
    money_pb2,
    payments_pb2,
    payments_pb2_grpc,
)

_EXPERT: Final = "expert-bench"
_REST_SECONDS: Final = 60.0

Call = Callable[[], Awaitable[object]]


@dataclass
class Answers:
    """How long the answered calls took, and how the others ended."""

    seconds: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    #: From the first call to the last answer.
    elapsed: float = 0.0

    async def take(self, call: Call, since: float) -> None:
        """Measures from ``since``: when the call was due, not when there was time for it."""
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            self.refused[error.code().name] += 1
            return
        self.seconds.append(time.perf_counter() - since)

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.elapsed if self.elapsed else 0.0

    def milliseconds(self, percent: int) -> float:
        if len(self.seconds) < 2:
            return 0.0
        return statistics.quantiles(self.seconds, n=100)[percent - 1] * 1000


async def closed_loop(calls: Sequence[Call], at_once: int, seconds: float = 3600.0) -> Answers:
    """Makes the calls, always so many at once, and stops beginning new ones after ``seconds``."""
    answers, left = Answers(), iter(calls)
    began = time.perf_counter()

    async def work() -> None:
        for call in left:
            if time.perf_counter() - began > seconds:
                return
            await answers.take(call, time.perf_counter())

    await asyncio.gather(*(work() for _ in range(at_once)))
    answers.elapsed = time.perf_counter() - began
    return answers


async def open_loop(calls: Sequence[Call], per_second: float) -> Answers:
    """Makes calls at fixed times, whether or not those before are answered."""
    answers, began = Answers(), time.perf_counter()
    tasks = []
    for number, call in enumerate(calls):
        due = began + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(answers.take(call, due)))
    await asyncio.gather(*tasks)
    answers.elapsed = time.perf_counter() - began
    return answers


class Marketplace:
    """A caller of the service: one expert who can be paid, and as many payments as are wanted."""

    def __init__(
        self, channel: grpc.aio.Channel, web: aiohttp.ClientSession, simulator_url: str
    ) -> None:
        # The stub of an asyncio channel has a type of its own, though no class of its own.
        self.payments: payments_pb2_grpc.PaymentServiceAsyncStub = (
            payments_pb2_grpc.PaymentServiceStub(channel)
        )
        self._experts: experts_pb2_grpc.ExpertServiceAsyncStub = experts_pb2_grpc.ExpertServiceStub(
            channel
        )
        self._web = web
        self._control_url = f"{simulator_url}/_simulator"
        self._number = 0
        #: The payments that the initiations made, newest last.
        self.made: list[payments_pb2.Payment] = []

    async def prepare(self) -> None:
        """Creates the expert, and waits until he can be paid."""
        request = experts_pb2.CreateExpertAccountRequest(
            expert_id=_EXPERT, name="Ada Lovelace", email="ada@example.com"
        )
        account = (await self._experts.CreateExpertAccount(request)).expert.stripe_account_id
        await self.control(f"accounts/{account}/complete_onboarding", {"outcome": "complete"})
        read = experts_pb2.GetExpertRequest(expert_id=_EXPERT)
        for _ in range(400):
            expert = (await self._experts.GetExpert(read)).expert
            if expert.status == experts_pb2.EXPERT_STATUS_READY:
                return
            await asyncio.sleep(0.05)
        raise TimeoutError("the expert did not become ready")

    async def control(self, path: str, body: dict[str, Any]) -> None:
        async with self._web.post(f"{self._control_url}/{path}", json=body) as answer:
            answer.raise_for_status()
            await answer.read()

    def request(self) -> payments_pb2.InitiatePaymentRequest:
        self._number += 1
        return payments_pb2.InitiatePaymentRequest(
            client_id=f"client-{self._number % 100}",
            expert_id=_EXPERT,
            gig_id=f"gig-{self._number}",
            amount=money_pb2.Money(minor_units=10_000, currency_code="USD"),
            idempotency_key=f"initiate-{self._number}-{time.time_ns()}",
        )

    async def initiate(self) -> None:
        self.made.append(await self.initiated())

    async def initiated(self) -> payments_pb2.Payment:
        return (await self.payments.InitiatePayment(self.request())).payment

    async def live(self, number: int = 1) -> list[payments_pb2.Payment]:
        """Takes payments through their lives, and returns them: initiated, confirmed, captured."""
        for _ in range(number):
            await self.initiate()
        lived = self.made[-number:]
        for payment in lived:
            await self.confirm(payment)()
        for payment in lived:
            await self.held(payment.payment_id)
            await self.capture(payment)()
        return lived

    async def held(self, payment_id: str) -> None:
        request = payments_pb2.GetPaymentRequest(payment_id=payment_id)
        deadline = time.monotonic() + _REST_SECONDS
        while time.monotonic() < deadline:
            payment = (await self.payments.GetPayment(request)).payment
            if payment.state == payments_pb2.PAYMENT_STATE_IN_ESCROW:
                return
            await asyncio.sleep(0.02)
        raise TimeoutError("a payment did not come into escrow")

    def read(self, payment_id: str) -> Call:
        request = payments_pb2.GetPaymentRequest(payment_id=payment_id)

        async def call() -> None:
            await self.payments.GetPayment(request)

        return call

    def confirm(self, payment: payments_pb2.Payment) -> Call:
        """Confirms as the client would, at Stripe: the service hears of it by a webhook."""
        path = f"payment_intents/{payment.payment_intent_id}/confirm"
        return lambda: self.control(path, {"payment_method": "pm_card_visa"})

    def capture(self, payment: payments_pb2.Payment) -> Call:
        request = payments_pb2.CapturePaymentRequest(
            payment_id=payment.payment_id, idempotency_key=f"capture-{payment.payment_id}"
        )

        async def call() -> None:
            await self.payments.CapturePayment(request)

        return call

    def refund(self, payment: payments_pb2.Payment) -> Call:
        request = payments_pb2.RefundPaymentRequest(
            payment_id=payment.payment_id, idempotency_key=f"refund-{payment.payment_id}"
        )

        async def call() -> None:
            await self.payments.RefundPayment(request)

        return call

    async def rest(self, backends: Backends, state: str = "", ids: Sequence[str] = ()) -> None:
        """Waits until Stripe has delivered all events and the service has applied them.

        The bench asks the database itself, so that waiting costs the service nothing.
        """
        await self.control("webhooks/settle", {"seconds": _REST_SECONDS})
        deadline = time.monotonic() + _REST_SECONDS
        while time.monotonic() < deadline:
            ((waiting,),) = backends.query(
                "SELECT (SELECT count(*) FROM webhook_events WHERE state = 'WAITING') "
                "+ (SELECT count(*) FROM operations WHERE state IN ('STARTED', 'UNKNOWN')) "
                "+ (SELECT count(*) FROM feed_pending) "
                "+ (SELECT count(*) FROM payments WHERE payment_id = ANY(%s) AND state <> %s)",
                list(ids),
                state,
            )
            if not waiting:
                return
            await asyncio.sleep(0.05)
        raise TimeoutError("the service did not come to rest")


def bare_read(stub: Any, payment_id: str) -> Call:
    request = payments_pb2.GetPaymentRequest(payment_id=payment_id)

    async def call() -> None:
        await stub.GetPayment(request)

    return call


def bare_initiate(stub: Any, market: Marketplace) -> Call:
    async def call() -> None:
        await stub.InitiatePayment(market.request())

    return call
