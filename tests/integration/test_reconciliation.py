"""Three books against each other: payments, ledger, Stripe."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from marketplace.payments.v1 import experts_pb2, operations_pb2
from payment_service.application.reconciliation.run import reconcile_if_due
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.kinds import kind_of
from tests.support.requests import refund_request
from tests.support.steps.operators import open_kinds, run
from tests.support.world import CAPTURED, REFUNDED, World, until

Tamper = Callable[..., int]


def violated(report: operations_pb2.RunReconciliationResponse) -> set[str]:
    return {invariant.name for invariant in report.invariants if invariant.violations}


async def test_whole_lifecycles_agree_line_by_line(world: World) -> None:
    for currency, amount in (("USD", 10_000), ("JPY", 1001), ("KWD", 10_050), ("EUR", 777)):
        payment = await world.captured(amount=amount, currency=currency)
        await world.refund(payment.payment_id, amount // 30 * 10)
        await world.refund(payment.payment_id)
    await world.settle_down()
    report = await run(world)
    assert list(report.discrepancies) == []
    assert (report.checked_payments, report.corrected_payments) == (4, 0)
    assert report.checked_lines >= 4 * 8
    assert len(report.invariants) >= 9
    assert violated(report) == set()


async def test_a_payment_that_is_behind_is_synced_and_marked_as_a_correction(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy={"poll_seconds": 3600.0})
    payment = await world.escrowed()
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await world.stripe.api("POST", f"/payment_intents/{payment.payment_intent_id}/capture")
    await world.stripe.api("POST", "/refunds", payment_intent=payment.payment_intent_id)
    report = await run(world)
    assert report.corrected_payments >= 1
    assert (await world.get(payment.payment_id)).state == REFUNDED
    [(body,)] = world.sql(
        "SELECT body FROM events WHERE payment_id = %s ORDER BY sequence DESC LIMIT 1",
        payment.payment_id,
    )
    assert json.loads(body)["by"]["rpc"] == "RunReconciliation"
    kinds = {kind_of(found) for found in await world.discrepancies(payment.payment_id)}
    assert kinds == {"captured_out_of_band", "out_of_band_refund"}


@pytest.mark.parametrize("by", ["hand", "us"])
async def test_a_refund_that_failed_before_the_snapshot_agrees_line_by_line(
    start_world: StartWorld, by: str
) -> None:
    """Stripe shows both of its lines, although they come to nothing."""
    world = await start_world(policy={"poll_seconds": 3600.0, "quiet_seconds": 3600.0})
    payment = await world.captured()
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    if by == "hand":
        refund = await world.stripe.api(
            "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=1_000
        )
        await world.stripe.control("POST", f"/refunds/{refund['id']}/fail")
    else:
        # Our service does not get the answer, and cannot sync before the refund fails.
        await world.stripe.fault("/refunds$", "reset", "after")
        away = {"method": "GET", "path": "/payment_intents/"}
        await world.stripe.fault("", "status", match=away, times=None, status=503)
        request = refund_request(payment.payment_id, 1_000)
        assert (await refusal(world.payments.RefundPayment(request))).code == "UNAVAILABLE"
        [effect] = await world.stripe.effects("refunded", payment.payment_intent_id)
        await world.stripe.control("POST", f"/refunds/{effect['object']}/fail")
        await world.stripe.clear_faults()
        assert (await world.until_answered("RefundPayment", request)).code == "FAILED_PRECONDITION"
    for _ in range(2):
        report = await run(world)
        assert [kind_of(one) for one in report.discrepancies if one.payment_id] == []
        assert violated(report) == set()
    assert (await world.get(payment.payment_id)).state == CAPTURED
    await check_books(world)


async def test_a_changed_line_is_reported_and_resolved_when_it_is_repaired(
    world: World, as_superuser: Tamper
) -> None:
    payment = await world.captured()
    await world.settle_down()
    where = "WHERE payment_id = %s AND kind = 'charged' AND minor_units {} 0"
    change = "UPDATE postings SET minor_units = minor_units + %s " + where  # noqa: S608 - ours
    as_superuser(world, change.format(">"), 7, payment.payment_id)
    report = await run(world)
    [differs] = [found for found in report.discrepancies if kind_of(found) == "line_differs"]
    assert differs.payment_id == payment.payment_id
    assert (
        differs.expected.minor_units - differs.found.minor_units,
        differs.remediation != "",
    ) == (
        7,
        True,
    )
    assert "postings_sum_to_zero" in violated(report)

    as_superuser(world, change.format(">"), -7, payment.payment_id)
    assert list((await run(world)).discrepancies) == []
    stored = await world.discrepancies(payment.payment_id)
    assert stored
    assert all(found.HasField("resolve_time") for found in stored)
    request = operations_pb2.ListDiscrepanciesRequest(open_only=True)
    assert not (await world.operations.ListDiscrepancies(request)).discrepancies


async def test_a_lost_line_is_missing_and_an_invented_one_too(
    world: World, as_superuser: Tamper
) -> None:
    payment = await world.captured()
    await world.settle_down()
    change = (
        "UPDATE postings SET balance_transaction_id = %s WHERE payment_id = %s "
        "AND kind = 'transferred' AND account = 'stripe:platform'"
    )
    as_superuser(world, change, "txn_invented", payment.payment_id)
    kinds = {kind_of(found) for found in (await run(world)).discrepancies}
    recorded = "invariant_postings_are_as_recorded"
    assert kinds == {"missing_in_ledger", "missing_at_stripe", recorded}


@pytest.mark.parametrize(
    ("statement", "invariant"),
    [
        ("UPDATE payments SET net_commission = 999", "net_commission_equals_account"),
        ("UPDATE payments SET head_hash = ''", "last_event_is_head"),
        ("UPDATE payments SET operation_id = 'op_x'", "payment_names_its_open_operation"),
        ("DELETE FROM events WHERE sequence = 2", "each_version_has_one_event"),
        (
            "UPDATE payments SET state = 'REFUNDING', operation_id = ''",
            "busy_state_has_open_operation",
        ),
        (
            (
                "UPDATE payments SET refunded_after_capture = 1, net_commission = 999, "
                "client_payable = 1"
            ),
            "client_payable_equals_account",
        ),
        (
            "UPDATE postings SET account = 'hold' WHERE account = 'client'",
            "authorized_equals_hold_account",
        ),
        (
            "UPDATE postings SET minor_units = minor_units + 1 WHERE account LIKE 'escrow:%%'",
            "held_equals_escrow_account",
        ),
        (
            (
                "UPDATE postings SET account = 'expert_debt:' || "
                "(SELECT expert_id FROM payments LIMIT 1) WHERE account = 'commission'"
            ),
            "due_is_taken_back_once",
        ),
    ],
)
async def test_each_invariant_can_fail(
    world: World, as_superuser: Tamper, statement: str, invariant: str
) -> None:
    await world.captured()
    await world.settle_down()
    if "client" in statement and "account" in statement:
        statement += " AND minor_units < 0"
    as_superuser(world, statement)
    assert invariant in violated(await run(world))


async def test_money_that_moved_for_no_payment_is_reported(world: World) -> None:
    await world.captured()
    await world.stripe.control(
        "POST", "/balance", {"amount": -500, "currency": "usd", "type": "adjustment"}
    )
    found = (await run(world)).discrepancies
    assert [(kind_of(one), one.found.minor_units) for one in found] == [
        ("unknown_balance_transaction", -500)
    ]


@pytest.mark.parametrize("by", ["the span", "since"])
async def test_a_discrepancy_stays_open_when_its_line_was_not_compared(
    start_world: StartWorld, as_superuser: Tamper, by: str
) -> None:
    """A line that is older than the run reaches, and a payment that has not changed since."""
    world = await start_world(policy={"reconcile_span": 1.0} if by == "the span" else {})
    payment = await world.captured()
    await world.settle_down()
    await world.stripe.control(
        "POST", "/balance", {"amount": -500, "currency": "usd", "type": "adjustment"}
    )
    request = operations_pb2.RunReconciliationRequest()
    tamper = "UPDATE payments SET net_commission = net_commission + %s WHERE payment_id = %s"
    as_superuser(world, tamper, 7, payment.payment_id)
    request.min_update_time.FromDatetime(datetime.now(UTC) - timedelta(hours=1))
    await world.operations.RunReconciliation(request)
    broken = {"invariant_net_commission_equals_account", "invariant_row_is_as_recorded"}
    assert set(await open_kinds(world)) == {"unknown_balance_transaction", *broken}
    await asyncio.sleep(2.5)
    request.Clear()
    if by == "since":
        request.min_update_time.FromDatetime(datetime.now(UTC))
    await world.operations.RunReconciliation(request)
    assert set(await open_kinds(world)) == {"unknown_balance_transaction", *broken}
    # What is mended is gone, although the run reaches it no more than before.
    as_superuser(world, tamper, -7, payment.payment_id)
    await world.operations.RunReconciliation(request)
    assert await open_kinds(world) == ["unknown_balance_transaction"]


async def test_a_repaired_line_is_resolved_however_old_it_is(
    start_world: StartWorld, as_superuser: Tamper
) -> None:
    world = await start_world(policy={"reconcile_span": 1.0})
    payment = await world.captured()
    await world.settle_down()
    change = (
        "UPDATE postings SET balance_transaction_id = %s WHERE payment_id = %s "
        "AND kind = 'transferred' AND account = 'stripe:platform' AND minor_units < 0"
    )
    [(line,)] = world.sql(
        "SELECT balance_transaction_id FROM postings WHERE payment_id = %s "
        "AND kind = 'transferred' AND account = 'stripe:platform' AND minor_units < 0",
        payment.payment_id,
    )
    as_superuser(world, change, "txn_invented", payment.payment_id)
    ever = operations_pb2.RunReconciliationRequest()
    ever.min_update_time.FromDatetime(datetime.now(UTC) - timedelta(hours=1))
    await world.operations.RunReconciliation(ever)
    both = {"missing_in_ledger", "missing_at_stripe"}
    assert both <= set(await open_kinds(world))
    as_superuser(world, change, line, payment.payment_id)
    await asyncio.sleep(2.5)
    await run(world)
    assert await open_kinds(world) == []


async def test_lines_of_an_account_that_was_skipped_stay_open(
    start_world: StartWorld, as_superuser: Tamper
) -> None:
    world = await start_world(policy={"poll_seconds": 3600.0, "account_poll_seconds": 3600.0})
    payment = await world.captured()
    await world.settle_down()
    as_superuser(
        world,
        "UPDATE postings SET minor_units = minor_units + 7 WHERE payment_id = %s "
        "AND account LIKE 'stripe:connected:%%' AND balance_transaction_id <> ''",
        payment.payment_id,
    )
    await run(world)
    assert "line_differs" in await open_kinds(world)
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    account = world.account_of(payment.expert_id)
    await world.stripe.control("POST", f"/accounts/{account}/deauthorize")
    await run(world)
    assert "line_differs" in await open_kinds(world)


async def test_one_payment_alone_closes_repaired_discrepancies(
    world: World, as_superuser: Tamper
) -> None:
    payment = await world.captured()
    await world.settle_down()
    tamper = "UPDATE payments SET net_commission = net_commission + %s WHERE payment_id = %s"
    as_superuser(world, tamper, 7, payment.payment_id)
    await run(world, payment.payment_id)
    assert "invariant_net_commission_equals_account" in await open_kinds(world)
    as_superuser(world, tamper, -7, payment.payment_id)
    await run(world, payment.payment_id)
    assert await open_kinds(world) == []


async def test_one_payment_alone(world: World) -> None:
    payment = await world.captured()
    report = await run(world, payment.payment_id)
    assert (report.checked_payments, list(report.discrepancies)) == (1, [])
    refused = await refusal(run(world, "pay_unknown"))
    assert (refused.code, refused.reason) == ("NOT_FOUND", "PAYMENT_NOT_FOUND")
    assert (await world.get(payment.payment_id)).state == CAPTURED


async def test_the_job_is_done_by_one_replica_in_an_hour(start_world: StartWorld) -> None:
    world = await start_world(loops=False)
    assert world.service is not None
    world.sql("UPDATE jobs SET next_time = now() WHERE name = 'reconciliation'")
    await reconcile_if_due(world.service.app)
    before = len(await world.stripe.requests("/balance_transactions", "GET"))
    assert before > 0
    await reconcile_if_due(world.service.app)
    assert len(await world.stripe.requests("/balance_transactions", "GET")) == before


async def test_the_service_does_the_job_by_itself_once_it_is_due(world: World) -> None:
    assert not await world.stripe.requests("/balance_transactions", "GET")
    world.sql("UPDATE jobs SET next_time = now() WHERE name = 'reconciliation'")

    async def compared() -> bool:
        return bool(await world.stripe.requests("/balance_transactions", "GET"))

    await until(compared, "the books compared with Stripe's")


async def test_one_payment_is_judged_by_its_own_books(world: World, as_superuser: Tamper) -> None:
    expert_id = await world.expert()
    broken, whole = await world.captured(expert_id), await world.captured(expert_id)
    await world.settle_down()
    as_superuser(
        world,
        "UPDATE payments SET net_commission = 999 WHERE payment_id = %s",
        broken.payment_id,
    )
    assert violated(await run(world, broken.payment_id)) == {
        "net_commission_equals_account",
        "row_is_as_recorded",
    }
    assert violated(await run(world, whole.payment_id)) == set()


async def test_a_silently_disconnected_account_delays_no_other(
    start_world: StartWorld,
) -> None:
    """Stripe does not show it any more; without a webhook the reconciliation finds out itself."""
    world = await start_world(policy={"poll_seconds": 3600.0, "account_poll_seconds": 3600.0})
    gone, stays = await world.captured(), await world.captured()
    await world.settle_down()
    assert not (await run(world)).discrepancies
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    account = world.account_of(gone.expert_id)
    await world.stripe.control("POST", f"/accounts/{account}/deauthorize")
    await world.stripe.api("POST", "/refunds", payment_intent=stays.payment_intent_id)
    report = await run(world)
    assert report.corrected_payments == 1
    expert = await world.expert_status(gone.expert_id, experts_pb2.EXPERT_STATUS_DEAUTHORIZED)
    assert expert.stripe_account_id == account
    assert (await run(world)).checked_lines > 0
