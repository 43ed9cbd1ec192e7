"""What the service does when nobody calls: one read tells every job whether it has work."""

from __future__ import annotations

import asyncio
import contextlib
import select
from datetime import timedelta
from typing import Any

import psycopg2
import pytest

from payment_service.adapters.postgres import agenda
from payment_service.application.jobs import scheduler
from payment_service.application.jobs.poll_events import lease_cursors
from payment_service.application.jobs.poll_stale_payments import lease_stale_payments
from payment_service.domain import transitions
from payment_service.domain.ledger import StripeAmount
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Agenda, Cause
from tests.integration.conftest import StartWorld
from tests.support.requests import capture_request, refund_request
from tests.support.running import replica
from tests.support.world import IN_ESCROW, World, until


async def _agenda(world: World) -> Agenda:
    assert world.service is not None
    return await world.service.app.database.read(lambda reader: reader.agenda(announced=False))


def _jobs() -> set[str]:
    return {job.__name__ for job in (*scheduler.SOON, *scheduler.LATER, *scheduler.WOKEN)}


async def test_every_job_is_in_the_agenda_and_rests_when_nothing_is_due(
    start_world: StartWorld,
) -> None:
    world = await start_world(loops=False)
    world.sql("INSERT INTO jobs VALUES ('prune', now() + interval '1 hour') RETURNING 1")
    world.sql("INSERT INTO jobs VALUES ('close_months', now() + interval '1 hour') RETURNING 1")
    world.sql("INSERT INTO jobs VALUES ('export_heads', now() + interval '1 hour') RETURNING 1")
    world.sql("UPDATE event_cursors SET next_time = now() + interval '1 hour' RETURNING 1")
    world.sql("UPDATE ledger_span SET next_time = now() + interval '1 hour' RETURNING 1")
    assert not (await _agenda(world)).due
    due = {
        "fold_balances": "UPDATE ledger_span SET next_time = now() RETURNING 1",
        "apply_waiting": "INSERT INTO webhook_events VALUES ('evt_1', '', '', '', '', '', '', '', "
        "'', now(), 'WAITING', '', 0, '', now(), now()) RETURNING 1",
        "poll_events": "UPDATE event_cursors SET next_time = now() RETURNING 1",
        "prune": "UPDATE jobs SET next_time = now() WHERE name = 'prune' RETURNING 1",
        "close_months": "DELETE FROM jobs WHERE name = 'close_months' RETURNING 1",
        "reconcile_if_due": "DELETE FROM jobs WHERE name = 'reconciliation' RETURNING 1",
        "collect_debts": "INSERT INTO debt_checks VALUES ('expert', '0', now()) RETURNING 1",
    }
    for made in due.values():
        world.sql(made)
    assert (await _agenda(world)).due == due.keys()


def test_the_agenda_names_each_job_and_no_other() -> None:
    assert _jobs() == agenda.JOBS


