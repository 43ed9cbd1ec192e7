"""Running balances: exact at any moment, whatever is folded, and checked by a second sum."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg2

from payment_service.application.reconciliation.run import reconcile
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import Cause
from tests.integration.conftest import StartWorld
from tests.support.kinds import kind_of
from tests.support.steps.payments import PLATFORM
from tests.support.world import IN_ESCROW, World

Balances = dict[tuple[str, str], int]


def _page(
    reader: Reader, after: tuple[str, str] | None, limit: int
) -> Sequence[tuple[str, str, int]]:
    return reader.balances("", after, limit)


async def _balances(world: World, page: int = 3) -> Balances:
    """Reads all balances in small pages."""
    assert world.service is not None
    found: Balances = {}
    after: tuple[str, str] | None = None
    while True:
        lines = await world.service.app.database.read(_page, after, page)
        found |= {(account, currency): units for account, currency, units in lines}
        if len(lines) < page:
            return found
        after = lines[-1][:2]


def _summed(world: World) -> Balances:
    rows = world.sql(
        "SELECT account, currency, sum(minor_units)::bigint FROM postings GROUP BY 1, 2"
    )
    return {(account, currency): units for account, currency, units in rows}


async def _fold(world: World, limit: int = 10_000) -> bool:
    assert world.service is not None

    def fold(tx: Transaction) -> bool:
        return tx.fold_postings(0.0, 0.0, limit)

    return await world.service.app.database.transact(fold)


def _open(world: World) -> int:
    [(count,)] = world.sql("SELECT count(*) FROM open_postings()")
    return int(count)


@contextlib.contextmanager
def _transaction(world: World) -> Iterator[Any]:
    """Yields a cursor in a transaction that is committed at the end."""
    with (
        contextlib.closing(psycopg2.connect(world.database_url)) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        yield cursor


async def test_balances_are_exact_before_during_and_after_a_fold(start_world: StartWorld) -> None:
    world = await start_world(policy={"slow_job_interval": 3600.0})
    expert = await world.expert()
    for _ in range(3):
        await world.captured(expert)
    charged = await world.initiate(expert, escrow_mode=PLATFORM)
    await world.confirm(charged)
    await world.in_state(charged.payment.payment_id, IN_ESCROW)
    await world.settle_down()
    assert await _balances(world) == _summed(world)
    await _fold(world)  # Chooses the end of the span, which the next turn closes.
    seen = []
    while await _fold(world, limit=2):
        assert await _balances(world) == _summed(world)
        seen.append(_open(world))
    assert _open(world) == 0
    assert len(set(seen)) > 2
    assert await _balances(world) == _summed(world)
    await world.captured(expert)
    await world.settle_down()
    assert _open(world) > 0
    assert await _balances(world) == _summed(world)
    assert world.service is not None
    database = world.service.app.database
    assert await database.read(lambda reader: reader.totals()) == [("USD", 0)]
    assert await database.read(lambda reader: reader.obligations()) == [("USD", 10_000)]
    prefixed = await database.read(lambda reader: reader.balances("escrow:", None, 100))
    assert {account.partition(":")[0] for account, _, _ in prefixed} == {"escrow"}


async def test_a_span_is_not_closed_while_a_transaction_may_write_into_it(
    start_world: StartWorld,
) -> None:
    world = await start_world(loops=False)
    with _transaction(world) as slow:
        slow.execute(
            "INSERT INTO platform_lines VALUES ('txn_slow', 'stripe_fee', '', now(), now())"
        )
        slow.execute(
            "INSERT INTO postings (platform_line_id, sequence, account, currency, minor_units, "
            "kind, balance_transaction_id, time) VALUES "
            "('txn_slow', 1, 'stripe:platform', 'USD', -30, 'fee', 'txn_slow', now()), "
            "('txn_slow', 1, 'processor_fee', 'USD', 30, 'fee', '', now())"
        )
        for _ in range(3):
            assert not await _fold(world)
        [(closed,)] = world.sql("SELECT closed_until FROM ledger_span")
        assert closed == 0
        assert await _balances(world) == {}
    expected = {("stripe:platform", "USD"): -30, ("processor_fee", "USD"): 30}
    assert await _balances(world) == expected
    await _fold(world)
    assert _open(world) == 0
    assert await _balances(world) == expected


async def test_a_restored_database_folds_on(start_world: StartWorld) -> None:
    """The ids of transactions of another server mean nothing here."""
    world = await start_world()
    await world.captured()
    await world.settle_down()
    await _fold(world)
    world.sql("UPDATE ledger_span SET next_xid = '99999999999' RETURNING 1")
    await _fold(world)
    await _fold(world)
    assert _open(world) == 0
    assert await _balances(world) == _summed(world)


async def test_a_balance_that_is_not_the_sum_of_its_postings_is_found(
    start_world: StartWorld, as_superuser: Callable[..., int]
) -> None:
    world = await start_world()
    await world.captured()
    await world.settle_down()
    await _fold(world)
    await _fold(world)
    assert world.service is not None
    app, cause = world.service.app, Cause("tests", "look")
    assert not (await reconcile(app, None, cause)).discrepancies
    as_superuser(
        world,
        "UPDATE ledger_balances SET minor_units = minor_units + 1 WHERE account = 'commission'",
    )
    found = (await reconcile(app, None, cause)).discrepancies
    assert [one.kind.value for one in found] == ["invariant_balances_equal_postings"]
    assert [kind_of(one) for one in await world.discrepancies()] == [
        "invariant_balances_equal_postings"
    ]
    as_superuser(
        world,
        "UPDATE ledger_balances SET minor_units = minor_units - 1 WHERE account = 'commission'",
    )
    assert not (await reconcile(app, None, cause)).discrepancies
    assert all(one.HasField("resolve_time") for one in await world.discrepancies())
