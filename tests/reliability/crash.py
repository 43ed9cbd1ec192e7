"""The crash sweep: the service is killed at every place that a money RPC passes, and converges.

The places are found by tracing undisturbed runs, so a new phase or a new call to Stripe is covered
from the day it is written. The undisturbed run is also the oracle: after a crash there must be the
very same effects at Stripe, once each, and the same payment.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psycopg2
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from marketplace.payments.v1 import (
    disputes_pb2,
    experts_pb2,
    operations_pb2,
    payments_pb2,
    webhooks_pb2,
)
from stripe_simulator.webhooks import sign
from tests.integration.books import check_books
from tests.integration.world import (
    CAPTURED,
    CAPTURING,
    CONNECT_SECRET,
    IN_ESCROW,
    PLATFORM_SECRET,
    REFUNDED,
    Payment,
    Reply,
    Stripe,
    World,
    capture_request,
    money,
    new_key,
    new_name,
    refund_request,
    until,
)
from tests.reliability.system import SURVIVOR, VICTIM, System

#: Reached by the loops of a service at rest: part of a scenario only where it says so.
AT_REST = frozenset(
    {"begin_expiry", "events", "lease_due", "lease_events", "lease_quiet", "lease_watches"}
    | {"store_polled", "find_due", "warn_phase", "lease_reconciliation"}
)
CONVERGENCE_SECONDS = 10.0
_FIRE_SECONDS = 10.0
#: A process that must start first, on a machine with other things to do.
_START_SECONDS = 40.0
#: The deadlines are looked at every fifteen seconds, by a replica that was up all the time.
_DEADLINE_SECONDS = 25.0
#: What a caller is told while nothing is settled: ask again with the same key.
ASK_AGAIN = ("UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED")
_BOTH_WAYS = ("same", "other")


@dataclass
class Subject:
    """What one case is about: a keyed call, a webhook that is redelivered until it is taken, or
    (without a method) what the service does by itself."""

    method: str
    request: Message
    payment_id: str = ""
    #: Whether the payment is where it must end, if no answer says so.
    ended: Callable[[Payment], bool] | None = None


@dataclass(frozen=True)
class Scenario:
    """A money RPC (or the inbox) from a prepared state to its end."""

    name: str
    prepare: Callable[[World, str], Awaitable[Subject]]
    #: Places of the loops that belong to it.
    loops: frozenset[str] = frozenset()
    #: Faults at Stripe that make the loops finish it: (path, action, when).
    fault: tuple[str, str, str] | None = None
    #: The victim is down when it begins, and does it as soon as it has started: with the payment
    #: given, the deadline is moved near meanwhile.
    by_deadline: bool = False
    #: It pauses the webhooks itself, before what must not be told too soon.
    pauses: bool = False
    seconds: float = CONVERGENCE_SECONDS

    @property
    def by_loops(self) -> bool:
        """Whether it is a loop that must die, and so not another replica's."""
        return bool(self.loops)


@dataclass(frozen=True)
class Case:
    scenario: Scenario
    place: str
    nth: int
    #: Who goes on: the same replica, restarted, or another that was up all the time.
    by: str

    def __str__(self) -> str:
        return f"{self.scenario.name} {self.place}#{self.nth} {self.by}"


@dataclass(frozen=True)
class Outcome:
    """What a run came to, without ids and times: equal for the undisturbed and the killed."""

    effects: Counter[tuple[str, int | None]]
    shown: tuple[object, ...]


@dataclass
class Told:
    """Every acknowledged change, to be found again at the end."""

    payments: dict[str, Payment] = field(default_factory=dict)
    replies: list[tuple[str, bytes, bytes]] = field(default_factory=list)


# ---- the scenarios ----


async def _initiation(world: World, expert: str) -> Subject:
    return Subject("PaymentService/InitiatePayment", world.initiation(expert))


async def _capture(world: World, expert: str) -> Subject:
    held = await world.escrowed(expert)
    return Subject("PaymentService/CapturePayment", capture_request(held.payment_id))


