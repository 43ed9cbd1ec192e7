"""A month of the books against real worlds: every sum is the ledger's, to the minor unit."""

from __future__ import annotations

import asyncio
import csv
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from marketplace.payments.v1 import operations_pb2, report_pb2
from payment_service.adapters.postgres.months import OPEN_SINCE
from payment_service.application.jobs.close_months import close_months, close_next_month
from tests.support.errors import refusal
from tests.support.nursery import Nursery
from tests.support.steps.debts import POOR, collected_in_vain
from tests.support.steps.disputes import LOST, contest, decide, dispute_where
from tests.support.steps.operators import write_off
from tests.support.steps.payments import PLATFORM
from tests.support.world import World

NOW = datetime.now(UTC)
MONTH = f"{NOW:%Y-%m}"
FORMER = f"{NOW.year - (NOW.month == 1)}-{(NOW.month - 2) % 12 + 1:02d}"
NEXT = f"{NOW.year + (NOW.month == 12)}-{NOW.month % 12 + 1:02d}"

OPENING = "opening_balance"

Report = report_pb2.CurrencyReport


async def report(
    world: World, month: str = MONTH, currency: str = ""
) -> report_pb2.GetMonthlyReportResponse:
    request = report_pb2.GetMonthlyReportRequest(month=month, currency_code=currency)
    return await world.ledger.GetMonthlyReport(request)


async def in_currency(world: World, currency: str = "USD", month: str = MONTH) -> Report:
    found = (await report(world, month, currency)).currencies
    assert [one.currency_code for one in found] == [currency]
    return found[0]


def figures(found: Report) -> dict[str, int]:
    return {one.name: one.amount.minor_units for one in found.figures if one.amount.minor_units}


def check_sums(world: World, found: Report) -> None:
    """Each account closes at the sum of its postings, and all of them together at zero."""
    ledger = {
        account: (int(total), int(debits), int(credits_))
        for account, total, debits, credits_ in world.sql(
            "SELECT regexp_replace(account, '^(stripe:[^:]+|[^:]+).*$', '\\1'), "
            "sum(minor_units), coalesce(sum(minor_units) FILTER (WHERE minor_units > 0), 0), "
            "coalesce(-sum(minor_units) FILTER (WHERE minor_units < 0), 0) "
            "FROM postings WHERE currency = %s GROUP BY 1",
            found.currency_code,
        )
    }
    shown = {
        one.account: (one.closing.minor_units, one.debits.minor_units, one.credits.minor_units)
        for one in found.accounts
    }
    assert shown == ledger
    for one in found.accounts:
        moved = one.debits.minor_units - one.credits.minor_units
        assert one.opening.minor_units + moved == one.closing.minor_units
    assert sum(one.closing.minor_units for one in found.accounts) == 0


async def busy(world: World) -> tuple[str, str]:
    """A month of everything; returns an expert with payments, and the disputed payment."""
    expert = await world.expert()
    first = await world.captured(expert, 10_000)
    await world.refund(first.payment_id, 4_000)
    held = await world.escrowed(expert, 5_000, escrow_mode=PLATFORM)
    await world.refund(held.payment_id, 2_000)
    lost = await world.captured(expert, 8_000)
    dispute_id = await contest(world, lost)
    await dispute_where(world, dispute_id)
    await decide(world, dispute_id, "lose")
    await dispute_where(world, dispute_id, lambda one: one.outcome == LOST)
    await world.captured(expert, 5_001, "JPY")
    await world.settle_down()
    return expert, lost.payment_id


async def test_a_month_of_everything(world: World) -> None:
    await busy(world)
    whole = await report(world)
    assert (whole.month, whole.final) == (MONTH, False)
    # Also what Stripe has in other currencies, and no payment is about.
    assert {"JPY", "USD"} < {one.currency_code for one in whole.currencies}
    dollars = await in_currency(world)
    check_sums(world, dollars)
    found = figures(dollars)
    # 100 and 80 captured, 50 held; 40 refunded after the capture and 20 out of escrow; 80 lost.
    assert (found["charged"], found["captured"]) == (23_000, 18_000)
    assert (found["commission_earned"], found["commission_given_back"]) == (1_800, 1_200)
    assert found["refunded"] == 6_000
    assert (found["disputes_withdrawn"], found["disputes_lost"]) == (8_000, 8_000)
    assert (found["held_in_escrow"], dollars.held_payments) == (3_000, 1)
    fees = world.sql(
        "SELECT coalesce(sum(minor_units), 0) FROM postings WHERE currency = 'USD' "
        "AND account IN ('processor_fee', 'dispute_fee')"
    )[0][0]
    assert found["processor_fees"] + found["dispute_fees"] == fees
    assert found["result"] == 600 - fees
    assert found["owed_to_experts"] == 5_400


