"""Callers who race over two replicas: one serial order, one winner, one effect, equal answers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import psycopg2
import pytest
from google.protobuf.message import Message

from dev.settings import SIMULATOR_SECRET_KEY
from marketplace.payments.v1 import payments_pb2
from payment_service.application.app import App
from payment_service.application.jobs.act_on_deadlines import act_on_deadlines
from payment_service.application.side_by_side import at_most
from payment_service.bootstrap import wire
from payment_service.config import Settings
from tests.reliability import proving
from tests.reliability.crowd import (
    calm,
    effects_by_intent,
    finally_told,
    in_escrow,
    last_effect,
)
from tests.reliability.system import System
from tests.support.books import balance, check_books
from tests.support.errors import Reply
from tests.support.requests import capture_request, new_name, refund_request
from tests.support.service import CONNECT_SECRET, PLATFORM_SECRET
from tests.support.world import CANCELED, CAPTURED, IN_ESCROW, REFUNDED, Payment, World

_GROUPS = proving.by_profile(21, 2_000)
_ON_THE_PLATFORM = proving.by_profile(7, 280)
_KEYS = proving.by_profile(20, 2_000)
_CALLERS = 8
_BATCH = 100
_LONG = proving.by_profile(180, 3600)


async def _race(
    worlds: Sequence[World], chance: random.Random, calls: Sequence[tuple[str, Message]]
) -> list[Reply]:
    """All at once, each over a replica of its own choosing."""

    async def one(call: tuple[str, Message]) -> Reply:
        method, request = call
        return await finally_told(chance.choice(worlds), f"PaymentService/{method}", request)

    return list(await asyncio.gather(*(one(call) for call in calls)))


def _won(replies: Sequence[Reply]) -> list[int]:
    """Returns the callers that got OK; each of the others must have its own reason of refusal."""
    for reply in replies:
        assert reply.code in ("OK", "FAILED_PRECONDITION"), reply
    return [number for number, reply in enumerate(replies) if reply.code == "OK"]


async def _two_captures(
    worlds: Sequence[World], chance: random.Random, payment: Payment
) -> Counter[str]:
    amount = chance.choice((0, 10_000, 4_000))
    calls = [
        ("CapturePayment", capture_request(payment.payment_id)),
        ("CapturePayment", capture_request(payment.payment_id, amount, final=bool(amount))),
    ]
    won = _won(await _race(worlds, chance, calls))
    assert len(won) == 1, won
    after = await worlds[0].get(payment.payment_id)
    assert after.state == CAPTURED
    assert after.captured_amount.minor_units == (10_000 if won == [0] else amount or 10_000)
    return Counter({"captured": 1, "transferred": 1})


async def _capture_against_refund(
    worlds: Sequence[World], chance: random.Random, payment: Payment
) -> Counter[str]:
    calls = [
        ("CapturePayment", capture_request(payment.payment_id)),
        ("RefundPayment", refund_request(payment.payment_id)),
    ]
    won = _won(await _race(worlds, chance, calls))
    after = await worlds[0].get(payment.payment_id)
    if won == [1]:  # Cancelled first: there is nothing to capture.
        assert after.state == CANCELED
        return Counter({"canceled": 1})
    assert won == [0, 1], won  # Captured first: then it is a refund.
    assert (after.state, after.refunded_amount.minor_units) == (REFUNDED, 10_000)
    return Counter({"captured": 1, "transferred": 1, "refunded": 1, "reversed": 1})


async def _eight_refunds(
    worlds: Sequence[World], chance: random.Random, payment: Payment
) -> Counter[str]:
    """Eight of 30.00 each from 100.00: three fit, in any order."""
    await finally_told(
        worlds[0], "PaymentService/CapturePayment", capture_request(payment.payment_id)
    )
    calls = [("RefundPayment", refund_request(payment.payment_id, 3_000)) for _ in range(_CALLERS)]
    won = _won(await _race(worlds, chance, calls))
    assert len(won) == 3, won
    after = await worlds[0].get(payment.payment_id)
    assert (after.state, after.refunded_amount.minor_units) == (CAPTURED, 9_000)
    return Counter({"captured": 1, "transferred": 1, "refunded": 3, "reversed": 3})


_RACES = (_two_captures, _capture_against_refund, _eight_refunds)


@pytest.mark.timeout(_LONG)
def test_one_winner(system: System) -> None:
    async def run() -> None:
        chance = random.Random(proving.SEED)
        async with system.worlds() as worlds:
            expert = await worlds[0].expert()
            kinds: Counter[str] = Counter()
            for first in range(0, _GROUPS, _BATCH):
                since = await last_effect(worlds[0])
                payments = await in_escrow(worlds, expert, min(_BATCH, _GROUPS - first))

                async def one(item: tuple[int, Payment]) -> tuple[str, Counter[str]]:
                    number, payment = item
                    race = _RACES[number % len(_RACES)]
                    kinds[race.__name__] += 1
                    return payment.payment_intent_id, await race(worlds, chance, payment)

                expected = dict(await at_most(6, one, enumerate(payments, first)))
                effects = await effects_by_intent(worlds[0], since)
                for intent, counted in expected.items():
                    _same_effects(effects[intent], counted)
                proving.progress(f"races: {first + len(payments)} of {_GROUPS} groups")
            await calm(worlds[0])
            await check_books(worlds[0])
            assert set(kinds) == {race.__name__ for race in _RACES}
            proving.figure("D", f"races: {_GROUPS} groups, exactly one winner each ({dict(kinds)})")

    asyncio.run(run())


# ---- money that the platform holds ----


class Held:
    """What a race about held money needs: the replicas, this process as a further one, a debtor."""

    def __init__(self, system: System, worlds: Sequence[World], app: App, chance: random.Random):
        self.system, self.worlds, self.app, self.chance = system, worlds, app, chance
        self.expert = ""

    async def hold(self, *, expert: str = "", **fields: Any) -> Payment:
        """100.00 dollars charged onto the platform by default."""
        given = {"escrow_mode": payments_pb2.ESCROW_MODE_PLATFORM_HOLD, **fields}
        if "on_deadline" in fields:
            del given["escrow_mode"]
        [payment] = await in_escrow(self.worlds, expert or self.expert, 1, **given)
        return payment

    async def race(self, *calls: tuple[str, Message]) -> list[int]:
        return _won(await _race(self.worlds, self.chance, calls))

    async def get(self, payment: Payment) -> Payment:
        return await self.worlds[0].get(payment.payment_id)

    async def race_against_promotion(self, payment: Payment, call: tuple[str, Message]) -> None:
        """Its authorization is about to expire: two deadline jobs find it during a call."""
        await asyncio.to_thread(self._move_deadline_near, payment.payment_id)

        async def sooner_or_later() -> list[int]:
            await asyncio.sleep(self.chance.uniform(0.0, 0.25))
            return await self.race(call)

        sweeps = (act_on_deadlines(self.app) for _ in range(2))
        won, *_ = await asyncio.gather(sooner_or_later(), *sweeps)
        assert won == [0], won

    def _move_deadline_near(self, payment_id: str) -> None:
        """As superuser: no service may."""
        postgres = self.system.stack.postgres
        assert postgres is not None
        options = "-c session_replication_role=replica"
        with contextlib.closing(
            psycopg2.connect(postgres.admin_url(), options=options)
        ) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE payments SET escrow_expire_time = now() + interval '11 hours', "
                    "deadline_due_time = now() "
                    "WHERE payment_id = %s",
                    (payment_id,),
                )


@contextlib.asynccontextmanager
async def _third_replica(system: System) -> AsyncIterator[App]:
    """The service in this process, so that its jobs run exactly when a race needs them."""
    given: dict[str, Any] = {
        "database_url": system.stack.database_url,
        "stripe_secret_key": SIMULATOR_SECRET_KEY,
        "stripe_api_base": system.stack.simulator_url,
        "stripe_webhook_secret": (PLATFORM_SECRET,),
        "stripe_connect_webhook_secret": (CONNECT_SECRET,),
        "platform_settlement_currencies": ("USD", "EUR", "GBP", "JPY"),
        "metrics_port": 0,
    }
    wired = wire(Settings(**given))
    try:
        yield wired.app
    finally:
        await wired.stripe.close()
        await wired.database.close()


_Races = dict[str, Counter[str]]


async def _parts_of_the_same_money(held: Held) -> _Races:
    """60.00 and 50.00 of 100.00: one of them fits."""
    payment = await held.hold()
    parts = (6_000, 5_000)
    won = await held.race(
        *(("CapturePayment", capture_request(payment.payment_id, part)) for part in parts)
    )
    assert len(won) == 1, won
    after = await held.get(payment)
    assert (after.state, after.captured_amount.minor_units) == (IN_ESCROW, parts[won[0]])
    return {payment.payment_intent_id: Counter({"captured": 1, "transferred": 1})}


async def _eight_milestones(held: Held) -> _Races:
    """Eight of 15.00 from 100.00: six fit, in any order."""
    payment = await held.hold()
    calls = [
        ("CapturePayment", capture_request(payment.payment_id, 1_500)) for _ in range(_CALLERS)
    ]
    won = await held.race(*calls)
    assert len(won) == 6, won
    after = await held.get(payment)
    amounts = (after.captured_amount.minor_units, after.held_amount.minor_units)
    assert (*amounts, after.net_commission.minor_units) == (9_000, 1_000, 900)
    return {payment.payment_intent_id: Counter({"captured": 1, "transferred": 6})}


async def _payout_against_refund(held: Held) -> _Races:
    """Money that Stripe lets be taken back: captured first it comes back from the expert."""
    payment = await held.hold(card="pm_card_bypassPending")
    won = await held.race(
        ("CapturePayment", capture_request(payment.payment_id)),
        ("RefundPayment", refund_request(payment.payment_id)),
    )
    # What comes back from the expert may wait: for funds, or for an event that came late.
    after = await held.worlds[0].in_state(payment.payment_id, REFUNDED)
    returned, refunded = after.returned_amount.minor_units, after.refunded_amount.minor_units
    happened = Counter({"captured": 1, "refunded": 1})
    if won == [1]:
        assert (returned, refunded) == (10_000, 0)
    else:
        assert won == [0, 1], won
        assert (returned, refunded) == (0, 10_000)
        happened += Counter({"transferred": 1, "reversed": 1})
    return {payment.payment_intent_id: happened}


async def _promotion_against_capture(held: Held) -> _Races:
    """The card is charged once and the expert is paid once, by any of the callers."""
    payment = await held.hold(on_deadline=payments_pb2.ON_DEADLINE_PROMOTE)
    request = capture_request(payment.payment_id, 4_000)
    await held.race_against_promotion(payment, ("CapturePayment", request))
    after = await held.get(payment)
    assert (after.state, after.held_amount.minor_units) == (IN_ESCROW, 6_000)
    return {payment.payment_intent_id: Counter({"captured": 1, "transferred": 1})}


async def _promotion_against_refund(held: Held) -> _Races:
    """Cancelled before it is charged, or given back after; never both, never neither."""
    payment = await held.hold(on_deadline=payments_pb2.ON_DEADLINE_PROMOTE)
    request = refund_request(payment.payment_id)
    await held.race_against_promotion(payment, ("RefundPayment", request))
    after = await held.get(payment)
    if after.state == CANCELED:
        return {payment.payment_intent_id: Counter({"canceled": 1})}
    assert (after.state, after.returned_amount.minor_units) == (REFUNDED, 10_000)
    return {payment.payment_intent_id: Counter({"captured": 1, "refunded": 1})}


async def _reversal_against_capture(held: Held) -> _Races:
    """What a refund is just taking back of an expert is not kept back at a capture too."""
    world = held.worlds[0]
    debtor = await world.expert(new_name("race-giver"))
    first = await held.hold(expert=debtor, card="pm_card_bypassPending")
    for _ in range(2):
        request = capture_request(first.payment_id, 5_000)
        await finally_told(world, "PaymentService/CapturePayment", request)
    second = await held.hold(expert=debtor, amount=20_000)
    # Milestones, so that one of them begins between the legs of the refund.
    parts = [capture_request(second.payment_id, 5_000) for _ in range(4)]
    won = await held.race(
        ("RefundPayment", refund_request(first.payment_id)),
        *(("CapturePayment", part) for part in parts),
    )
    assert won == [0, 1, 2, 3, 4], won
    assert balance(world, f"expert_debt:{debtor}") == 0
    happened = Counter({"captured": 1, "transferred": 2, "refunded": 1, "reversed": 2})
    return {
        first.payment_intent_id: happened,
        second.payment_intent_id: Counter({"captured": 1, "transferred": 4}),
    }


async def _one_debt_kept_back_once(held: Held) -> _Races:
    """Two captures of an expert with a debt of 90.00: together they offset exactly that."""
    world = held.worlds[0]
    debtor = await world.expert(new_name("race-debtor"))
    # Not available yet, so that Stripe does not take it back: the refund leaves a debt.
    first = await held.hold(expert=debtor)
    method = "PaymentService/"
    await finally_told(world, f"{method}CapturePayment", capture_request(first.payment_id))
    await finally_told(world, f"{method}RefundPayment", refund_request(first.payment_id))
    assert balance(world, f"expert_debt:{debtor}") == 9_000
    # Each could bear all of it, or only both together can.
    amount = held.chance.choice((20_000, 8_000))
    both = await asyncio.gather(*(held.hold(expert=debtor, amount=amount) for _ in range(2)))
    won = await held.race(
        *(("CapturePayment", capture_request(payment.payment_id)) for payment in both)
    )
    assert won == [0, 1], won
    assert balance(world, f"expert_debt:{debtor}") == 0
    sent = 0
    for payment in both:
        for effect in await world.stripe.effects("transferred", payment.payment_intent_id):
            sent += effect["amount"]
    assert sent == 2 * amount * 9 // 10 - 9_000
    expected = {
        payment.payment_intent_id: Counter({"captured": 1, "transferred": 1}) for payment in both
    }
    happened = Counter({"captured": 1, "transferred": 1, "refunded": 1})
    return {first.payment_intent_id: happened, **expected}


_HELD_RACES: tuple[Callable[[Held], Awaitable[_Races]], ...] = (
    _parts_of_the_same_money,
    _eight_milestones,
    _payout_against_refund,
    _promotion_against_capture,
    _promotion_against_refund,
    _one_debt_kept_back_once,
    _reversal_against_capture,
)


@pytest.mark.timeout(_LONG)
def test_held_money_is_paid_once(system: System) -> None:
    async def run() -> None:
        chance = random.Random(proving.SEED + 2)
        async with system.worlds() as worlds, _third_replica(system) as app:
            held = Held(system, worlds, app, chance)
            held.expert = await worlds[0].expert()
            since = await last_effect(worlds[0])
            kinds: Counter[str] = Counter()

            async def one(number: int) -> _Races:
                race = _HELD_RACES[number % len(_HELD_RACES)]
                kinds[race.__name__] += 1
                expected = await race(held)
                if number % 10 == 9:
                    proving.progress(f"races for held money: {number + 1} of {_ON_THE_PLATFORM}")
                return expected

            raced = await at_most(4, one, range(_ON_THE_PLATFORM))
            effects = await effects_by_intent(worlds[0], since)
            for expected in raced:
                for intent, counted in expected.items():
                    _same_effects(effects[intent], counted)
            await calm(worlds[0])
            await check_books(worlds[0])
            assert not await worlds[0].discrepancies()
            # The figure shows whether there was a race: either side wins sometimes.
            [(promoted, canceled)] = worlds[0].sql(
                "SELECT count(*) FILTER (WHERE kind = 'payment.promote_started'), "
                "count(*) FILTER (WHERE kind = 'payment.canceled') FROM events "
                "JOIN payments USING (payment_id) WHERE payment_intent_id = ANY(%s)",
                [intent for expected in raced for intent in expected],
            )
            proving.figure(
                "D",
                f"races for held money: {_ON_THE_PLATFORM} groups, never more paid than held, "
                f"each debt kept back once; {promoted} promotions came first, {canceled} "
                f"cancellations ({dict(kinds)})",
            )

    asyncio.run(run())


def _same_effects(happened: Counter[str], expected: Counter[str]) -> None:
    kinds = ("captured", "transferred", "canceled", "refunded", "reversed")
    relevant = {kind: happened[kind] for kind in kinds}
    wanted = {kind: expected[kind] for kind in relevant}
    assert relevant == wanted, f"{relevant} instead of {wanted}"


@pytest.mark.timeout(_LONG)
def test_one_key_from_eight_callers(system: System) -> None:
    async def run() -> None:
        chance = random.Random(proving.SEED + 1)
        async with system.worlds() as worlds:
            expert = await worlds[0].expert()
            replies = 0
            for first in range(0, _KEYS, _BATCH):
                count = min(_BATCH, _KEYS - first)
                held = await in_escrow(worlds, expert, count // 4)
                since = await last_effect(worlds[0])
                requests: list[tuple[str, Message]] = [
                    ("CapturePayment", capture_request(one.payment_id)) for one in held
                ]
                requests += [
                    (
                        "InitiatePayment",
                        worlds[0].initiation(expert, chance.randrange(100, 10**6)),
                    )
                    for _ in range(count - len(held))
                ]

                async def one(item: tuple[str, Message]) -> str:
                    method, request = item
                    replies = await asyncio.gather(
                        *(
                            finally_told(
                                worlds[caller % len(worlds)],
                                f"PaymentService/{method}",
                                request,
                            )
                            for caller in range(_CALLERS)
                        )
                    )
                    assert {reply.code for reply in replies} == {"OK"}, replies
                    assert len({reply.body for reply in replies}) == 1, "answers differ"
                    kind = getattr(payments_pb2, f"{method}Response")
                    payment = kind.FromString(replies[0].body).payment
                    return str(payment.payment_intent_id)

                intents = await at_most(3, one, requests)
                effects = await effects_by_intent(worlds[0], since)
                assert len(set(intents)) == count
                for intent, (method, _) in zip(intents, requests, strict=True):
                    kind = "captured" if method == "CapturePayment" else "intent_created"
                    assert effects[intent][kind] == 1, (intent, effects[intent])
                created = sum(counted["intent_created"] for counted in effects.values())
                assert created == count - len(held), "somebody made an intent that nobody asked for"
                replies += count * _CALLERS
                proving.progress(f"keys: {first + count} of {_KEYS}")
            await calm(worlds[0])
            await check_books(worlds[0])
            proving.figure(
                "E",
                f"keys: {_KEYS} x {_CALLERS} callers over 2 replicas: {_KEYS} effects, "
                f"{replies} replies equal byte for byte",
            )

    asyncio.run(run())
