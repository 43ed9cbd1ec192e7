"""Payouts to the bank: observed, never asked for; in the books once, whatever the events do."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import psycopg2
import pytest

from marketplace.payments.v1 import experts_pb2, operations_pb2, webhooks_pb2
from payment_service.application.jobs.apply_webhooks import apply_waiting
from payment_service.application.sync.payout import save_payout, sync_payout
from payment_service.domain.ports.records import Cause
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.kinds import kind_of
from tests.support.service import CONNECT_SECRET
from tests.support.stripe import ingestion, new_event
from tests.support.world import World, until

PENDING = experts_pb2.PAYOUT_STATE_PENDING
IN_TRANSIT = experts_pb2.PAYOUT_STATE_IN_TRANSIT
PAID = experts_pb2.PAYOUT_STATE_PAID
FAILED = experts_pb2.PAYOUT_STATE_FAILED
CANCELED = experts_pb2.PAYOUT_STATE_CANCELED
State: TypeAlias = experts_pb2.PayoutState.ValueType

DAY = 86_400
AVAILABLE = "pm_card_bypassPending"
CAUSE = Cause("test", "test")


async def listed(world: World, expert_id: str, **fields: Any) -> list[experts_pb2.Payout]:
    request = experts_pb2.ListPayoutsRequest(expert_id=expert_id, **fields)
    return list((await world.experts.ListPayouts(request)).payouts)


async def until_payouts(world: World, expert_id: str, *states: State) -> list[experts_pb2.Payout]:
    """Wait until the expert's payouts, newest first, stand so."""

    async def probe() -> list[experts_pb2.Payout] | None:
        found = await listed(world, expert_id)
        return found if [payout.state for payout in found] == list(states) else None

    return await until(probe, f"payouts of {expert_id} in {states}")


async def shown(world: World, expert_id: str) -> list[tuple[str, int, int, int, int]]:
    """Currency, available, pending, funds, debt."""
    request = experts_pb2.GetExpertBalanceRequest(expert_id=expert_id)
    answer = await world.experts.GetExpertBalance(request)
    return [
        (
            one.available.currency_code,
            one.available.minor_units,
            one.pending.minor_units,
            one.funds.minor_units,
            one.debt.minor_units,
        )
        for one in answer.balances
    ]


async def pay_out(world: World, expert_id: str) -> str:
    """Everything that is available now; the payout's id."""
    account = world.account_of(expert_id)
    made = await world.stripe.control("POST", f"/accounts/{account}/payout")
    [payout_id] = made["payouts"]
    return str(payout_id)


async def at_the_bank(world: World, payout_id: str, action: str) -> None:
    await world.stripe.control("POST", f"/payouts/{payout_id}/{action}")


async def earned(world: World, amount: int = 10_000) -> str:
    """An expert with nine tenths of the amount available at Stripe."""
    expert_id = await world.expert()
    await world.captured(expert_id, amount, card=AVAILABLE)
    return expert_id


async def reconciled(world: World) -> operations_pb2.RunReconciliationResponse:
    return await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())


def trail(world: World, expert_id: str) -> list[tuple[int, str]]:
    return [
        (int(sequence), str(kind))
        for sequence, kind in world.sql(
            "SELECT sequence, kind FROM expert_events WHERE expert_id = %s ORDER BY sequence",
            expert_id,
        )
    ]


async def test_the_schedule_from_earned_to_the_bank(world: World) -> None:
    expert_id = await world.expert()
    await world.captured(expert_id)
    assert await listed(world, expert_id) == []
    assert await shown(world, expert_id) == [("USD", 0, 9_000, 9_000, 0)]
    await world.stripe.advance(3 * DAY)
    [payout] = await until_payouts(world, expert_id, IN_TRANSIT)
    assert (payout.amount.minor_units, payout.amount.currency_code) == (9_000, "USD")
    assert (payout.automatic, payout.failure_code) == (True, "")
    assert payout.arrival_time.seconds == payout.create_time.seconds + DAY
    assert payout.stripe_account_id == world.account_of(expert_id)
    await world.stripe.advance(DAY)
    [payout] = await until_payouts(world, expert_id, PAID)
    assert payout.version >= 2
    assert await shown(world, expert_id) == [("USD", 0, 0, 0, 0)]
    assert balance(world, f"expert_funds:{expert_id}") == 0
    assert balance(world, f"stripe:connected:{expert_id}") == 0
    await check_books(world)
    report = await reconciled(world)
    assert list(report.discrepancies) == []
    events = trail(world, expert_id)
    assert [sequence for sequence, _ in events] == list(range(1, len(events) + 1))
    assert events[-1][1] == "expert.payout_paid"


