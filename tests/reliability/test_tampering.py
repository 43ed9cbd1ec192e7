"""A direct change of the books, as superuser and with every trigger off, is found."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from dev.postgres import EmbeddedPostgres
from marketplace.payments.v1 import operations_pb2
from payment_service.application.verify_heads import Verdict
from tests.reliability import proving
from tests.reliability.intruder import Intruder, intruding
from tests.reliability.rewriting import REWRITINGS, UNNOTICED
from tests.reliability.tampering import KINDS
from tests.support.books import check_books
from tests.support.heads import exported, held_against
from tests.support.kinds import kind_of
from tests.support.running import running_world
from tests.support.world import World

_TAMPERINGS = proving.by_profile(len(KINDS), 200)
_LIVES = proving.by_profile(1, 4)
_BETWEEN_WHOLE_CHECKS = 25
_EVER = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.mark.timeout(proving.by_profile(180, 1800))
def test_every_tampering_is_found(
    new_database: Callable[[], str], postgres: EmbeddedPostgres
) -> None:
    asyncio.run(_tamper(new_database(), postgres))


async def _tamper(database_url: str, postgres: EmbeddedPostgres) -> None:
    chance = random.Random(proving.SEED)
    async with running_world(database_url) as world:
        payment_ids = await _lives(world)
        await check_books(world)
        # Nothing but the verification itself may touch the rows from now on.
        assert world.service is not None
        await world.service.stop()
        await world.service.start(loops=False)
        name = database_url.rpartition("/")[2]
        with intruding(postgres.admin_url(name), chance) as intruder:
            intruder.keep()
            assert await _named(world) == {}
            kinds: Counter[str] = Counter()
            missed = []
            for number in range(_TAMPERINGS):
                kind, tampered = _strike(intruder, number, payment_ids)
                kinds[kind] += 1
                found = await _named(world)
                if not set(tampered) <= found.keys():
                    missed.append(f"{number}: {kind} of {tampered}, found {found}")
                intruder.undo()
                assert not intruder.changed()
                if not (number + 1) % _BETWEEN_WHOLE_CHECKS:
                    assert await _named(world) == {}, "not clean after all was put back"
                    proving.progress(f"tampering: {number + 1} of {_TAMPERINGS}")
            assert await _named(world) == {}, "not clean after all was put back"
    assert not missed, "\n".join(missed)
    assert set(kinds) == {kind.__name__ for kind in KINDS}
    proving.figure(
        "O",
        f"tampering: {_TAMPERINGS} of {len(kinds)} kinds among {len(payment_ids)} payments, "
        "all found, each by the payment's name",
    )


_AGAINST_HEADS = proving.by_profile(len(KINDS) + len(REWRITINGS), 200)


@pytest.mark.timeout(proving.by_profile(240, 1800))
def test_exported_heads_find_every_tampering_and_whole_rewrites(
    new_database: Callable[[], str], postgres: EmbeddedPostgres
) -> None:
    asyncio.run(_hold_against_heads(new_database(), postgres))


async def _hold_against_heads(database_url: str, postgres: EmbeddedPostgres) -> None:
    chance = random.Random(proving.SEED)
    async with running_world(database_url) as world:
        payment_ids = await _lives(world)
        await check_books(world)
        assert world.service is not None
        await world.service.stop()
        await world.service.start(loops=False)
        heads, entries = await exported(world)
        assert heads.events > len(payment_ids)
        name = database_url.rpartition("/")[2]
        with intruding(postgres.admin_url(name), chance) as intruder:
            intruder.keep()
            assert (await held_against(world, heads, entries)).verdict is Verdict.AGREES
            kinds: Counter[str] = Counter()
            missed = []
            for number in range(_AGAINST_HEADS):
                kind, first = _change(intruder, number, payment_ids)
                kinds[kind] += 1
                found = await held_against(world, heads, entries)
                named: dict[str, int] = {**found.payments, **found.records}
                wrong = {
                    name: named.get(name)
                    for name, sequence in first.items()
                    if name not in named or (sequence and named[name] != sequence)
                }
                if wrong or found.verdict is Verdict.AGREES:
                    missed.append(f"{number}: {kind}, {first}: {wrong}, {found}")
                if kind in UNNOTICED:
                    assert await _named(world) == {}, f"{kind} was to be consistent"
                intruder.undo()
                assert not intruder.changed()
                if not (number + 1) % _BETWEEN_WHOLE_CHECKS:
                    proving.progress(f"heads: {number + 1} of {_AGAINST_HEADS}")
            assert (await held_against(world, heads, entries)).verdict is Verdict.AGREES
    assert not missed, "\n".join(missed)
    assert len(kinds) == len(KINDS) + len(REWRITINGS)
    rewritten = sum(count for kind, count in kinds.items() if kind in _REWRITING_NAMES)
    proving.figure(
        "O",
        f"tampering against exported heads: {_AGAINST_HEADS}, {rewritten} of them whole rewrites "
        "without a contradiction, all found, each rewrite by its first event",
    )


_REWRITING_NAMES = {rewriting.__name__ for rewriting in REWRITINGS}


def _change(intruder: Intruder, number: int, payment_ids: list[str]) -> tuple[str, dict[str, int]]:
    """A tampering of any kind in turn; of a rewrite also the first event that it touches."""
    every = len(KINDS) + len(REWRITINGS)
    if number % every < len(KINDS):
        kind, tampered = _strike(intruder, number % every, payment_ids)
        # Of what is only in tables that heads do not cover, the service itself names the payment.
        return kind, dict.fromkeys(tampered, 0)
    rewriting = REWRITINGS[number % every - len(KINDS)]
    for payment_id in intruder.chance.sample(payment_ids, len(payment_ids)):
        first = dict(rewriting(intruder, payment_id))
        if first:
            assert intruder.changed(), f"{rewriting.__name__} changed nothing"
            return rewriting.__name__, first
    raise AssertionError(f"no payment for {rewriting.__name__}")


def _strike(intruder: Intruder, number: int, payment_ids: list[str]) -> tuple[str, list[str]]:
    """Every kind in turn, on a payment that has what it needs."""
    kind = KINDS[number % len(KINDS)]
    for payment_id in intruder.chance.sample(payment_ids, len(payment_ids)):
        tampered = list(kind(intruder, payment_id))
        if tampered:
            assert intruder.changed(), f"{kind.__name__} changed nothing"
            return kind.__name__, tampered
    raise AssertionError(f"no payment for {kind.__name__}")


async def _lives(world: World) -> list[str]:
    """Payments of every way of life, their money come to rest."""
    expert = await world.expert()
    payment_ids = []
    for _ in range(_LIVES):
        for currency, amount in (("USD", 10_000), ("JPY", 1001), ("EUR", 777)):
            payment = await world.captured(expert, amount, currency)
            await world.refund(payment.payment_id, amount // 30 * 10)
            whole = await world.captured(expert, amount, currency)
            await world.refund(whole.payment_id, amount // 30 * 10)
            await world.refund(whole.payment_id)
            payment_ids += [payment.payment_id, whole.payment_id]
        held = await world.escrowed(expert, 5_000)
        given_up = await world.escrowed(expert, 5_000)
        await world.refund(given_up.payment_id)
        part = await world.escrowed(expert, 5_000)
        await world.capture(part.payment_id, 2_000, final=True)
        unpaid = (await world.initiate(expert, 5_000)).payment
        declined = await world.initiate(expert, 5_000)
        await world.confirm(declined, "pm_card_visa_chargeDeclined")
        elsewhere = await world.escrowed(expert, 5_000)
        intent = elsewhere.payment_intent_id
        await world.stripe.api("POST", f"/payment_intents/{intent}/capture")
        await world.stripe.api("POST", "/refunds", payment_intent=intent, amount=1_000)
        payment_ids += [
            one.payment_id for one in (held, given_up, part, unpaid, declined.payment, elsewhere)
        ]
        bounced = await world.captured(expert, 5_000)
        await world.refund(bounced.payment_id, 1_000)
        await world.settle_down()
        [(refund_id,)] = world.sql(
            "SELECT movement_id FROM movements WHERE kind = 'refund' AND payment_id = %s",
            bounced.payment_id,
        )
        await world.stripe.control("POST", f"/refunds/{refund_id}/fail")
        payment_ids.append(bounced.payment_id)
        await world.settle_down()
    return payment_ids


async def _named(world: World) -> dict[str, list[str]]:
    """Whom the service itself accuses of a contradiction in the books, and of what."""
    request = operations_pb2.RunReconciliationRequest()
    request.min_update_time.FromDatetime(_EVER)
    found: dict[str, list[str]] = {}
    for one in (await world.operations.RunReconciliation(request)).discrepancies:
        if kind_of(one).startswith("invariant_"):
            found.setdefault(one.payment_id, []).append(f"{kind_of(one)}: {one.detail}")
    return found


def test_tampering_is_found_after_a_valid_change_was_written_over_it(
    new_database: Callable[[], str], postgres: EmbeddedPostgres
) -> None:
    async def run() -> None:
        url = new_database()
        async with running_world(url) as world:
            payment = await world.captured()
            await world.settle_down()
            admin_url = postgres.admin_url(url.rpartition("/")[2])
            with intruding(admin_url, random.Random(proving.SEED)) as intruder:
                intruder.edit_payment(payment.payment_id, "gig_id = 'another'")
                refunded = await world.refund(payment.payment_id, 1_000)
                assert refunded.gig_id == "another"
                await world.settle_down()
                [accused] = (await _named(world))[payment.payment_id]
                assert f"event {payment.version + 1}: found a row" in accused
                intruder.edit_payment(payment.payment_id, "gig_id = %s", payment.gig_id)
                assert payment.payment_id in await _named(world)

    asyncio.run(run())
