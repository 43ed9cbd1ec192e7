"""What the account at Stripe had before the books began: on the books once, to the minor unit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dev.postgres import EmbeddedPostgres
from marketplace.payments.v1 import operations_pb2, report_pb2
from payment_service.application.reconciliation.opening import store_opening
from payment_service.application.recover_after_restore import Recovered, recover_after_restore
from payment_service.application.stripe_account import (
    adopt_account,
    check_account,
    rebind_account,
)
from payment_service.domain.ports.records import StripeBinding
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.kinds import kind_of
from tests.support.restore import back_up
from tests.support.running import replica
from tests.support.steps.operators import open_kinds, run
from tests.support.steps.payments import PLATFORM
from tests.support.world import World

MONTH = f"{datetime.now(UTC):%Y-%m}"
AGREE = "The ledger and Stripe's balance of now agree."
OTHER = "acct_1Other"


def before(minor_units: int, *currencies: str, **more: Any) -> dict[str, Any]:
    """A simulator whose platform had so much of each currency before the books began."""
    settled = {"settlement_currencies": currencies} if currencies else {}
    return {"simulator": {"platform_funds": minor_units, **settled, **more}}


async def month_of(world: World, currency: str = "USD") -> report_pb2.CurrencyReport:
    request = report_pb2.GetMonthlyReportRequest(month=MONTH)
    found = (await world.ledger.GetMonthlyReport(request)).currencies
    return next(one for one in found if one.currency_code == currency)


async def opening_in(world: World, currency: str = "USD") -> int:
    """The opening balance as finance sees it: by a figure, and as an account."""
    found = await month_of(world, currency)
    [figure] = [one.amount.minor_units for one in found.figures if one.name == "opening_balance"]
    accounts = {one.account: one.closing.minor_units for one in found.accounts}
    assert figure == -accounts.get("opening_balance", 0)
    return figure


async def agrees(world: World, currency: str = "USD") -> None:
    await world.settle_down()
    seen = (await month_of(world, currency)).stripe
    assert (seen.difference.minor_units, seen.sentence) == (0, AGREE)


async def moved(world: World, amount: int, currency: str = "usd", **given: str) -> None:
    body = {"amount": amount, "currency": currency, "type": "topup", **given}
    await world.stripe.control("POST", "/balance", body)


def dated(world: World, amount: int, currency: str, type_: str, *, days: int) -> None:
    """A line on the platform's account that says it was made so many days ago."""
    assert world.simulator is not None
    simulation = world.simulator.simulation
    created = simulation.now() - days * 24 * 3_600
    with simulation.acting():
        simulation.balances.record(
            simulation.platform, type_, None, amount, currency, created=created
        )


def is_determined(world: World) -> bool:
    [(moment,)] = world.sql("SELECT opening_time FROM installation")
    return moment is not None


def unbind(world: World) -> None:
    """Leaves the database as it was before the first start."""
    world.sql(
        "UPDATE installation SET stripe_account_id = NULL, livemode = NULL, bind_time = NULL, "
        "opening_time = NULL"
    )


async def busy(world: World, *, refunds: bool = True) -> None:
    """Payments of every kind of hold, and a fee of Stripe's."""
    expert = await world.expert()
    paid = await world.captured(expert, 10_000)
    if refunds:
        await world.refund(paid.payment_id, 4_000)
    await world.escrowed(expert, 5_000, escrow_mode=PLATFORM)
    await moved(world, -25, type="stripe_fee")
    await world.settle_down()


@pytest.mark.parametrize("had", [100_000, -7_003])
async def test_what_was_there_before_is_on_the_books_and_the_month_agrees(
    start_world: StartWorld, had: int
) -> None:
    world = await start_world(**before(had), loops=False)
    seen = (await month_of(world)).stripe
    assert seen.difference.minor_units == had
    assert "not on the books yet" in seen.sentence
    await run(world)
    assert world.service is not None
    world.service.start_loops()
    await busy(world, refunds=had > 0)  # Stripe pays none out of a debt.
    await run(world)
    for currency in ("USD", "EUR", "GBP", "JPY"):
        await agrees(world, currency)
        assert await opening_in(world, currency) == had
    assert await open_kinds(world) == []
    await check_books(world)