async def test_a_bank_that_refuses(world: World) -> None:
    expert_id = await earned(world)
    account = world.account_of(expert_id)
    await world.stripe.control("POST", f"/accounts/{account}/bank", {"number": "000111111116"})
    await pay_out(world, expert_id)
    await until_payouts(world, expert_id, PENDING)
    assert await shown(world, expert_id) == [("USD", 0, 0, 0, 0)]
    await world.stripe.advance(2 * DAY)
    [payout] = await until_payouts(world, expert_id, FAILED)
    assert payout.failure_code == "no_account"
    assert await shown(world, expert_id) == [("USD", 9_000, 0, 9_000, 0)]
    assert world.service is not None
    assert world.service.wired is not None
    registry = world.service.wired.metrics.registry
    labels = {"state": "failed", "currency": "USD"}
    assert registry.get_sample_value("payments_payouts_total", labels) == 1
    assert registry.get_sample_value("payments_payout_minor_units_total", labels) == 9_000
    await check_books(world)
    assert list((await reconciled(world)).discrepancies) == []


async def test_paid_and_taken_back_days_later(world: World) -> None:
    expert_id = await earned(world)
    first = await pay_out(world, expert_id)
    await at_the_bank(world, first, "pay")
    await until_payouts(world, expert_id, PAID)
    await at_the_bank(world, first, "fail")
    [payout] = await until_payouts(world, expert_id, FAILED)
    assert payout.failure_code == "account_closed"
    assert [kind for _, kind in trail(world, expert_id)][-2:] == [
        "expert.payout_paid",
        "expert.payout_failed",
    ]
    # The expert mends the bank account and the money goes out again, under another id.
    account = world.account_of(expert_id)
    await world.stripe.control("POST", f"/accounts/{account}/bank", {})
    await world.stripe.advance(1)  # Stripe's times are whole seconds.
    second = await pay_out(world, expert_id)
    await at_the_bank(world, second, "pay")
    newest, oldest = await until_payouts(world, expert_id, PAID, FAILED)
    assert (newest.payout_id, oldest.payout_id) == (second, first)
    await check_books(world)
    assert list((await reconciled(world)).discrepancies) == []


async def test_a_manual_payout_that_is_canceled(world: World) -> None:
    expert_id = await earned(world)
    account = world.account_of(expert_id)
    made = await world.stripe.api("POST", "/payouts", account=account, amount=4_000, currency="usd")
    [payout] = await until_payouts(world, expert_id, PENDING)
    assert (payout.payout_id, payout.automatic) == (made["id"], False)
    assert await shown(world, expert_id) == [("USD", 5_000, 0, 5_000, 0)]
    await world.stripe.api("POST", f"/payouts/{made['id']}/cancel", account=account)
    await until_payouts(world, expert_id, CANCELED)
    assert await shown(world, expert_id) == [("USD", 9_000, 0, 9_000, 0)]
    await check_books(world)


def happened(account: str, payout_id: str) -> list[dict[str, Any]]:
    """Events of a whole life, each under three ids."""
    kinds = ("payout.created", "payout.updated", "payout.paid", "payout.failed")
    return [
        new_event(kind, {"object": "payout", "id": payout_id}, account=account)
        for kind in kinds
        for _ in range(3)
    ]


async def deliver(world: World, events: Sequence[dict[str, Any]]) -> None:
    connect = webhooks_pb2.WEBHOOK_ENDPOINT_CONNECT
    await asyncio.gather(
        *(
            world.webhooks.IngestEvent(ingestion(event, secret=CONNECT_SECRET, endpoint=connect))
            for event in events
        )
    )