@pytest.mark.parametrize("others", [0, 4])
async def test_many_replicas_read_the_agenda_about_as_often_as_one(
    world: World, others: int
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(others):
            await stack.enter_async_context(replica(world))
        await asyncio.sleep(1)
        heard = await asyncio.to_thread(_notices, world, 3.0)
    # Each waits for 0.15 to 0.3 seconds after any of them has read, and sometimes two read at the
    # same moment. Five that did not listen to each other would read it more than sixty times.
    assert 3.0 / 0.3 / 2 <= heard <= 3.0 / 0.15 * 2


def _notices(world: World, seconds: float) -> int:
    with contextlib.closing(psycopg2.connect(world.database_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("LISTEN payments_agenda")
            _until(connection, seconds)
            connection.poll()
            return len(connection.notifies)


def _until(connection: Any, seconds: float) -> None:
    """Waits, and reads what comes meanwhile."""
    loop = asyncio.new_event_loop()
    end = loop.time() + seconds
    while (left := end - loop.time()) > 0:
        select.select([connection], [], [], left)
        connection.poll()
    loop.close()


async def test_the_list_of_an_account_rests_until_a_payment_opens(start_world: StartWorld) -> None:
    world = await start_world(loops=False)
    assert world.service is not None
    database, policy = world.service.app.database, world.service.app.policy
    account = world.account_of(expert := await world.expert())

    def next_in() -> float:
        query = "SELECT extract(epoch FROM next_time - now())::float FROM event_cursors"
        [(seconds,)] = world.sql(f"{query} WHERE scope = %s", account)
        return float(seconds)

    world.sql("UPDATE event_cursors SET next_time = now() - interval '1 second' RETURNING 1")
    leased = await database.transact(lease_cursors, policy)
    assert account not in {cursor.scope for cursor in leased}
    assert next_in() > policy.account_poll_seconds
    assert "poll_events" not in (await _agenda(world)).due
    await world.initiate(expert)
    assert next_in() <= 0
    assert "poll_events" in (await _agenda(world)).due
    leased = await database.transact(lease_cursors, policy)
    assert account in {cursor.scope for cursor in leased}
    assert 0 < next_in() <= policy.account_poll_seconds


async def test_a_finished_payment_leaves_the_queue_of_polls(start_world: StartWorld) -> None:
    world = await start_world(policy={"quiet_seconds": 0.01})
    assert world.service is not None
    database, policy = world.service.app.database, world.service.app.policy
    payment = await world.escrowed()

    def queued() -> bool:
        query = "SELECT 1 FROM payment_polls WHERE payment_id = %s"
        return bool(world.sql(query, payment.payment_id))

    assert payment.state == IN_ESCROW
    assert queued()
    await world.payments.CapturePayment(capture_request(payment.payment_id))
    world.sql("UPDATE payment_polls SET next_time = now() RETURNING 1")
    await database.transact(lease_stale_payments, policy)
    assert not queued()


async def test_a_payment_that_comes_back_is_polled_again(start_world: StartWorld) -> None:
    """Somebody charges the card of a payment that has ended: its money needs the polls again."""
    world = await start_world(policy={"quiet_seconds": 0.0}, loops=False)
    assert world.service is not None
    database, policy = world.service.app.database, world.service.app.policy
    payment = (await world.initiate(await world.expert())).payment
    await world.payments.RefundPayment(refund_request(payment.payment_id))
    world.sql("UPDATE payment_polls SET next_time = now() RETURNING 1")
    await database.transact(lease_stale_payments, policy)
    assert not world.sql("SELECT 1 FROM payment_polls")

    await database.transact(_charge_out_of_band, payment.payment_id)

    assert (await world.get(payment.payment_id)).state == IN_ESCROW
    world.sql("UPDATE payment_polls SET next_time = now() RETURNING 1")
    assert payment.payment_id in await database.transact(lease_stale_payments, policy)


def _charge_out_of_band(tx: Transaction, payment_id: str) -> None:
    payment = tx.lock_payment(payment_id)
    assert payment is not None
    transition = transitions.charged(
        payment,
        payment.amount,
        StripeAmount(payment.amount, payment.currency, "txn_1"),
        charge_id="ch_1",
        expire_time=tx.now + timedelta(days=90),
        out_of_band=True,
        next_operation_id=None,
        now=tx.now,
    )
    tx.record(transition, Cause("stripe", "webhook"))


async def test_jobs_run_although_the_agenda_cannot_be_read(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One condition that takes too long must not keep the deadlines of all from being acted on."""

    def too_slow(self: agenda.AgendaReads, *, announced: bool) -> Agenda:
        raise psycopg2.errors.QueryCanceled

    monkeypatch.setattr(agenda.AgendaReads, "agenda", too_slow)
    world = await start_world()
    payment = await world.escrowed()
    world.sql("UPDATE payment_polls SET next_time = now() RETURNING 1")
    until_polled = "SELECT 1 FROM payment_polls WHERE next_time > now()"

    async def polled() -> bool:
        return bool(world.sql(until_polled))

    assert payment.state == IN_ESCROW
    assert await until(polled, "a job that only the agenda wakes")
