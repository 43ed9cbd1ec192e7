"""Callers who race over two replicas: one serial order, one winner, one effect, equal answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from google.protobuf.message import Message

from marketplace.payments.v1 import payments_pb2
from tests.integration.books import check_books
from tests.integration.world import (
    CANCELED,
    CAPTURED,
    REFUNDED,
    Payment,
    Reply,
    World,
    capture_request,
    refund_request,
)
from tests.reliability import proving
from tests.reliability.crowd import (
    at_most,
    calm,
    effects_by_intent,
    finally_told,
    in_escrow,
    last_effect,
)
from tests.reliability.system import System

_GROUPS = proving.by_profile(40, 2_000)
_KEYS = proving.by_profile(40, 2_000)
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
    """Who was told OK; every other must have been refused for a reason of its own."""
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
    """Eight of 30.00 each from 100.00: three fit, whoever comes first."""
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


def _same_effects(happened: Counter[str], expected: Counter[str]) -> None:
    relevant = {kind: happened[kind] for kind in ("captured", "canceled", "refunded", "reversed")}
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
                    told = await asyncio.gather(
                        *(
                            finally_told(
                                worlds[caller % len(worlds)],
                                f"PaymentService/{method}",
                                request,
                            )
                            for caller in range(_CALLERS)
                        )
                    )
                    assert {reply.code for reply in told} == {"OK"}, told
                    assert len({reply.body for reply in told}) == 1, "answers differ"
                    kind = getattr(payments_pb2, f"{method}Response")
                    payment = kind.FromString(told[0].body).payment
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