async def _capture_part(world: World, expert: str) -> Subject:
    held = await world.escrowed(expert)
    request = capture_request(held.payment_id, 3_335, final=True, notes="a part")
    return Subject("PaymentService/CapturePayment", request)


async def _cancel(world: World, expert: str) -> Subject:
    held = await world.escrowed(expert)
    return Subject("PaymentService/RefundPayment", refund_request(held.payment_id))


async def _refund(world: World, expert: str) -> Subject:
    captured = await world.captured(expert)
    return Subject("PaymentService/RefundPayment", refund_request(captured.payment_id, 3_333))


async def _account(world: World, expert: str) -> Subject:
    expert_id = new_name("crash-expert")
    request = experts_pb2.CreateExpertAccountRequest(
        expert_id=expert_id, name="Ann Expert", email=f"{expert_id}@example.com"
    )
    return Subject("ExpertService/CreateExpertAccount", request)


async def _authorization(world: World, expert: str) -> Subject:
    """The client has paid; Stripe delivers the event, and delivers it again until it is taken."""
    initiated = await world.initiate(expert)
    await world.quiet()
    await set_webhooks(world.stripe, paused=True)
    await world.confirm(initiated)
    return Subject(
        "WebhookService/IngestEvent",
        await event_of(
            world,
            "payment_intent.amount_capturable_updated",
            initiated.payment.payment_intent_id,
        ),
        initiated.payment.payment_id,
        lambda payment: payment.state == IN_ESCROW,
    )


async def event_of(
    world: World, kind: str, object_id: str, account: str = ""
) -> webhooks_pb2.IngestEventRequest:
    """The newest of Stripe's events of a kind about an object, as the gateway would hand it on."""
    listed = await world.stripe.api("GET", "/events", account=account, type=kind, limit=20)
    event = next(one for one in listed["data"] if one["data"]["object"]["id"] == object_id)
    payload = json.dumps(event)
    endpoint, secret = (
        (webhooks_pb2.WEBHOOK_ENDPOINT_CONNECT, CONNECT_SECRET)
        if account
        else (webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM, PLATFORM_SECRET)
    )
    return webhooks_pb2.IngestEventRequest(
        endpoint=endpoint,
        payload=payload.encode(),
        signature=sign(payload, (secret,), int(time.time())),
    )


# What the platform holds itself: charged there, and each part transferred.

_PLATFORM: dict[str, Any] = {"escrow_mode": payments_pb2.ESCROW_MODE_PLATFORM_HOLD}
_PROMOTED: dict[str, Any] = {"on_deadline": payments_pb2.ON_DEADLINE_PROMOTE}
#: Charged money is available at once, so that Stripe lets transfers of it be reversed.
_AVAILABLE = "pm_card_bypassPending"


def _part_of(
    hold: dict[str, Any], amount: int = 0, *, final: bool = False
) -> Callable[[World, str], Awaitable[Subject]]:
    async def prepare(world: World, expert: str) -> Subject:
        held = await world.escrowed(expert, **hold)
        request = capture_request(held.payment_id, amount, final=final)
        return Subject("PaymentService/CapturePayment", request)

    return prepare


async def _refund_of_held(world: World, expert: str) -> Subject:
    held = await world.escrowed(expert, **_PLATFORM)
    await world.capture(held.payment_id, 3_000)
    return Subject("PaymentService/RefundPayment", refund_request(held.payment_id, 2_500))


async def _refund_beyond_held(world: World, expert: str) -> Subject:
    """All that is held, all of the newer milestone, and a part of the older."""
    held = await world.escrowed(expert, card=_AVAILABLE, **_PLATFORM)
    await world.capture(held.payment_id, 3_000)
    await world.capture(held.payment_id, 4_000)
    return Subject("PaymentService/RefundPayment", refund_request(held.payment_id, 8_500))