async def test_a_currency_without_decimals(world: World) -> None:
    expert = await world.expert()
    payment = await world.captured(expert, 5_001, "JPY")
    await world.refund(payment.payment_id, 1_001)
    await world.settle_down()
    yen = await in_currency(world, "JPY")
    check_sums(world, yen)
    assert figures(yen)["captured"] == 5_001
    assert figures(yen)["refunded"] == 1_001


async def test_the_ledger_is_held_against_stripes_balance(
    start_world: Callable[..., object],
) -> None:
    world: World = await start_world(**POOR)  # type: ignore[misc]
    await world.captured(amount=10_000)
    await world.settle_down()
    seen = (await in_currency(world)).stripe
    assert seen.known
    assert seen.difference.minor_units == 0
    assert seen.sentence == "The ledger and Stripe's balance of now agree."
    # Stripe moves something that no payment is about, and reconciliation cannot say what it is.
    given = {"amount": 700, "currency": "usd", "type": "adjustment", "description": "Odd"}
    await world.stripe.control("POST", "/balance", given)
    differs = (await in_currency(world)).stripe
    assert (differs.difference.minor_units, differs.explained.minor_units) == (700, 0)
    await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())
    named = (await in_currency(world)).stripe
    assert (named.difference.minor_units, named.explained.minor_units) == (700, 700)
    assert named.sentence.endswith("differ by what discrepancies name: 1 open, 0 resolved.")
    [discrepancy] = named.discrepancy_ids
    # A decision books nothing. So it goes on to say what the books differ by, each month.
    await world.operations.ResolveDiscrepancy(
        operations_pb2.ResolveDiscrepancyRequest(discrepancy_id=discrepancy, reason="a rebate")
    )
    resolved = (await in_currency(world)).stripe
    assert (resolved.difference.minor_units, resolved.explained.minor_units) == (700, 700)
    assert list(resolved.discrepancy_ids) == [discrepancy]
    assert resolved.sentence.endswith("differ by what discrepancies name: 0 open, 1 resolved.")
    # A line that is reported twice differs once.
    world.sql("UPDATE discrepancies SET detail = 'formerly ' || detail")
    await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())
    twice = (await in_currency(world)).stripe
    assert (twice.difference.minor_units, twice.explained.minor_units) == (700, 700)
    assert len(world.sql("SELECT FROM discrepancies")) == 2
    # Of books that are bound to another account, it says nothing.
    world.sql("UPDATE installation SET bind_time = now()")
    assert (await in_currency(world)).stripe.explained.minor_units == 0


async def test_what_was_resolved_and_is_booked_after_all_is_named_no_more(
    start_world: Callable[..., object],
) -> None:
    """An operator was quicker than the webhook of a payment."""
    world: World = await start_world(**POOR)  # type: ignore[misc]
    payment = await world.captured(amount=10_000)
    await world.settle_down()
    [(line, amount)] = world.sql(
        "SELECT balance_transaction_id, sum(minor_units)::bigint FROM postings "
        "WHERE account = 'stripe:platform' AND currency = 'USD' GROUP BY 1 "
        "ORDER BY min(posting_id) LIMIT 1"
    )
    world.sql(
        "INSERT INTO discrepancies (payment_id, kind, detail, time, expected, found, currency, "
        "line_id, resolve_time, resolved_by) VALUES (%s, 'missing_in_ledger', "
        "'a charge on stripe:platform', now(), 0, %s, 'USD', %s, now(), 'ann')",
        payment.payment_id,
        amount,
        line,
    )
    seen = (await in_currency(world)).stripe
    assert (seen.difference.minor_units, seen.explained.minor_units) == (0, 0)
    assert list(seen.discrepancy_ids) == []


async def test_the_books_are_reported_while_stripe_does_not_answer(world: World) -> None:
    await world.captured(amount=10_000)
    await world.settle_down()
    await world.stripe.fault("/balance$", "status", times=None, status=503, match={"method": "GET"})
    found = await in_currency(world)
    assert figures(found)["captured"] == 10_000
    assert not found.stripe.known
    assert found.stripe.sentence.startswith("Stripe did not answer")