@pytest.mark.parametrize("seed", range(3))
async def test_any_order_and_number_of_events_ends_the_same(world: World, seed: int) -> None:
    dice = random.Random(seed)
    expert_id = await earned(world)
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    payout_id = await pay_out(world, expert_id)
    events = happened(world.account_of(expert_id), payout_id)
    events += dice.choices(events, k=6)
    dice.shuffle(events)
    steps: list[str] = ["pay", "fail"]
    for position in range(0, len(events), 6):
        if steps and dice.random() < 0.7:
            await at_the_bank(world, payout_id, steps.pop(0))
        await deliver(world, events[position : position + 6])
    for action in steps:
        await at_the_bank(world, payout_id, action)
    await deliver(world, happened(world.account_of(expert_id), payout_id))
    await until_payouts(world, expert_id, FAILED)
    await world.settle_down()
    kinds = {"paid_out": 2, "payout_returned": 2}
    assert (
        dict(
            world.sql("SELECT kind, count(*) FROM postings WHERE expert_id IS NOT NULL GROUP BY 1")
        )
        == kinds
    )
    [(version,)] = world.sql("SELECT version FROM payouts")
    assert version <= 3
    assert await shown(world, expert_id) == [("USD", 9_000, 0, 9_000, 0)]
    await check_books(world)
    assert list((await reconciled(world)).discrepancies) == []


async def paid_out_unheard(start_world: StartWorld) -> tuple[World, str, str]:
    """An expert's payout of which a service without loops has not heard."""
    world = await start_world(loops=False)
    expert_id = await world.expert(ready=False)
    account = world.account_of(expert_id)
    await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding")
    given = {"account": account, "amount": 500, "currency": "usd", "type": "topup"}
    await world.stripe.control("POST", "/balance", given)
    return world, expert_id, await pay_out(world, expert_id)


async def test_an_answer_that_was_overtaken_is_not_written_down(start_world: StartWorld) -> None:
    world, expert_id, payout_id = await paid_out_unheard(start_world)
    assert world.service is not None
    app, account = world.service.app, world.account_of(expert_id)
    early = await app.stripe.payout(account, payout_id)
    assert early is not None
    await at_the_bank(world, payout_id, "pay")
    assert await sync_payout(app, account, payout_id, CAUSE) == "applied"
    late = await app.database.transact(save_payout, expert_id, account, early, 0, CAUSE)
    assert late.stale
    assert await sync_payout(app, account, payout_id, CAUSE) == "no_change"
    assert [payout.state for payout in await listed(world, expert_id)] == [PAID]
    # Many at once write it down once.
    await at_the_bank(world, payout_id, "fail")
    verdicts = await asyncio.gather(
        *(sync_payout(app, account, payout_id, CAUSE) for _ in range(8))
    )
    assert sorted(verdicts) == ["applied", *["no_change"] * 7]


async def test_webhooks_that_never_come_are_found_by_asking(start_world: StartWorld) -> None:
    world = await start_world(
        policy={"poll_seconds": 0.2, "account_poll_seconds": 0.2, "payout_poll_seconds": 0.2}
    )
    expert_id = await earned(world)
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    payout_id = await pay_out(world, expert_id)
    await until_payouts(world, expert_id, PENDING)
    await at_the_bank(world, payout_id, "pay")
    await until_payouts(world, expert_id, PAID)
    await at_the_bank(world, payout_id, "fail")
    await until_payouts(world, expert_id, FAILED)
    await check_books(world)


async def test_a_change_without_a_webhook_is_found_by_reconciliation(
    start_world: StartWorld,
) -> None:
    world = await start_world(
        policy={
            "poll_seconds": 3600.0,
            "account_poll_seconds": 3600.0,
            "payout_poll_seconds": 3600.0,
        }
    )
    expert_id = await earned(world)
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    payout_id = await pay_out(world, expert_id)
    await at_the_bank(world, payout_id, "pay")
    assert list((await reconciled(world)).discrepancies) == []
    assert [payout.state for payout in await listed(world, expert_id)] == [PAID]
    await at_the_bank(world, payout_id, "fail")
    assert list((await reconciled(world)).discrepancies) == []
    assert [payout.state for payout in await listed(world, expert_id)] == [FAILED]
    [(body,)] = world.sql(
        "SELECT body FROM expert_events WHERE expert_id = %s ORDER BY sequence DESC LIMIT 1",
        expert_id,
    )
    assert json.loads(body)["by"]["rpc"] == "RunReconciliation"