async def _capture_of_a_debtor(world: World, expert: str) -> Subject:
    """Stripe cannot take the first payment back out of money that is not available yet."""
    debtor = await world.expert(new_name("crash-debtor"))
    first = await world.captured(debtor, **_PLATFORM)
    await world.refund(first.payment_id)
    held = await world.escrowed(debtor, 20_000, **_PLATFORM)
    return Subject("PaymentService/CapturePayment", capture_request(held.payment_id))


async def _disputed(world: World, expert: str) -> tuple[Payment, str]:
    """Captured on the platform, of money that can be taken back at once, and contested."""
    payment = await world.captured(expert, card=_AVAILABLE, **_PLATFORM)
    shown = await world.stripe.control("POST", f"/charges/{payment.charge_id}/dispute", {})
    dispute_id = str(shown["id"])

    async def on_record() -> bool:
        return bool(world.sql("SELECT 1 FROM disputes WHERE dispute_id = %s", dispute_id))

    await until(on_record, f"{dispute_id} on record")
    return payment, dispute_id


async def _evidence(world: World, expert: str) -> Subject:
    payment, dispute_id = await _disputed(world, expert)
    request = disputes_pb2.SubmitEvidenceRequest(
        dispute_id=dispute_id,
        evidence=disputes_pb2.Evidence(uncategorized_text="It was delivered."),
        submit=True,
        idempotency_key=new_key(),
    )
    return Subject("DisputeService/SubmitEvidence", request, payment.payment_id)


def _is_lost(payment: Payment) -> bool:
    return payment.state == REFUNDED and bool(payment.lost_amount.minor_units)


async def _acceptance(world: World, expert: str) -> Subject:
    payment, dispute_id = await _disputed(world, expert)
    request = disputes_pb2.AcceptDisputeRequest(dispute_id=dispute_id, idempotency_key=new_key())
    return Subject("DisputeService/AcceptDispute", request, payment.payment_id, _is_lost)


async def _loss(world: World, expert: str) -> Subject:
    """The bank decides for the client: written off, and the expert's part is reversed."""
    payment, dispute_id = await _disputed(world, expert)
    await world.quiet()
    await set_webhooks(world.stripe, paused=True)
    await world.stripe.control("POST", f"/disputes/{dispute_id}/lose", {})
    request = await event_of(world, "charge.dispute.closed", dispute_id)
    return Subject("WebhookService/IngestEvent", request, payment.payment_id, _is_lost)


async def _write_off(world: World, expert: str) -> Subject:
    debtor = await world.expert(new_name("crash-debtor"))
    first = await world.captured(debtor, **_PLATFORM)
    await world.refund(first.payment_id)
    request = operations_pb2.WriteOffDebtRequest(
        expert_id=debtor, amount=money(4_000, "USD"), reason="left us", idempotency_key=new_key()
    )
    return Subject("OperationsService/WriteOffDebt", request, first.payment_id)


async def _restricted(world: World) -> tuple[Payment, str]:
    """A hold, and the account of its expert, who cannot be paid."""
    expert = await world.expert(new_name("crash-restricted"))
    held = await world.escrowed(expert, **_PLATFORM)
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/restrict")
    await world.quiet()
    return held, account


async def _capture_that_waits(world: World, expert: str) -> Subject:
    held, _ = await _restricted(world)
    return Subject(
        "PaymentService/CapturePayment",
        capture_request(held.payment_id),
        held.payment_id,
        lambda payment: payment.state == CAPTURING and payment.waiting_for == "expert",
    )


async def _capture_that_waited(world: World, expert: str) -> Subject:
    """The account is well again, which the event tells; the loops do the rest."""
    held, account = await _restricted(world)
    waiting = await world.capture(held.payment_id)
    assert waiting.waiting_for == "expert", waiting
    await world.quiet()
    await set_webhooks(world.stripe, paused=True)
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    return Subject(
        "WebhookService/IngestEvent",
        await event_of(world, "account.updated", account, account),
        held.payment_id,
        lambda payment: payment.state == CAPTURED and not payment.waiting_for,
    )