async def test_what_came_since_the_first_start_is_no_part_of_it(start_world: StartWorld) -> None:
    """The first reconciliation may be days later, and looks back for longer than later ones."""
    world = await start_world(**before(100_000), loops=False, policy={"reconcile_span": 1.0})
    world.sql("UPDATE installation SET bind_time = bind_time - interval '3 days'")
    dated(world, 777, "usd", "topup", days=2)
    await run(world)
    await agrees(world)
    assert await opening_in(world) == 100_000
    assert balance(world, "platform_bank") == -777


async def test_nothing_before_is_known_too(start_world: StartWorld) -> None:
    world = await start_world(**before(0), loops=False)
    await run(world)
    assert is_determined(world)
    assert world.sql("SELECT line_id FROM platform_lines") == []
    # What comes later comes by lines, of a currency that was not there too.
    await moved(world, 900)
    await moved(world, 3_000, "eur")
    await run(world)
    assert (await opening_in(world), await opening_in(world, "EUR")) == (0, 0)
    await agrees(world)
    await agrees(world, "EUR")


async def test_a_currency_that_appears_later_has_none(start_world: StartWorld) -> None:
    world = await start_world(**before(100_000, "usd"), loops=False)
    await run(world)
    await moved(world, 3_000, "eur")
    await run(world)
    assert (await opening_in(world), await opening_in(world, "EUR")) == (100_000, 0)
    assert balance(world, "platform_bank", "EUR") == -3_000
    await agrees(world)
    await agrees(world, "EUR")


def after_reading(
    world: World, name: str, then: Callable[[], Awaitable[None]], patch: pytest.MonkeyPatch
) -> None:
    """Does something at Stripe after each read of this kind."""
    assert world.service is not None
    stripe = world.service.app.stripe
    read = getattr(stripe, name)

    async def reading(*given: Any) -> Any:
        answer = await read(*given)
        await then()
        return answer

    patch.setattr(stripe, name, reading)