@pytest.mark.parametrize(("age", "kinds"), [("0", {"missing_at_stripe"}), ("3 days", set())])
async def test_a_payout_that_was_heard_of_days_late_is_not_missed_at_stripe(
    world: World, as_superuser: Callable[..., int], age: str, kinds: set[str]
) -> None:
    expert_id = await earned(world)
    await pay_out(world, expert_id)
    await until_payouts(world, expert_id, PENDING)
    await world.settle_down()
    # As though the payout were older than the span: Stripe's list no longer has its line.
    as_superuser(
        world,
        "UPDATE postings SET balance_transaction_id = 'txn_old' WHERE kind = 'paid_out' "
        "AND balance_transaction_id <> ''",
    )
    as_superuser(
        world,
        "UPDATE payouts SET balance_transaction_id = 'txn_old', "
        "create_time = create_time - CAST(%s AS interval)",
        age,
    )
    found = {kind_of(one) for one in (await reconciled(world)).discrepancies}
    assert found - {"missing_in_ledger"} == kinds


async def test_stripe_unavailable_delays_and_loses_nothing(start_world: StartWorld) -> None:
    world, expert_id, payout_id = await paid_out_unheard(start_world)
    assert world.service is not None
    app, account = world.service.app, world.account_of(expert_id)
    await world.stripe.fault(
        "/(payouts|balance)", "status", times=None, status=503, match={"method": "GET"}
    )
    await deliver(world, happened(account, payout_id)[:1])
    await apply_waiting(app)
    request = experts_pb2.GetExpertBalanceRequest(expert_id=expert_id)
    refused = await refusal(world.experts.GetExpertBalance(request))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "PROCESSOR_UNAVAILABLE")
    assert await listed(world, expert_id) == []
    await world.stripe.clear_faults()

    async def probe() -> bool:
        await apply_waiting(app)
        return bool(await listed(world, expert_id))

    await until(probe, "the payout, once Stripe answers")


async def test_pages_and_states(world: World) -> None:
    expert_id = await world.expert()
    for number in range(5):
        await world.captured(expert_id, 1_000 + number, card=AVAILABLE)
        payout_id = await pay_out(world, expert_id)
        if number % 2:
            await at_the_bank(world, payout_id, "pay")
        await world.stripe.advance(1)
    await world.settle_down()
    found: list[experts_pb2.Payout] = []
    token = ""
    while True:
        request = experts_pb2.ListPayoutsRequest(expert_id=expert_id, page_size=2, page_token=token)
        page = await world.experts.ListPayouts(request)
        assert len(page.payouts) <= 2
        found += page.payouts
        token = page.next_page_token
        if not token:
            break
    assert [payout.amount.minor_units for payout in found] == [904, 903, 902, 901, 900]
    assert len(await listed(world, expert_id, states=[PAID])) == 2
    assert len(await listed(world, expert_id, states=[PAID, PENDING])) == 5
    assert await listed(world, expert_id, states=[FAILED]) == []
    first = await world.experts.ListPayouts(
        experts_pb2.ListPayoutsRequest(expert_id=expert_id, page_size=1)
    )
    refused = await refusal(
        listed(world, expert_id, states=[PAID], page_token=first.next_page_token)
    )
    assert (refused.code, list(refused.fields)) == ("INVALID_ARGUMENT", ["page_token"])


async def test_who_is_unknown_or_has_no_account(world: World) -> None:
    for call in (
        listed(world, "nobody"),
        world.experts.GetExpertBalance(experts_pb2.GetExpertBalanceRequest(expert_id="nobody")),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == ("NOT_FOUND", "EXPERT_NOT_FOUND")
    refused = await refusal(listed(world, "", page_size=-1, states=[0, 99]))
    assert refused.code == "INVALID_ARGUMENT"
    assert set(refused.fields) == {"expert_id", "page_size", "states"}
    expert_id = await earned(world)
    other = await world.expert()
    await pay_out(world, expert_id)
    await until_payouts(world, expert_id, PENDING)
    assert await listed(world, other) == []
    assert await shown(world, other) == [("USD", 0, 0, 0, 0)]
    account = world.account_of(other)
    await world.stripe.control("POST", f"/accounts/{account}/deauthorize")
    request = experts_pb2.GetExpertBalanceRequest(expert_id=other)
    refused = await refusal(world.experts.GetExpertBalance(request))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "EXPERT_NOT_READY")