def _agreed(
    on_deadline: payments_pb2.OnDeadline.ValueType, state: payments_pb2.PaymentState.ValueType
) -> Callable[[World, str], Awaitable[Subject]]:
    """Held by the platform for a gig of some days, at whose end something was agreed."""

    async def prepare(world: World, expert: str) -> Subject:
        due = Timestamp()
        due.FromSeconds(int(time.time()) + 5 * 86_400)
        held = await world.escrowed(
            expert, on_deadline=on_deadline, expected_completion_time=due, **_PLATFORM
        )
        return Subject(
            "",
            payments_pb2.GetPaymentRequest(),
            held.payment_id,
            lambda payment: payment.state == state,
        )

    return prepare


async def _promotion(world: World, expert: str) -> Subject:
    held = await world.escrowed(expert, **_PROMOTED)
    return Subject("", payments_pb2.GetPaymentRequest(), held.payment_id, _is_promoted)


def _is_promoted(payment: Payment) -> bool:
    platform = payment.escrow_mode == payments_pb2.ESCROW_MODE_PLATFORM_HOLD
    return platform and payment.state == IN_ESCROW


_SWEEP = frozenset({"lease_due"})
_AWAKE = frozenset({"lease_events", "lease_due"})
DESTINATION = (
    Scenario("InitiatePayment", _initiation),
    Scenario("CapturePayment whole", _capture),
    Scenario("CapturePayment part", _capture_part),
    Scenario("RefundPayment cancel", _cancel),
    Scenario("RefundPayment both legs", _refund),
    Scenario("CreateExpertAccount", _account),
    Scenario("inbox", _authorization, frozenset({"lease_events"}), pauses=True),
    Scenario("sweep of a capture", _capture, _SWEEP, ("/capture$", "reset", "after")),
    Scenario("sweep of a refund", _refund, _SWEEP, ("/refunds$", "reset", "after")),
)
SEPARATE = (
    Scenario("authorized, whole", _part_of(_PROMOTED)),
    Scenario("authorized, milestone", _part_of(_PROMOTED, 3_335)),
    Scenario("authorized, final part", _part_of(_PROMOTED, 3_335, final=True)),
    Scenario("platform, whole", _part_of(_PLATFORM)),
    Scenario("platform, milestone", _part_of(_PLATFORM, 3_335)),
    Scenario("platform, final part", _part_of(_PLATFORM, 3_335, final=True)),
    Scenario("platform, refund of held", _refund_of_held),
    Scenario("platform, refund beyond held", _refund_beyond_held),
    Scenario("platform, debt netted", _capture_of_a_debtor),
    Scenario(
        "promotion",
        _promotion,
        frozenset({"find_due"}),
        by_deadline=True,
        seconds=_DEADLINE_SECONDS,
    ),
    Scenario("sweep of a transfer", _part_of(_PLATFORM), _SWEEP, ("/transfers$", "reset", "after")),
    Scenario("sweep of a reversal", _refund_beyond_held, _SWEEP, ("/reversals$", "reset", "after")),
)
#: What nobody calls for on a good day: deadlines, disputes, debts, an account that is not well.
BESIDES = (
    Scenario(
        "deadline, capture",
        _agreed(payments_pb2.ON_DEADLINE_CAPTURE, CAPTURED),
        frozenset({"find_due"}),
        by_deadline=True,
        seconds=_DEADLINE_SECONDS,
    ),
    Scenario(
        "deadline, refund",
        _agreed(payments_pb2.ON_DEADLINE_REFUND, REFUNDED),
        frozenset({"find_due"}),
        by_deadline=True,
        seconds=_DEADLINE_SECONDS,
    ),
    Scenario("SubmitEvidence", _evidence),
    Scenario("AcceptDispute", _acceptance),
    Scenario("a dispute is lost", _loss, frozenset({"lease_events"}), pauses=True),
    Scenario("WriteOffDebt", _write_off),
    Scenario("capture that waits", _capture_that_waits),
    Scenario("capture that waited", _capture_that_waited, _AWAKE, pauses=True),
)


