"""What PostgreSQL refuses, and what the service does while it is slow or unavailable."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from dev.postgres import EmbeddedPostgres
from marketplace.payments.v1 import events_pb2, payments_pb2
from payment_service.adapters.postgres.engine import SqlDatabase
from payment_service.adapters.postgres.statements import NotOneRoundTrip, SwallowedError
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.domain import transitions
from payment_service.domain.errors import Busy, Unavailable
from payment_service.domain.payment import Payment, WaitingFor
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause
from payment_service.domain.sync.changes import Movement
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.errors import Reply, refusal
from tests.support.requests import capture_request
from tests.support.world import CAPTURED, World, until

# ---- what must never be ----

_NEVER: dict[str, tuple[str, type[psycopg2.Error]]] = {
    "an event rewritten": (
        "UPDATE events SET body = '{}'",
        psycopg2.errors.RestrictViolation,
    ),
    "an event deleted": ("DELETE FROM events", psycopg2.errors.RestrictViolation),
    "the events truncated": ("TRUNCATE events CASCADE", psycopg2.errors.RestrictViolation),
    "a posting rewritten": (
        "UPDATE postings SET minor_units = minor_units + 1",
        psycopg2.errors.RestrictViolation,
    ),
    "a posting deleted": ("DELETE FROM postings", psycopg2.errors.RestrictViolation),
    "the postings truncated": ("TRUNCATE postings", psycopg2.errors.RestrictViolation),
    "a place in the feed exchanged": (
        "UPDATE feed SET position = position + 1000",
        psycopg2.errors.RestrictViolation,
    ),
    "an event taken out of the feed": ("DELETE FROM feed", psycopg2.errors.RestrictViolation),
    "the feed truncated": ("TRUNCATE feed", psycopg2.errors.RestrictViolation),
    "an event fed twice": (
        (
            "INSERT INTO feed SELECT max(position) + 1, max(payment_id), 1 FROM feed "
            "WHERE payment_id = (SELECT max(payment_id) FROM feed)"
        ),
        psycopg2.errors.UniqueViolation,
    ),
    "a payment deleted": ("DELETE FROM payments", psycopg2.errors.RestrictViolation),
    "one line without another": (
        (
            "INSERT INTO postings (payment_id, sequence, account, currency, minor_units, kind, "
            "balance_transaction_id, time) SELECT payment_id, 1, 'losses', 'USD', 1, 'gift', '', "
            "now() FROM payments LIMIT 1"
        ),
        psycopg2.errors.CheckViolation,
    ),
    "lines that balance only over two currencies": (
        (
            "INSERT INTO postings (payment_id, sequence, account, currency, minor_units, kind, "
            "balance_transaction_id, time) SELECT payment_id, 1, 'fx', currency, units, 'fx', '', "
            "now() FROM (SELECT payment_id FROM payments LIMIT 1) AS one, "
            "(VALUES ('USD', 5), ('EUR', -5)) AS line (currency, units)"
        ),
        psycopg2.errors.CheckViolation,
    ),
    "a quote rewritten": (
        (
            "UPDATE payments SET commission = commission + 1, expert_amount = expert_amount - 1, "
            "version = version + 1"
        ),
        psycopg2.errors.RestrictViolation,
    ),
    "another payee": (
        "UPDATE payments SET destination_account_id = 'acct_thief', version = version + 1",
        psycopg2.errors.RestrictViolation,
    ),
    "a version skipped": (
        "UPDATE payments SET version = version + 2",
        psycopg2.errors.RestrictViolation,
    ),
    "a change without a version": (
        "UPDATE payments SET state = 'REFUNDED'",
        psycopg2.errors.RestrictViolation,
    ),
    "a quote that does not add up": (
        (
            "INSERT INTO payments SELECT (jsonb_populate_record(payments, "
            '\'{"payment_id": "pay_x", "payment_intent_id": null, "commission": 1}\')).* '
            "FROM payments LIMIT 1"
        ),
        psycopg2.errors.CheckViolation,
    ),
    "more refunded than captured": (
        "UPDATE payments SET refunded_after_capture = captured + 1, version = version + 1",
        psycopg2.errors.CheckViolation,
    ),
    "refunded without having been captured": (
        "UPDATE payments SET state = 'REFUNDED', captured = 0, version = version + 1",
        psycopg2.errors.CheckViolation,
    ),
    "held and captured at once": (
        "UPDATE payments SET held = 1, version = version + 1",
        psycopg2.errors.CheckViolation,
    ),
    "a state of nobody's": (
        "UPDATE payments SET state = 'LOST', version = version + 1",
        psycopg2.errors.CheckViolation,
    ),
    "a second open operation": (
        (
            "INSERT INTO operations SELECT (jsonb_populate_record(operations, "
            "jsonb_build_object('operation_id', 'op_' || n, 'state', 'UNKNOWN'))).* "
            "FROM operations, generate_series(1, 2) AS n WHERE kind = 'capture'"
        ),
        psycopg2.errors.UniqueViolation,
    ),
    "a key used twice": (
        (
            "INSERT INTO idempotency_keys SELECT (jsonb_populate_record(idempotency_keys, "
            '\'{"claim_id": "clm_x"}\')).* FROM idempotency_keys LIMIT 1'
        ),
        psycopg2.errors.UniqueViolation,
    ),
    "one intent for two payments": (
        (
            "INSERT INTO payments SELECT (jsonb_populate_record(payments, "
            '\'{"payment_id": "pay_x"}\')).* FROM payments LIMIT 1'
        ),
        psycopg2.errors.UniqueViolation,
    ),
}


async def test_the_schema_refuses_what_must_never_be(world: World) -> None:
    await world.captured()
    await world.settle_down()
    rows = world.counts()
    for what, (statement, error) in _NEVER.items():
        with world.session() as cursor:
            try:
                cursor.execute(statement)
            except error:
                continue
        raise AssertionError(f"was not refused: {what}")
    assert world.counts() == rows


async def test_a_swallowed_error_is_refused_at_commit(database_url: str) -> None:
    database = SqlDatabase(database_url, write_connections=1, read_connections=1)

    def swallow(tx: SqlTransaction) -> str:
        try:
            tx._do(
                "INSERT INTO movements (movement_id, payment_id, kind, minor_units, "
                "operation_id, time) VALUES ('m', 'nobody', '', 1, '', now())"
            )
        except psycopg2.IntegrityError:
            return "all is well"
        return "unreachable"

    def fine(tx: SqlTransaction) -> str:
        return str(tx.now)

    with pytest.raises(SwallowedError):
        await database.transact(swallow)
    assert await database.transact(fine)  # The connection is good for the next phase.
    await database.close()


async def test_a_tampered_row_breaks_the_chain_and_is_shown(
    world: World, as_superuser: Callable[..., int]
) -> None:
    payment = await world.captured()
    request = events_pb2.ListPaymentEventsRequest(payment_id=payment.payment_id)
    assert (await world.events.ListPaymentEvents(request)).chain_intact
    changes = {
        "UPDATE events SET body = replace(body, '10000', '10001') WHERE sequence = 3": 3,
        "UPDATE events SET time = time + interval '1 second' WHERE sequence = 2": 2,
        "DELETE FROM events WHERE sequence = 2": 2,
        "DELETE FROM events WHERE sequence = (SELECT max(version) FROM payments)": payment.version,
    }
    for change, broken in changes.items():
        keep = world.sql("SELECT * FROM events")
        assert as_superuser(world, change) == 1
        shown = await world.events.ListPaymentEvents(request)
        assert (shown.chain_intact, shown.first_broken_sequence) == (False, broken), change
        as_superuser(world, "DELETE FROM events")
        for row in keep:
            as_superuser(world, "INSERT INTO events VALUES (%s, %s, %s, %s, %s, %s)", *row)
        assert (await world.events.ListPaymentEvents(request)).chain_intact


# ---- slow, disconnected, unavailable ----


async def test_killed_sessions_cost_a_retry_at_most(
    world: World, as_superuser: Callable[..., int]
) -> None:
    expert = await world.expert()
    held = await asyncio.gather(*(world.escrowed(expert) for _ in range(3)))
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    requests = [capture_request(payment.payment_id) for payment in held]
    calls = [
        asyncio.create_task(world.until_answered("CapturePayment", request)) for request in requests
    ]
    for _ in range(4):
        await asyncio.to_thread(as_superuser, world, kill)
        await asyncio.sleep(0.05)
    assert {reply.code for reply in await asyncio.gather(*calls)} == {"OK"}
    for payment in held:
        assert (await world.get(payment.payment_id)).state == CAPTURED
        assert len(await world.stripe.effects("captured", payment.payment_intent_id)) == 1
    await check_books(world)


def kill_sessions(postgres: EmbeddedPostgres, name: str) -> None:
    """Ends all sessions of a database, and waits until they have ended."""
    with (
        contextlib.closing(psycopg2.connect(postgres.admin_url(name))) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def test_a_phase_finds_its_connection_dead_and_runs_on_another_one(
    postgres: EmbeddedPostgres, database_url: str
) -> None:
    database = SqlDatabase(database_url, write_connections=1, read_connections=1)
    name = database_url.rpartition("/")[2]
    ran: list[str] = []

    def phase(tx: SqlTransaction) -> str:
        ran.append("begun")
        return str(tx.now)

    def killed_within(tx: SqlTransaction) -> str:
        ran.append("begun")
        tx._one("SELECT 1 AS one")
        kill_sessions(postgres, name)
        return str(tx.now)

    try:
        for _ in range(3):
            assert await database.transact(phase)
            kill_sessions(postgres, name)  # Before the event loop can notice.
        assert await database.transact(phase)
        assert len(ran) == 4 + 3
        ran.clear()
        # What had begun is not repeated here: whoever called it repeats it with the same key.
        with pytest.raises(Unavailable):
            await database.transact(killed_within)
        assert len(ran) == 1
        assert await database.transact(phase)
    finally:
        await database.close()


async def test_a_connection_that_dies_at_rest_is_replaced_before_a_phase_finds_it(
    postgres: EmbeddedPostgres, database_url: str
) -> None:
    database = SqlDatabase(database_url, write_connections=1, read_connections=1)
    ran: list[int] = []

    def phase(tx: SqlTransaction) -> int:
        ran.append(tx.connection.info.backend_pid)
        assert tx.now.tzinfo
        return ran[-1]

    async def at_rest_is_closed() -> bool:
        return not any(place.is_open for place in database._write_places._all)

    try:
        first = await database.transact(phase)
        await asyncio.to_thread(kill_sessions, postgres, database_url.rpartition("/")[2])
        await until(at_rest_is_closed, "the end of the connection")
        second = await database.transact(phase)
        assert ran == [first, second]
        assert second != first
    finally:
        await database.close()


async def test_a_phase_of_one_round_trip_needs_no_begin_and_may_be_sent_twice(
    postgres: EmbeddedPostgres, database_url: str
) -> None:
    database = SqlDatabase(database_url, write_connections=1, read_connections=1)
    name = database_url.rpartition("/")[2]
    rows: list[int] = []

    def count(tx: SqlTransaction) -> None:
        """Is two statements, which are sent together: both are written, or none."""
        tx._later("INSERT INTO jobs (name, next_time) VALUES ('one', now()) ON CONFLICT DO NOTHING")
        rows.append(tx._one("SELECT count(*) AS count FROM jobs WHERE name LIKE 'one%'")["count"])

    def half(tx: SqlTransaction) -> None:
        tx._later("INSERT INTO jobs (name, next_time) VALUES ('one more', now())")
        tx._one("SELECT 1 / 0")

    def twice(tx: SqlTransaction) -> None:
        tx._one("SELECT 1 AS one")
        tx._one("SELECT 2 AS two")

    try:
        await database.write(count)
        kill_sessions(postgres, name)
        await database.write(count)
        with pytest.raises(psycopg2.errors.DivisionByZero):
            await database.write(half)
        await database.write(count)
        assert rows == [1, 1, 1]
        # What was sent is committed, so the bug must not look like a transaction.
        with pytest.raises(NotOneRoundTrip):
            await database.write(twice)
    finally:
        await database.close()


async def test_a_transition_from_an_old_version_writes_nothing(world: World) -> None:
    assert world.service is not None
    payment_id = (await world.initiate(await world.expert())).payment.payment_id
    await world.settle_down()  # Stripe's events would be counted, too.
    database = world.service.app.database
    old = await database.read(lambda reader: reader.payment(payment_id))
    assert old is not None

    def waits(tx: Transaction, payment: Payment) -> None:
        # Both are sent with COMMIT, and the first of them is written before the other one fails.
        tx.add_movement(payment_id, Movement("re_of_old", "refund", 1))
        waiting = transitions.waiting_changed(payment, WaitingFor.OPERATOR, "", tx.now)
        tx.record(waiting, Cause("tests", "look"))

    before = world.counts()
    with pytest.raises(Busy, match="too many calls are changing the same thing"):
        await database.transact(waits, replace(old, version=old.version - 1))
    assert world.counts() == before
    await database.transact(waits, old)
    assert world.counts() != before


async def test_a_table_that_a_migration_changes_disturbs_no_prepared_statement(
    world: World, as_superuser: Callable[..., int]
) -> None:
    expert = await world.expert()
    # By the last one the statements are prepared on most connections.
    *_, payment = [await world.escrowed(expert) for _ in range(8)]
    await world.settle_down()
    as_superuser(world, "ALTER TABLE payments ADD COLUMN later text NOT NULL DEFAULT ''")
    as_superuser(world, "ALTER TABLE operations ADD COLUMN later text NOT NULL DEFAULT ''")
    for _ in range(4):
        assert (await world.get(payment.payment_id)).payment_id == payment.payment_id
    assert (await world.capture(payment.payment_id)).state == CAPTURED
    await world.captured(expert)
    await check_books(world)


async def test_reads_survive_killed_sessions(
    world: World, as_superuser: Callable[..., int]
) -> None:
    payment = await world.captured()
    await world.settle_down()
    for _ in range(3):
        as_superuser(
            world,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        assert (await world.get(payment.payment_id)).payment_id == payment.payment_id


async def test_closing_leaves_no_session_behind(database_url: str) -> None:
    """Also those for reads, and before a garbage collection finds them."""

    def sessions() -> set[int]:
        with (
            contextlib.closing(psycopg2.connect(database_url)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'payment_service'"
            )
            return {pid for (pid,) in cursor.fetchall()}

    async def none_left() -> bool:
        return not sessions()

    database = SqlDatabase(database_url, write_connections=2, read_connections=3)
    gc.disable()
    try:
        await asyncio.gather(*(database.read(lambda reader: reader.totals()) for _ in range(30)))
        await database.transact(lambda tx: tx.now)
        assert sessions()
        await database.close()
        await until(none_left, "the end of every session", seconds=5)
    finally:
        gc.enable()


async def test_a_locked_payment_delays_itself_alone_and_a_full_pool_says_so(
    start_world: StartWorld,
) -> None:
    world = await start_world(database_write_connections=2, loops=False)
    expert = await world.expert()
    held = await world.initiate(expert)
    other = await world.initiate(expert)
    with world.session() as cursor:
        cursor.execute(
            "SELECT 1 FROM payments WHERE payment_id = %s FOR UPDATE", (held.payment.payment_id,)
        )
        waiting = [
            asyncio.create_task(
                world.bytes_of("CapturePayment", capture_request(held.payment.payment_id))
            )
            for _ in range(6)
        ]
        # Reads have a pool of their own.
        assert (await world.get(held.payment.payment_id)).payment_id
        assert (await world.get(other.payment.payment_id)).payment_id
        done: set[asyncio.Task[Reply]] = set()
        while len(done) < 4:  # All but the two that have the places.
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.05)
        answers = {(task.result().code, _reason(task.result())) for task in done}
        assert answers == {("UNAVAILABLE", "DATABASE_UNAVAILABLE")}
    late = [await task for task in waiting if task not in done]
    assert {_reason(reply) for reply in late} == {"WRONG_STATE"}
    assert len(late) == 2


def _reason(reply: Reply) -> str:
    return reply.refused.reason if reply.refused else ""


# ---- lists ----


async def _page(world: World, **fields: Any) -> payments_pb2.ListPaymentsResponse:
    return await world.payments.ListPayments(payments_pb2.ListPaymentsRequest(**fields))


async def test_lists_page_by_keyset_filter_and_stand_still_under_inserts(world: World) -> None:
    expert = await world.expert()
    made = [
        (await world.initiate(expert, client_id="client-a", gig_id=f"gig-{number % 2}")).payment
        for number in range(5)
    ]
    await world.initiate(expert, client_id="client-b")
    newest_first = [payment.payment_id for payment in made[::-1]]
    first = await _page(world, user_id="client-a", page_size=2)
    assert [payment.payment_id for payment in first.payments] == newest_first[:2]
    late = await world.initiate(expert, client_id="client-a", gig_id="gig-2")
    rest: list[str] = []
    token = first.next_page_token
    while token:
        page = await _page(world, user_id="client-a", page_size=2, page_token=token)
        rest += [payment.payment_id for payment in page.payments]
        token = page.next_page_token
    assert rest == newest_first[2:]
    again = await _page(world, user_id="client-a", page_size=1)
    assert again.payments[0].payment_id == late.payment.payment_id

    role = payments_pb2.PAYMENT_ROLE_CLIENT
    assert not (await _page(world, user_id=expert, role=role)).payments
    assert len((await _page(world, user_id=expert)).payments) == 7
    assert not (await _page(world, user_id="nobody")).payments
    gig = await _page(world, user_id="client-a", gig_id="gig-1")
    assert [payment.payment_id for payment in gig.payments] == [
        made[3].payment_id,
        made[1].payment_id,
    ]
    states = [payments_pb2.PAYMENT_STATE_PENDING]
    assert len((await _page(world, user_id="client-a", states=states)).payments) == 6
    states = [payments_pb2.PAYMENT_STATE_CAPTURED]
    assert not (await _page(world, user_id="client-a", states=states)).payments
    between = await _page(
        world,
        user_id="client-a",
        min_create_time=made[1].create_time,
        max_create_time=made[3].create_time,
    )
    assert [payment.payment_id for payment in between.payments] == newest_first[2:4]

    misuse: list[dict[str, Any]] = [
        {"user_id": expert, "page_token": first.next_page_token},
        {"user_id": "client-a", "gig_id": "gig-1", "page_token": first.next_page_token},
        {"user_id": "client-a", "page_token": "x"},
        {"user_id": "client-a", "page_token": first.next_page_token[:-4]},
        {"user_id": "client-a", "page_token": "é" * 10},
        {"user_id": "client-a", "page_token": "A" * 1_000_000},
    ]
    for fields in misuse:
        refused = await refusal(_page(world, **fields))
        assert (refused.code, list(refused.fields)) == ("INVALID_ARGUMENT", ["page_token"])
    odd = Timestamp(seconds=2**62)
    refused = await refusal(_page(world, user_id="client-a", min_create_time=odd))
    assert list(refused.fields) == ["min_create_time"]


async def test_a_list_reads_no_more_rows_than_its_page_among_a_hundred_thousand(
    world: World, as_superuser: Callable[..., int]
) -> None:
    expert = await world.expert()
    await world.initiate(expert, client_id="client-a")
    others = {
        "payment_id": "'pay_' || md5(n::text)",
        "payment_intent_id": "'pi_' || n",
        "client_id": "'client-' || n %% 5",
        "create_time": "now() - n * interval '1 second'",
    }
    columns = [
        name
        for (name,) in world.sql(
            "SELECT column_name::text FROM information_schema.columns "
            "WHERE table_name = 'payments' AND table_schema = 'public'"
        )
    ]
    values = ", ".join(others.get(name, name) for name in columns)
    await asyncio.to_thread(
        as_superuser,
        world,
        f"INSERT INTO payments ({', '.join(columns)}) SELECT {values} "  # noqa: S608 - columns' names
        "FROM payments, generate_series(1, 100000) AS n",
    )
    as_superuser(world, "ANALYZE payments")
    moment = datetime.now(UTC) - timedelta(hours=3)
    with world.session() as cursor:
        for user in ("client-2", expert):
            cursor.execute(
                "EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM ("
                "(SELECT * FROM payments WHERE client_id = %(user)s "
                "AND (create_time, payment_id) < (%(moment)s, 'pay_') "
                "ORDER BY create_time DESC, payment_id DESC LIMIT 51) UNION ALL "
                "(SELECT * FROM payments WHERE expert_id = %(user)s "
                "AND (create_time, payment_id) < (%(moment)s, 'pay_') "
                "ORDER BY create_time DESC, payment_id DESC LIMIT 51)) AS page "
                "ORDER BY create_time DESC, payment_id DESC LIMIT 51",
                {"user": user, "moment": moment},
            )
            [[plan]] = cursor.fetchone()
            for node in _nodes(plan["Plan"]):
                read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                assert read <= 102, node
    page = await _page(world, user_id="client-2", page_size=50)
    assert len(page.payments) == 50
    assert page.next_page_token


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


async def test_the_service_does_not_serve_on_a_read_only_database(
    world: World, as_superuser: Callable[..., int]
) -> None:
    assert world.service is not None
    assert world.service.wired is not None
    database = world.service.wired.database
    assert await database.ping()
    name = world.database_url.rpartition("/")[2]
    end_sessions = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    as_superuser(world, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    as_superuser(world, end_sessions)

    async def away() -> bool:
        return not await database.ping()

    await until(away, "the database found wanting")
    as_superuser(world, f'ALTER DATABASE "{name}" SET default_transaction_read_only = off')
    as_superuser(world, end_sessions)
    await until(database.ping, "the database found well")
    assert (await world.captured()).state == CAPTURED