async def test_debt_is_shown_beside_what_was_earned(world: World) -> None:
    expert_id = await world.expert()
    payment = await world.captured(expert_id, card=AVAILABLE)
    await at_the_bank(world, await pay_out(world, expert_id), "pay")
    await until_payouts(world, expert_id, PAID)
    await world.refund(payment.payment_id)
    await world.settle_down()
    [(_, available, pending, funds, debt)] = await shown(world, expert_id)
    assert (available, pending) == (0, 0)
    assert (funds, debt) == (0, 9_000)
    await check_books(world)


async def test_what_stripe_converted_is_earned_in_one_currency_and_paid_in_another(
    world: World,
) -> None:
    expert_id = await world.expert()
    await world.captured(expert_id, 10_050, "KWD", card=AVAILABLE)
    [(_, _, _, earned_dinars, _), (_, available, _, _, _)] = await shown(world, expert_id)
    await at_the_bank(world, await pay_out(world, expert_id), "pay")
    [payout] = await until_payouts(world, expert_id, PAID)
    assert payout.amount.currency_code == "USD"
    assert await shown(world, expert_id) == [
        ("KWD", 0, 0, earned_dinars, 0),
        ("USD", 0, 0, -available, 0),
    ]
    await check_books(world)
    assert list((await reconciled(world)).discrepancies) == []


async def test_events_about_payouts_of_nobody_we_know(world: World) -> None:
    await deliver(world, happened("acct_stranger", "po_stranger")[:1])
    await world.settle_down()
    assert world.sql(
        "SELECT state, verdict FROM webhook_events WHERE account_id = 'acct_stranger'"
    ) == [("IGNORED", "unknown_object")]
    assert world.counts()["payouts"] == 0


@pytest.mark.parametrize(
    ("statement", "violated"),
    [
        (
            "UPDATE postings SET minor_units = 1 WHERE kind = 'paid_out' AND minor_units > 0",
            {"expert_postings_sum_to_zero"},
        ),
        ("DELETE FROM postings WHERE kind = 'paid_out'", {"payout_has_its_postings"}),
    ],
)
async def test_a_tampered_payout_is_found(
    world: World, as_superuser: Callable[..., int], statement: str, violated: set[str]
) -> None:
    expert_id = await earned(world)
    await pay_out(world, expert_id)
    await until_payouts(world, expert_id, PENDING)
    assert as_superuser(world, statement) > 0
    report = await reconciled(world)
    assert {one.name for one in report.invariants if one.violations} == violated


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("UPDATE payouts SET minor_units = 1", psycopg2.errors.RestrictViolation),
        (
            "UPDATE payouts SET version = version + 1, balance_transaction_id = ''",
            psycopg2.errors.RestrictViolation,
        ),
        ("DELETE FROM payouts", psycopg2.errors.RestrictViolation),
        ("TRUNCATE payouts", psycopg2.errors.RestrictViolation),
        ("DELETE FROM expert_events", psycopg2.errors.RestrictViolation),
        (
            (
                "INSERT INTO postings (expert_id, sequence, account, currency, minor_units, kind, "
                "balance_transaction_id, time) SELECT expert_id, 1, 'losses', 'USD', 1, 'x', '', "
                "now() FROM experts"
            ),
            psycopg2.errors.CheckViolation,
        ),
        (
            (
                "INSERT INTO postings (sequence, account, currency, minor_units, kind, "
                "balance_transaction_id, time) VALUES (1, 'losses', 'USD', 1, 'x', '', now()), "
                "(1, 'fx', 'USD', -1, 'x', '', now())"
            ),
            psycopg2.errors.CheckViolation,
        ),
        (
            (
                "INSERT INTO postings (expert_id, sequence, account, currency, minor_units, kind, "
                "balance_transaction_id, time) SELECT expert_id, 999, account, 'USD', units, 'x', "
                "'', now() FROM experts, (VALUES ('losses', 1), ('fx', -1)) AS one (account, units)"
            ),
            psycopg2.errors.ForeignKeyViolation,
        ),
    ],
)
async def test_the_schema_refuses_what_must_never_be(
    world: World, statement: str, error: type[psycopg2.Error]
) -> None:
    expert_id = await earned(world)
    await pay_out(world, expert_id)
    await until_payouts(world, expert_id, PENDING)
    with world.session() as cursor, pytest.raises(error):
        cursor.execute(statement)