# ---- one run ----


async def set_webhooks(stripe: Stripe, *, paused: bool) -> None:
    await stripe.control("POST", "/webhooks", {"paused": paused})


async def effects_since(stripe: Stripe, number: int) -> tuple[list[dict[str, object]], int]:
    given = await stripe.control("GET", f"/effects?since={number}")
    return given["effects"], given["last"]


@dataclass
class Run:
    """One scenario, undisturbed or killed, from its prepared state on."""

    system: System
    worlds: list[World]
    expert: str
    told: Told
    random: random.Random

    @property
    def stripe(self) -> Stripe:
        return self.worlds[VICTIM].stripe

    async def prepared(self, scenario: Scenario, world: World) -> tuple[Subject, int]:
        """The subject, and the number of the last effect before it. Webhooks are paused after."""
        await set_webhooks(self.stripe, paused=False)
        subject = await scenario.prepare(world, self.expert)
        if not scenario.pauses:
            await world.quiet()
            await set_webhooks(self.stripe, paused=True)
        if scenario.by_deadline:
            await self.system.end(VICTIM)
            self.move_deadline_near(subject.payment_id)
        if scenario.fault is not None:
            path, action, when = scenario.fault
            await self.stripe.clear_faults()
            await self.stripe.fault(path, action, when)
        _, last = await effects_since(self.stripe, 0)
        return subject, last

    def move_deadline_near(self, payment_id: str) -> None:
        """As superuser: a card's authorization lasts for days."""
        postgres = self.system.stack.postgres
        assert postgres is not None
        options = "-c session_replication_role=replica"
        with closing(psycopg2.connect(postgres.admin_url(), options=options)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE payments SET release_due_time = now() - interval '1 second', "
                    "escrow_expire_time = CASE WHEN charged = 0 THEN now() + interval '11 hours' "
                    "ELSE escrow_expire_time END WHERE payment_id = %s",
                    (payment_id,),
                )

    async def undisturbed(self, scenario: Scenario) -> tuple[Counter[str], Outcome]:
        """The places that it passes on the victim, and what it comes to."""
        world = self.worlds[VICTIM]
        subject, last = await self.prepared(scenario, world)
        self.system.start_tracing()
        await self.system.begin(VICTIM)
        reply = await self.answer(world, subject)
        await self.settled(world, subject)
        passed = self.system.traced()
        outcome = await self.outcome(world, subject, reply, last)
        await self.clean_up(world, subject)
        relevant = AT_REST - scenario.loops
        places = Counter(place for place in passed if place.split(":")[1] not in relevant)
        for place in places:
            if place.split(":")[1] in scenario.loops:
                places[place] = 1  # How often a loop turns is not the scenario's doing.
        return places, outcome

    async def killed(self, case: Case, expected: Outcome) -> float:
        """Kill at the place; how long it then took to converge. AssertionError if it did not."""
        world = self.worlds[VICTIM]
        subject, last = await self.prepared(case.scenario, world)
        alone = case.by == "other" and case.scenario.by_loops
        # A replica that was up all the time looks at the deadlines four times a minute only.
        afresh = alone and case.scenario.by_deadline
        if afresh:
            await self.system.end(SURVIVOR)
        elif alone:
            self.system.survivor.pause()  # Or it would be the one to do it.
        try:
            self.system.arm(case.place, case.nth)
            if case.scenario.by_deadline:
                self.system.victim.start()
            caller = asyncio.create_task(self.ask_until_told(world, subject))
            limit = _START_SECONDS if case.scenario.by_deadline else _FIRE_SECONDS
            assert await self.system.death(limit), "the barrier was never reached"
        finally:
            self.system.disarm()
            if alone and not afresh:
                self.system.survivor.resume()
        if afresh:
            await self.system.begin(SURVIVOR)
        caller.cancel()
        # Stripe's events come meanwhile, or only when everything is over.
        await set_webhooks(self.stripe, paused=self.random.random() < 0.5)
        if case.by == "same":
            await self.system.begin(VICTIM)
        else:
            world = self.worlds[SURVIVOR]
            self.system.victim.start()
        began = time.monotonic()
        if self.random.random() < 0.5:  # A caller who comes back late.
            await self.settled(world, subject, only_known=True)
        reply = await self.answer(world, subject)
        await self.settled(world, subject, seconds=case.scenario.seconds)
        seconds = time.monotonic() - began
        assert seconds <= case.scenario.seconds, f"took {seconds:.1f} s to converge"
        if case.scenario.fault is not None:
            assert await self.stripe.fired(), "the fault at Stripe never struck"
        await self.system.begin(VICTIM)
        again = await self.answer(self.worlds[VICTIM], subject)
        assert _comparable(again, subject) == _comparable(reply, subject), "another answer"
        outcome = await self.outcome(world, subject, reply, last)
        assert outcome == expected, f"ended as {outcome}, undisturbed as {expected}"
        await self.clean_up(world, subject)
        return seconds

    async def answer(self, world: World, subject: Subject) -> Reply:
        """What the caller is told in the end; never later than all must have converged."""
        reply = await asyncio.wait_for(self.ask_until_told(world, subject), CONVERGENCE_SECONDS)
        assert reply.code == "OK", reply
        return reply

    async def ask_until_told(self, world: World, subject: Subject) -> Reply:
        """Ask again with the same key as one is bidden."""
        if not subject.method:
            return Reply("OK", b"")
        while True:
            reply = await world.raw(subject.method, _bytes(subject), CONVERGENCE_SECONDS)
            if reply.code not in ASK_AGAIN:
                return reply
            await asyncio.sleep(0.1)

    async def settled(
        self,
        world: World,
        subject: Subject,
        *,
        only_known: bool = False,
        seconds: float = CONVERGENCE_SECONDS,
    ) -> None:
        """Wait until nothing is open (and, unless nobody asked yet, the payment is there)."""
        deadline = time.monotonic() + seconds
        while True:
            [(waiting,)] = world.sql(
                "SELECT (SELECT count(*) FROM operations WHERE state IN ('STARTED', 'UNKNOWN'))"
                " + (SELECT count(*) FROM inbox WHERE state = 'WAITING')"
            )
            there = only_known or subject.ended is None
            if subject.ended is not None and not there:
                there = subject.ended(await world.get(subject.payment_id))
            if there and not waiting:
                return
            assert time.monotonic() < deadline, f"{waiting} still open"
            await asyncio.sleep(0.05)

    async def outcome(self, world: World, subject: Subject, reply: Reply, last: int) -> Outcome:
        effects, _ = await effects_since(self.stripe, last)
        counted = Counter((str(one["kind"]), _number(one["amount"])) for one in effects)
        payment = await self.payment(world, subject, reply)
        if payment is None:
            answer = experts_pb2.CreateExpertAccountResponse.FromString(reply.body)
            return Outcome(counted, (answer.expert.status, bool(answer.onboarding_url)))
        self.told.payments[payment.payment_id] = payment
        if subject.method:
            self.told.replies.append((subject.method, _bytes(subject), reply.body))
        amounts = ("held", "captured", "returned", "refunded", "net", "lost", "lost_held")
        shown = [getattr(payment, f"{name}_amount").minor_units for name in amounts]
        return Outcome(
            counted,
            (
                *(payment.state, payment.escrow_mode, *shown),
                *(payment.net_commission.minor_units, payment.waiting_for, payment.freeze),
                *(self.debt(world, payment), self.written_off(world, payment)),
            ),
        )

    def debt(self, world: World, payment: Payment) -> int:
        """What this payment left its expert owing, or paid off of it."""
        [(sum_,)] = world.sql(
            "SELECT coalesce(sum(minor_units), 0)::bigint FROM postings "
            "WHERE account = %s AND payment_id = %s",
            f"expert_debt:{payment.expert_id}",
            payment.payment_id,
        )
        return int(sum_)

    def written_off(self, world: World, payment: Payment) -> int:
        """What of its expert's debt became the platform's loss."""
        [(sum_,)] = world.sql(
            "SELECT coalesce(sum(minor_units), 0)::bigint FROM postings "
            "WHERE account = %s AND expert_id = %s AND payment_id IS NULL",
            f"expert_debt:{payment.expert_id}",
            payment.expert_id,
        )
        return int(sum_)

    async def payment(self, world: World, subject: Subject, reply: Reply) -> Payment | None:
        if subject.payment_id:
            return await world.get(subject.payment_id)
        if subject.method.startswith("ExpertService"):
            return None
        kinds: dict[str, Any] = {
            "InitiatePayment": payments_pb2.InitiatePaymentResponse,
            "CapturePayment": payments_pb2.CapturePaymentResponse,
            "RefundPayment": payments_pb2.RefundPaymentResponse,
        }
        told: Payment = kinds[subject.method.partition("/")[2]].FromString(reply.body).payment
        assert told.payment_id
        payment = await world.get(told.payment_id)
        assert payment.version >= told.version, "an acknowledged change is gone"
        return payment

    async def clean_up(self, world: World, subject: Subject) -> None:
        """Leave no open payment behind, about which the loops would ask in a later case."""
        await self.stripe.clear_faults()
        for payment_id, payment in list(self.told.payments.items()):
            if payment.state in (IN_ESCROW, payments_pb2.PAYMENT_STATE_PENDING):
                self.told.payments[payment_id] = await world.refund(payment_id)

    async def recover(self) -> None:
        """After a failed case: both as they were, so that the next one says something too."""
        self.system.disarm()
        self.system.survivor.resume()
        await self.stripe.clear_faults()
        await self.system.begin(VICTIM)

    async def check_everything(self) -> None:
        """The books against Stripe's, every trail, and every acknowledged change."""
        await set_webhooks(self.stripe, paused=False)
        world = self.worlds[VICTIM]
        await check_books(world)
        for payment_id, payment in self.told.payments.items():
            now = await world.get(payment_id)
            assert (now.state, now.captured_amount, now.refunded_amount) == (
                payment.state,
                payment.captured_amount,
                payment.refunded_amount,
            ), f"{payment_id} was {payment}, is {now}"
        for method, request, body in self.told.replies:
            if method.startswith(("PaymentService", "DisputeService", "OperationsService")):
                again = await world.raw(method, request)
                assert again.body == body, f"another answer of {method}"
        assert not await world.discrepancies()


