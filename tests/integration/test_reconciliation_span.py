"""From when to when reconciliation compares: no gap after an outage, for no account."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from marketplace.payments.v1 import operations_pb2
from payment_service.application.reconciliation import compare_lines
from tests.integration.conftest import StartWorld
from tests.support.kinds import kind_of
from tests.support.steps.operators import open_kinds, run
from tests.support.world import World


async def unexplained(world: World) -> None:
    given = {"amount": -500, "currency": "usd", "type": "adjustment"}
    await world.stripe.control("POST", "/balance", given)


async def break_list(world: World, account: str) -> None:
    match = {"method": "GET", "path": "/balance_transactions$", "account": account}
    await world.stripe.fault("", "status", status=500, times=None, match=match)


async def test_an_account_that_cannot_be_read_hides_nothing_else(world: World) -> None:
    away, there = await world.captured(), await world.captured()
    await world.settle_down()
    await unexplained(world)
    broken = world.account_of(away.expert_id)
    await break_list(world, broken)
    report = await run(world)
    name = f"stripe:connected:{away.expert_id}"
    assert list(report.unread_accounts) == [name]
    kinds = {kind_of(found) for found in report.discrepancies}
    assert kinds == {"account_unread", "unknown_balance_transaction"}
    read = world.account_of(there.expert_id)
    # What the platform began with is older than the span.
    own = [line for line in await world.stripe.lines() if line["type"] != "topup"]
    lines = len(await world.stripe.lines(read)) + len(own)
    assert report.checked_lines == lines
    # Its span is kept, however late it can be read and however little the next run asks for.
    world.sql(
        "UPDATE comparisons SET compared_until = now() - interval '5 days' WHERE account = ''"
    )
    await world.stripe.clear_faults()
    request = operations_pb2.RunReconciliationRequest()
    request.min_update_time.FromDatetime(datetime.now(UTC) + timedelta(minutes=1))
    report = await world.operations.RunReconciliation(request)
    assert (list(report.unread_accounts), report.checked_lines > 1) == ([], True)
    assert await open_kinds(world) == ["unknown_balance_transaction"]
    assert world.sql("SELECT account FROM comparisons WHERE account <> ''") == []


async def test_the_platform_that_cannot_be_read_is_an_outage(world: World) -> None:
    await run(world)
    [(before,)] = world.sql("SELECT compared_until FROM comparisons")
    match = {"method": "GET", "path": "/balance_transactions$"}
    await world.stripe.fault("", "status", status=500, times=None, match=match)
    reply = await world.raw("OperationsService/RunReconciliation", b"")
    assert reply.code == "UNAVAILABLE"
    assert world.sql("SELECT compared_until FROM comparisons") == [(before,)]


async def test_what_happened_during_an_outage_is_compared(start_world: StartWorld) -> None:
    """The service was away for longer than a run looks back."""
    world = await start_world(loops=False, policy={"reconcile_span": 1.0})
    await run(world)
    await unexplained(world)
    world.sql("UPDATE comparisons SET compared_until = now() - interval '10 seconds'")
    await run(world)
    assert await open_kinds(world) == ["unknown_balance_transaction"]
    [(until,)] = world.sql("SELECT compared_until FROM comparisons")
    assert until > datetime.now(UTC) - timedelta(minutes=1)


async def test_a_run_with_a_gap_does_not_count_as_complete(world: World) -> None:
    await run(world)
    world.sql("UPDATE comparisons SET compared_until = now() - interval '5 days'")
    [(before,)] = world.sql("SELECT compared_until FROM comparisons")
    request = operations_pb2.RunReconciliationRequest()
    request.min_update_time.FromDatetime(datetime.now(UTC) - timedelta(days=1))
    await world.operations.RunReconciliation(request)
    assert world.sql("SELECT compared_until FROM comparisons") == [(before,)]
    await run(world)
    [(after,)] = world.sql("SELECT compared_until FROM comparisons")
    assert after > before


async def test_a_posting_that_is_younger_than_its_line_is_not_missing_at_stripe(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was booked after an outage of days: Stripe's list since then does not have the line."""
    await world.captured()
    await world.settle_down()
    monkeypatch.setattr(compare_lines, "_EDGE", timedelta(hours=-1))
    request = operations_pb2.RunReconciliationRequest()
    request.min_update_time.FromDatetime(datetime.now(UTC) - timedelta(minutes=10))
    report = await world.operations.RunReconciliation(request)
    assert report.checked_lines == 0
    assert [kind_of(found) for found in report.discrepancies] == []