async def test_a_posting_belongs_to_the_month_of_its_time(
    world: World, as_superuser: Callable[..., int]
) -> None:
    await world.captured(amount=10_000)
    await world.settle_down()
    as_superuser(
        world, "UPDATE postings SET time = date_trunc('month', time) - interval '1 microsecond'"
    )
    await world.captured(amount=2_000)
    await world.settle_down()
    former = await report(world, FORMER, "USD")
    assert former.final == (NOW.day > 1)
    [before] = former.currencies
    assert figures(before)["captured"] == 10_000
    assert not before.stripe.known
    assert "cannot be compared" in before.stripe.sentence
    now = await in_currency(world)
    assert figures(now)["captured"] == 2_000
    opening = {one.account: one.opening.minor_units for one in now.accounts}
    assert opening == {
        **dict.fromkeys(opening, 0),
        **{one.account: one.closing.minor_units for one in before.accounts},
    }
    assert sum(one.closing.minor_units for one in now.accounts) == 0


async def test_what_is_asked_wrongly_is_refused(world: World) -> None:
    for month in ("", "2026-13", "2026", NEXT):
        request = report_pb2.GetMonthlyReportRequest(month=month)
        refused = await refusal(world.ledger.GetMonthlyReport(request))
        assert (refused.code, set(refused.fields)) == ("INVALID_ARGUMENT", {"month"}), month
    asked = report_pb2.GetExpertStatementRequest(expert_id="nobody", month=MONTH)
    unknown = await refusal(world.ledger.GetExpertStatement(asked))
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "EXPERT_NOT_FOUND")


async def test_a_statement_has_every_event_of_an_expert(world: World) -> None:
    expert, _ = await busy(world)
    other = await world.captured(amount=1_000)
    request = report_pb2.GetExpertStatementRequest(expert_id=expert, month=MONTH)
    whole = await world.ledger.GetExpertStatement(request)
    assert other.payment_id not in {line.payment_id for line in whole.lines}
    for currency in ("USD", "JPY"):
        lines = [one for one in whole.lines if one.funds.currency_code == currency]
        funds = sum(one.funds.minor_units - one.paid_out.minor_units for one in lines)
        debt = sum(one.debt.minor_units for one in lines)
        closing = {
            one.account: one.closing.minor_units
            for one in whole.accounts
            if one.closing.currency_code == currency
        }
        assert closing["expert_funds"] == -funds
        assert closing.get("expert_debt", 0) == debt
    dollars = [one for one in whole.lines if one.funds.currency_code == "USD"]
    captures = [one for one in dollars if "captured" in one.kind]
    assert [one.gross.minor_units for one in captures] == [10_000, 8_000]
    assert [one.commission.minor_units for one in captures] == [1_000, 800]
    back = [one for one in dollars if one.kind in ("client_refunded", "dispute_lost")]
    assert sorted(one.gross.minor_units for one in back) == [-8_000, -4_000]
    taken = [one for one in dollars if one.kind == "transfer_reversed"]
    assert [one.gross.minor_units for one in taken] == [0, 0]
    paged: list[report_pb2.StatementLine] = []
    token = ""
    while True:
        request.page_size, request.page_token = 2, token
        page = await world.ledger.GetExpertStatement(request)
        paged += page.lines
        token = page.next_page_token
        if not token:
            break
    assert paged == list(whole.lines)


async def test_a_debt_that_is_written_off_is_a_loss(world: World) -> None:
    payment = await world.captured(amount=10_000)
    await world.stripe.fault("/reversals$", "status", times=None, status=400)
    await world.refund(payment.payment_id)
    await collected_in_vain(world)
    assert figures(await in_currency(world))["experts_debt"] == 9_000
    await write_off(world, payment, 4_000)
    found = figures(await in_currency(world))
    assert (found["debts_written_off"], found["losses"], found["experts_debt"]) == (
        4_000,
        4_000,
        5_000,
    )