def _bytes(subject: Subject) -> bytes:
    return subject.request.SerializeToString()


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _comparable(reply: Reply, subject: Subject) -> object:
    """The bytes; but a link into onboarding is always fresh, and an event known the second time."""
    if subject.method.startswith("ExpertService"):
        expert = experts_pb2.CreateExpertAccountResponse.FromString(reply.body).expert
        expert.ClearField("update_time")
        return expert.SerializeToString(deterministic=True)
    if subject.method.startswith("WebhookService"):
        return webhooks_pb2.IngestEventResponse.FromString(reply.body).event_id
    return reply.body


# ---- all of them ----


async def discover(
    run: Run, scenarios: Sequence[Scenario]
) -> tuple[list[Case], dict[str, Outcome]]:
    """Every case that two undisturbed runs of each scenario agree on."""
    cases: list[Case] = []
    outcomes: dict[str, Outcome] = {}
    for scenario in scenarios:
        first, outcome = await run.undisturbed(scenario)
        second, again = await run.undisturbed(scenario)
        assert outcome == again, f"{scenario.name} ends as {outcome} and as {again}"
        outcomes[scenario.name] = outcome
        cases += [
            Case(scenario, place, nth + 1, by)
            for place, times in sorted((first & second).items())
            for nth in range(times)
            for by in _BOTH_WAYS
        ]
    return cases, outcomes
