"""Two releases write side by side in an upgrade: no chain breaks, and the oldest can be stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import psycopg2
import pytest

from dev.postgres import owner_url
from marketplace.payments.v1 import operations_pb2
from payment_service.adapters.postgres.engine import SqlDatabase
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.domain import audit_trail
from payment_service.domain.errors import Unavailable
from tests.support.books import check_books
from tests.support.world import CAPTURED, REFUNDED, World

WrittenBy = Callable[[int], None]


@pytest.fixture
def written_by(monkeypatch: pytest.MonkeyPatch) -> WrittenBy:
    """Writes as the former release (1) or as the newer one (2), which alone knows `charge_id`."""
    monkeypatch.setattr(audit_trail, "_FIELD_WRITERS", {"charge_id": 2})

    def write_as(writer: int) -> None:
        monkeypatch.setattr(audit_trail, "WRITER", writer)

    return write_as


async def _violated(world: World) -> list[str]:
    report = await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())
    return [one.name for one in report.invariants if one.violations]


@pytest.mark.parametrize("last", [1, 2])
async def test_what_both_have_written_is_intact(
    world: World, written_by: WrittenBy, last: int
) -> None:
    written_by(2)
    held = await world.escrowed(amount=10_000)
    written_by(1)
    await world.capture(held.payment_id)
    await world.settle_down()
    written_by(last)
    await world.refund(held.payment_id, 4_000)
    await world.settle_down()
    for auditor in (2, 1):
        written_by(auditor)
        assert (await world.get(held.payment_id)).state == CAPTURED
        await check_books(world)
        assert await _violated(world) == []
    await world.refund(held.payment_id)
    assert (await world.get(held.payment_id)).state == REFUNDED


async def test_a_field_that_the_writer_knew_is_still_vouched_for(
    world: World,
    written_by: WrittenBy,
    as_superuser: Callable[..., int],
) -> None:
    written_by(2)
    await world.escrowed()
    await world.settle_down()
    as_superuser(world, "UPDATE payments SET charge_id = 'ch_other'")
    assert await _violated(world) == ["row_is_as_recorded"]


async def test_a_release_that_is_too_old_writes_nothing(database_url: str) -> None:
    database = SqlDatabase(database_url, write_connections=1, read_connections=1)

    def write(tx: SqlTransaction) -> None:
        raise AssertionError("it would have written")

    try:
        assert await database.ping()
        # A newer release migrates, as the owner.
        with contextlib.closing(psycopg2.connect(owner_url(database_url))) as connection:
            connection.cursor().execute("UPDATE releases SET minimum_writer = 1000")
            connection.commit()
        assert not await database.ping()
        with pytest.raises(Unavailable):
            await database.transact(write)
    finally:
        await database.close()