@pytest.mark.parametrize("name", ["account_balance", "balance_entries"])
async def test_a_line_that_comes_between_the_readings_is_counted_once(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    world = await start_world(**before(100_000), loops=False)
    times = iter([None])

    async def once() -> None:
        for _ in times:
            await moved(world, 40)

    after_reading(world, name, once, monkeypatch)
    await run(world)
    assert await opening_in(world) == 100_000
    monkeypatch.undo()
    await run(world)
    await agrees(world)
    assert await opening_in(world) == 100_000


async def test_without_a_quiet_moment_the_next_run_tries_again(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await start_world(**before(100_000), loops=False)

    async def always() -> None:
        await moved(world, 40)

    after_reading(world, "account_balance", always, monkeypatch)
    await run(world)
    assert not is_determined(world)
    assert balance(world, "opening_balance") == 0
    seen = (await month_of(world)).stripe
    assert seen.difference.minor_units > 100_000 - 1_000
    assert "not on the books yet" in seen.sentence
    monkeypatch.undo()
    await run(world)
    await agrees(world)
    assert await opening_in(world) == 100_000
    assert await open_kinds(world) == []


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_the_booking_books_it_once(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    world = await start_world(**before(100_000), loops=False)
    assert world.service is not None
    database = world.service.app.aside().database
    transact = database.transact

    async def dies(phase: Any, *given: Any, **named: Any) -> Any:
        if phase is not store_opening:
            return await transact(phase, *given, **named)
        if when == "after":
            await transact(phase, *given, **named)
        raise ConnectionError("the process dies here")

    monkeypatch.setattr(database, "transact", dies)
    await refusal(run(world))
    assert is_determined(world) == (when == "after")
    monkeypatch.undo()
    await moved(world, 60)
    await run(world)
    await run(world)
    assert balance(world, "opening_balance") == -100_000
    await agrees(world)


async def test_two_replicas_at_once_book_it_once(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await start_world(**before(100_000), loops=False)
    async with replica(world, loops=False) as other:
        together = asyncio.Barrier(2)
        for one in (world, other):
            assert one.service is not None
            database = one.service.app.aside().database
            transact = database.transact

            async def waits(phase: Any, *given: Any, transact: Any = transact, **named: Any) -> Any:
                if phase is store_opening:
                    await together.wait()
                return await transact(phase, *given, **named)

            monkeypatch.setattr(database, "transact", waits)
        await asyncio.gather(run(world), run(other))
    assert balance(world, "opening_balance") == -100_000
    await agrees(world)


@pytest.mark.parametrize("currency", ["USD", "EUR"])
async def test_money_without_a_line_disagrees_for_ever(
    start_world: StartWorld, currency: str
) -> None:
    """The opening balance does not move, whatever Stripe's balance does later."""
    world = await start_world(**before(100_000, "usd"), loops=False)
    await run(world)
    # The line says that it is older than the books: no list since then shows it.
    dated(world, 500, currency.lower(), "adjustment", days=3)
    for _ in range(2):
        await run(world)
        seen = (await month_of(world, currency)).stripe
        assert (seen.difference.minor_units, seen.explained.minor_units) == (500, 0)
        assert "differ by more than discrepancies name" in seen.sentence
    assert await opening_in(world, currency) == (100_000 if currency == "USD" else 0)


async def test_an_account_that_the_books_have_left_meanwhile_gets_none(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await start_world(**before(100_000), loops=False)
    assert world.service is not None
    database = world.service.app.aside().database
    transact = database.transact

    async def after_the_books_have_left(phase: Any, *given: Any, **named: Any) -> Any:
        if phase is store_opening:
            await transact(rebind_account, StripeBinding(OTHER, livemode=False))
        return await transact(phase, *given, **named)

    monkeypatch.setattr(database, "transact", after_the_books_have_left)
    await run(world)
    monkeypatch.undo()
    assert not is_determined(world)
    assert balance(world, "opening_balance") == 0
    # This replica's key is still of the former account, whose lines are nothing to these books.
    await moved(world, 40)
    assert (await refusal(run(world))).facts["stripe_code"] == "stripe_account_differs"
    assert not is_determined(world)
    assert balance(world, "stripe:platform") == 0


async def test_lines_of_before_are_neither_booked_nor_reported(start_world: StartWorld) -> None:
    world = await start_world(**before(100_000), loops=False)
    request = operations_pb2.RunReconciliationRequest()
    request.min_update_time.FromDatetime(datetime.now(UTC) - timedelta(days=90))
    report = await world.operations.RunReconciliation(request)
    assert [kind_of(one) for one in report.discrepancies] == []
    assert balance(world, "platform_bank") == 0
    await agrees(world)


async def test_a_line_of_before_that_is_booked_all_the_same_is_reported(
    start_world: StartWorld,
) -> None:
    """Of a payment that a restored database has recorded again too late, for example."""
    world = await start_world(**before(0), loops=False)
    assert world.service is not None
    assert world.simulator is not None
    world.service.start_loops()
    await world.captured()
    await world.settle_down()
    store = world.simulator.simulation.store
    for row in store.all("balance_transaction"):
        store.change("balance_transaction", row["id"], created=row["created"] - 3_600)
    # As if the books began only now.
    world.sql("UPDATE installation SET opening_time = NULL")
    await run(world)
    [(booked,)] = world.sql(
        "SELECT sum(minor_units)::bigint FROM postings WHERE account = 'stripe:platform' "
        "AND kind <> 'opening_balance'"
    )
    assert await opening_in(world) == booked
    assert set(await open_kinds(world)) == {"line_differs"}
    seen = (await month_of(world)).stripe
    assert seen.difference == seen.explained
    assert seen.difference.minor_units == -booked


async def test_another_account_has_an_opening_balance_of_its_own(
    start_world: StartWorld, new_database: Callable[[], str]
) -> None:
    database_url = new_database()
    first = await start_world(**before(100_000), database_url=database_url)
    await busy(first)
    await run(first)
    await agrees(first)
    assert first.service is not None
    had = balance(first, "stripe:platform")
    await first.service.stop()
    other = await start_world(
        **before(30_000, platform_account=OTHER, seed="other"),
        database_url=database_url,
        loops=False,
    )
    assert other.service is not None
    for _ in range(2):  # The command may be repeated.
        await adopt_account(other.service.app, OTHER, livemode=False)
    assert balance(other, "stripe:platform") == 0
    assert balance(other, "opening_balance") == had - 100_000
    await moved(other, 11)
    await run(other)
    assert balance(other, "stripe:platform") == 30_011
    assert (await month_of(other)).stripe.difference.minor_units == 0
    # The lines of the former account are not looked for at this one.
    found = await other.discrepancies()
    assert [one.detail for one in found if "stripe:platform" in one.detail] == []


async def test_books_that_come_back_within_the_minute_count_its_lines_once(
    start_world: StartWorld,
) -> None:
    """Somebody adopts the wrong account, notices it, and adopts the former one again.

    The books begin a minute before that, so lines that were posted before they left are listed.
    """
    world = await start_world(**before(100_000), loops=False)
    assert world.service is not None
    assert world.simulator is not None
    own = world.simulator.simulation.config.platform_account
    await run(world)
    await moved(world, 500)
    await moved(world, 30, "eur")
    await run(world)
    for account_id in (OTHER, own):
        binding = StripeBinding(account_id, livemode=False)
        await world.service.app.database.transact(rebind_account, binding)
    await moved(world, 60)
    await run(world)
    await agrees(world)
    await agrees(world, "EUR")
    assert balance(world, "stripe:platform") == 100_560
    assert await open_kinds(world) == []


@pytest.mark.parametrize("name", ["account_balance", "balance_entries"])
async def test_an_answer_that_shows_nothing_is_no_empty_account(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Taken for an empty one, it would be booked for ever."""
    world = await start_world(**before(100_000), loops=False)
    assert world.service is not None
    await moved(world, 300)

    async def nothing(*_: Any) -> None:
        return None

    monkeypatch.setattr(world.service.app.stripe, name, nothing)
    assert (await refusal(run(world))).reason == "PROCESSOR_UNAVAILABLE"
    assert not is_determined(world)
    monkeypatch.undo()
    await run(world)
    await agrees(world)
    assert await opening_in(world) == 100_000


async def test_a_database_from_before_the_booking_books_the_same(
    start_world: StartWorld, postgres: EmbeddedPostgres
) -> None:
    world = await start_world(**before(100_000), loops=False)
    backup = await back_up(postgres, world)
    await run(world)
    await moved(world, 70)
    await run(world)
    await backup.restore(world)
    assert not is_determined(world)
    await moved(world, 7)
    await run(world)
    await agrees(world)
    assert await opening_in(world) == 100_000
    assert balance(world, "platform_bank") == -77


async def test_a_database_from_before_the_first_start_books_the_same(
    start_world: StartWorld, postgres: EmbeddedPostgres
) -> None:
    """It does not know its account. The recovery says of which moment it is."""
    world = await start_world(**before(100_000), loops=False)
    unbind(world)
    since = datetime.now(UTC)
    backup = await back_up(postgres, world, loops=True)
    await run(world)
    await busy(world)
    assert world.service is not None
    await backup.restore(world)
    unbind(world)
    await check_account(world.service.app, livemode=False, as_of=since)
    async for _ in recover_after_restore(world.service.app, since, Recovered()):
        pass
    [(bound,)] = world.sql("SELECT bind_time FROM installation")
    assert bound == since
    world.service.start_loops()
    await run(world)
    await agrees(world)
    assert await opening_in(world) == 100_000


async def test_before_the_account_is_known_nothing_is_compared(start_world: StartWorld) -> None:
    world = await start_world(**before(100_000), loops=False)
    unbind(world)
    refused = await refusal(run(world))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "PROCESSOR_UNAVAILABLE")
    assert world.sql("SELECT line_id FROM platform_lines") == []
