"""The crash sweep: at every place that a money RPC passes the service is killed, or its line to
PostgreSQL is cut in the middle of a COMMIT, and everything converges.

The places are found by tracing undisturbed runs, so a new phase or a new call to Stripe is covered
from the day it is written. The undisturbed run is also the oracle: after a crash there must be the
very same effects at Stripe, once each, and the same payment.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import psycopg2
from grpc import StatusCode, aio

from dev.stack import ChildFailedError
from marketplace.payments.v1 import experts_pb2, payments_pb2, webhooks_pb2
from tests.reliability.relay import Cut, Relay
from tests.reliability.scenarios import CONVERGENCE_SECONDS, Scenario, Subject, set_webhooks
from tests.reliability.system import SURVIVOR, VICTIM, System
from tests.support.books import check_books
from tests.support.errors import Reply
from tests.support.kinds import kind_of
from tests.support.stripe import Stripe
from tests.support.world import IN_ESCROW, Payment, World

#: Reached by the loops of a service at rest: part of a scenario only where it says so.
AT_REST = frozenset(
    {"begin_expiry", "events", "lease_due", "lease_events", "lease_stale_payments", "lease_cursors"}
    | {
        "lease_account_checks",
        "store_polled",
        "due_deadline",
        "claim_turn",
        "warn_phase",
        "lease_reconciliation",
        "_sequence",
    }
)
_FIRE_SECONDS = 10.0
_LATE_SECONDS = 0.2
#: A process that must start first, on a machine with other things to do.
_START_SECONDS = 40.0
#: The answers without an outcome: the caller repeats the call with the same key.
ASK_AGAIN = ("UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED")
#: Killed, and the same replica is started again or another one goes on; or it lives on, but does
#: not know whether its transaction was committed.
How = Literal["same", "other"] | Cut
_KILLED: Final[tuple[How, ...]] = ("same", "other")
_CUT: Final[tuple[How, ...]] = ("cut before", "cut after")


@dataclass(frozen=True)
class Case:
    scenario: Scenario
    place: str
    nth: int
    how: How

    @property
    def is_cut(self) -> bool:
        return self.how in _CUT

    def __str__(self) -> str:
        return f"{self.scenario.name} {self.place}#{self.nth} {self.how}"


@dataclass(frozen=True)
class Outcome:
    """What a run came to, without ids and times: equal for the undisturbed and the killed."""

    effects: Counter[tuple[str, int | None]]
    shown: tuple[object, ...]


class NotReachedError(AssertionError):
    """The process was at no such place this time: what the loops do is a matter of moments."""


@dataclass
class Told:
    """Every acknowledged change, to be found again at the end."""

    payments: dict[str, Payment] = field(default_factory=dict)
    #: What must stand among the discrepancies, and nothing else: (payment, kind), once each.
    discrepancies: Counter[tuple[str, str]] = field(default_factory=Counter)
    replies: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    #: Payments whose times were moved behind the trail's back. A run of over an hour reports them.
    moved: set[str] = field(default_factory=set)

    def counts(self, payment_id: str, kind: str) -> bool:
        """Returns whether a discrepancy counts: it was not made by moving the times."""
        return not (payment_id in self.moved and kind == "invariant_row_is_as_recorded")


# ---- one run ----


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
    #: Between the victim and PostgreSQL.
    relay: Relay

    @property
    def stripe(self) -> Stripe:
        return self.worlds[VICTIM].stripe

    async def prepared(self, scenario: Scenario, world: World) -> tuple[Subject, int]:
        """The subject, and the number of the last effect before it. Webhooks are paused after."""
        await set_webhooks(self.stripe, paused=False)
        try:
            subject = await scenario.prepare(world, self.expert)
        except aio.AioRpcError as error:
            # Stripe's patience is short here: on a busy machine it may be too short once.
            if error.code() is not StatusCode.UNAVAILABLE:
                raise
            await world.settle_down()
            subject = await scenario.prepare(world, self.expert)
        if not scenario.pauses:
            await world.settle_down()
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
        self.told.moved.add(payment_id)
        postgres = self.system.stack.postgres
        assert postgres is not None
        options = "-c session_replication_role=replica"
        with closing(psycopg2.connect(postgres.admin_url(), options=options)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE payments SET release_due_time = now() - interval '1 second', "
                    "escrow_expire_time = CASE WHEN charged = 0 THEN now() + interval '11 hours' "
                    "ELSE escrow_expire_time END, deadline_due_time = now() WHERE payment_id = %s",
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
        alone = case.how == "other" and case.scenario.by_loops
        # A replica that was up all the time checks the deadlines only four times a minute.
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
            if not await self.system.death(limit):
                await self._ended_unharmed(case, world, subject, last, caller)
                raise NotReachedError
        finally:
            self.system.disarm()
            if alone and not afresh:
                self.system.survivor.resume()
        if afresh:
            await self.system.begin(SURVIVOR)
        caller.cancel()
        # Stripe's events come meanwhile, or only when everything is over.
        await set_webhooks(self.stripe, paused=self.random.random() < 0.5)
        if case.how == "same":
            await self.system.begin(VICTIM)
        else:
            world = self.worlds[SURVIVOR]
            self.system.victim.start()
        began = time.monotonic()
        if self.random.random() < 0.5:  # A caller who comes back late.
            await self.settled(world, subject, only_known=True)
        return await self._converged(case, world, subject, last, expected, began)

    async def cut(self, case: Case, expected: Outcome) -> float:
        """Cut the victim's line at the place's COMMIT; how long it then took to converge."""
        world = self.worlds[VICTIM]
        subject, last = await self.prepared(case.scenario, world)
        caller: asyncio.Task[Reply] | None = None
        try:
            self.system.arm(case.place, case.nth, "stop")
            if case.scenario.by_deadline:
                self.system.victim.start()
            caller = asyncio.create_task(self.ask_until_told(world, subject))
            limit = _START_SECONDS if case.scenario.by_deadline else _FIRE_SECONDS
            if not await self.system.stop(limit):
                await self._ended_unharmed(case, world, subject, last, caller)
                raise NotReachedError
            self.relay.arm("cut before" if case.how == "cut before" else "cut after")
            began = time.monotonic()
            self.system.victim.resume()
            await set_webhooks(self.stripe, paused=self.random.random() < 0.5)
            if case.scenario.by_deadline:
                await self._begun_again()
            seconds = await self._converged(case, world, subject, last, expected, began)
        finally:
            if caller is not None:
                caller.cancel()
            self.system.disarm()
            self.system.victim.resume()
        return seconds

    async def _begun_again(self) -> None:
        """Waits until the victim serves. A cut start ends it, and a supervisor starts it again."""
        try:
            await self.system.begin(VICTIM)
        except ChildFailedError:
            await self.system.begin(VICTIM)

    async def _ended_unharmed(
        self, case: Case, world: World, subject: Subject, last: int, caller: asyncio.Task[Reply]
    ) -> None:
        """Nothing was done to it, or too late: leave what an undisturbed run leaves."""
        await self.recover()
        await set_webhooks(self.stripe, paused=False)
        reply = await caller
        await self.settled(world, subject, seconds=case.scenario.seconds)
        await self.outcome(world, subject, reply, last)
        await self.clean_up(world, subject)

    async def _converged(
        self,
        case: Case,
        world: World,
        subject: Subject,
        last: int,
        expected: Outcome,
        began: float,
    ) -> float:
        """Wait for the end, and hold it against the undisturbed one."""
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
        was_missed = self.relay.is_armed  # No COMMIT came: the transaction was rolled back.
        self.relay.disarm()
        await self.clean_up(world, subject)
        if was_missed:
            raise NotReachedError
        return seconds

    async def answer(self, world: World, subject: Subject) -> Reply:
        """Returns the caller's final answer; it must not come after the time for convergence."""
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
                " + (SELECT count(*) FROM webhook_events WHERE state = 'WAITING')"
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
            answer = _account_of(reply, subject)
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
        if subject.afterwards is not None:
            await set_webhooks(self.stripe, paused=False)
            await subject.afterwards(world)
            self.told.payments[subject.payment_id] = await world.get(subject.payment_id)
        if subject.discrepancy:
            self.told.discrepancies[subject.payment_id, subject.discrepancy] += 1
        for payment_id, payment in list(self.told.payments.items()):
            if payment.state in (IN_ESCROW, payments_pb2.PAYMENT_STATE_PENDING):
                self.told.payments[payment_id] = await world.refund(payment_id)

    async def recover(self) -> None:
        """Both as they were, so that the next case says something too."""
        self.system.disarm()
        await asyncio.sleep(_LATE_SECONDS)  # It may be about to act on what it has read before.
        self.relay.disarm()
        self.system.victim.resume()
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
        found = Counter(
            (one.payment_id, kind_of(one))
            for one in await world.discrepancies()
            if self.told.counts(one.payment_id, kind_of(one))
        )
        assert found == self.told.discrepancies, (found, self.told.discrepancies)


def _bytes(subject: Subject) -> bytes:
    return subject.request.SerializeToString()


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _account_of(
    reply: Reply, subject: Subject
) -> experts_pb2.CreateExpertAccountResponse | experts_pb2.ReplaceExpertAccountResponse:
    if subject.method.endswith("ReplaceExpertAccount"):
        return experts_pb2.ReplaceExpertAccountResponse.FromString(reply.body)
    return experts_pb2.CreateExpertAccountResponse.FromString(reply.body)


def _comparable(reply: Reply, subject: Subject) -> object:
    """The bytes; but a link into onboarding is always fresh, and an event known the second time."""
    if subject.method.startswith("ExpertService"):
        expert = _account_of(reply, subject).expert
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
            Case(scenario, place, nth + 1, how)
            for place, times in sorted((first & second).items())
            for nth in range(times)
            for how in (*_KILLED, *(_CUT if place.endswith(":uncommitted") else ()))
        ]
    return cases, outcomes