def run(nursery: Nursery, world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a process of its own, as somebody of finance does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STRIPE_")}
    return nursery.run(
        "payment_service",
        "report",
        "--month",
        *arguments,
        env={
            **kept,
            "DATABASE_URL": world.database_url,
            "STRIPE_API_BASE": world.simulator.base_url if world.simulator else "",
            "COLUMNS": "160",
        },
    )


async def test_the_command_writes_tables_and_files(
    nursery: Nursery, world: World, tmp_path: Path
) -> None:
    expert, _ = await busy(world)
    await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())
    directory = tmp_path / "books" / MONTH
    done = await asyncio.to_thread(run, nursery, world, MONTH, "--csv", str(directory))
    assert done.returncode == 0, done.stderr
    assert f"The books in {MONTH} (UTC): not final" in done.stdout
    assert "180.00" in done.stdout
    assert sorted(path.name for path in directory.iterdir()) == [
        "accounts.csv",
        "figures.csv",
        "stripe.csv",
    ]
    data = (directory / "accounts.csv").read_bytes()
    assert data.count(b"\r\n") == data.count(b"\n")
    with (directory / "accounts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for currency in ("JPY", "USD"):
        own = [row for row in rows if row["currency"] == currency]
        assert sum(int(row["closing_minor_units"]) for row in own) == 0
        for row in own:
            places = 0 if currency == "JPY" else 2
            assert float(row["closing"]) == int(row["closing_minor_units"]) / 10**places
    # The platform had money before the books began, and the books agree with Stripe all the same.
    opening = {row["currency"]: row["closing"] for row in rows if row["account"] == OPENING}
    assert (opening["JPY"], opening["USD"]) == ("-10000000", "-100000.00")
    assert OPENING in done.stdout
    with (directory / "stripe.csv").open(newline="") as file:
        assert {row["difference_minor_units"] for row in csv.DictReader(file)} == {"0"}
    with (directory / "figures.csv").open(newline="") as file:
        captured = [row for row in csv.DictReader(file) if row["figure"] == "captured"]
    shown = {row["currency"]: row["amount"] for row in captured}
    assert (shown["JPY"], shown["USD"]) == ("5001", "180.00")
    stated = await asyncio.to_thread(
        run, nursery, world, MONTH, "--expert", expert, "--csv", str(tmp_path / "expert")
    )
    assert stated.returncode == 0, stated.stderr
    with (tmp_path / "expert" / "statement.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [row["gross"] for row in lines if "captured" in row["kind"]] == [
        "100.00",
        "80.00",
        "5001",
    ]
    for arguments, status in ((("2026-13",), 2), ((NEXT,), 1), ((MONTH, "--expert", "nobody"), 1)):
        refused = await asyncio.to_thread(run, nursery, world, *arguments)
        assert refused.returncode == status
        assert "Traceback" not in refused.stderr


async def test_a_closed_month_is_not_summed_again(
    world: World, as_superuser: Callable[..., int]
) -> None:
    assert world.service is not None
    database = world.service.app.database
    await busy(world)
    as_superuser(world, "UPDATE postings SET time = time - interval '3 months'")
    await world.captured(amount=2_000)
    await world.settle_down()
    before = (await report(world)).currencies
    oldest = (await report(world, f"{months_ago(3):%Y-%m}")).currencies

    world.sql("DELETE FROM jobs WHERE name = 'close_months'")
    await close_months(world.service.app)
    closed = world.sql("SELECT DISTINCT end_time FROM month_closings ORDER BY 1")
    assert [f"{end:%Y-%m-%d %H:%M}" for (end,) in closed] == [
        f"{months_ago(number):%Y-%m}-01 00:00" for number in (2, 1, 0)
    ]
    assert [one.accounts for one in (await report(world)).currencies] == [
        one.accounts for one in before
    ]
    assert [one.figures for one in (await report(world)).currencies] == [
        one.figures for one in before
    ]
    assert (await report(world, f"{months_ago(3):%Y-%m}")).currencies == oldest
    check_closings(world)

    # Another replica, and a second run, find nothing to do.
    assert not await database.transact(close_next_month)
    # The postings of closed months are not read again for a later one.
    as_superuser(world, "DELETE FROM postings WHERE time < date_trunc('month', now(), 'UTC')")
    assert [one.accounts for one in (await report(world)).currencies] == [
        one.accounts for one in before
    ]


async def test_a_month_is_closed_only_when_nothing_can_come_any_more(world: World) -> None:
    assert world.service is not None
    assert not await world.service.app.database.transact(close_next_month)
    await world.captured(amount=2_000)
    assert not await world.service.app.database.transact(close_next_month)
    assert world.sql("SELECT count(*) FROM month_closings") == [(0,)]


def check_closings(world: World) -> None:
    """The newest closing is the sum of all postings before it."""
    assert world.sql(
        "SELECT account, currency, minor_units FROM month_closings "
        "WHERE end_time = (SELECT max(end_time) FROM month_closings) ORDER BY 1, 2"
    ) == world.sql(
        "SELECT regexp_replace(account, '^(stripe:[^:]+|[^:]+).*$', '\\1') AS account, "
        "currency, sum(minor_units)::bigint FROM postings "
        "WHERE time < date_trunc('month', now(), 'UTC') GROUP BY 1, 2 ORDER BY 1, 2"
    )


def months_ago(number: int) -> datetime:
    """The first day of a former month."""
    year, month = divmod(NOW.year * 12 + NOW.month - 1 - number, 12)
    return datetime(year, month + 1, 1, tzinfo=UTC)


async def test_the_first_month_is_found_without_reading_all_postings(world: World) -> None:
    """The job asks each hour, and in the first month there is no closing to ask for."""
    with world.session() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {OPEN_SINCE}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Scan using postings_pkey on postings" in plan
    assert "Seq Scan on postings" not in plan
