"""Which deadlines are acted upon: just those that are due, and each of them in its turn."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from dev.postgres import EmbeddedPostgres
from marketplace.payments.v1 import payments_pb2
from payment_service.adapters.postgres import rows
from payment_service.adapters.postgres.connections import connect
from payment_service.adapters.postgres.reader import SqlReader
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.application.fair_queue import claim_turn
from payment_service.application.jobs import act_on_deadlines
from payment_service.application.jobs.expire_unpaid import expire_unpaid
from payment_service.application.jobs.retry_waiting_captures import retry_waiting_captures
from payment_service.application.jobs.sync_expired_authorizations import (
    sync_expired_authorizations,
)
from payment_service.application.jobs.warn_of_deadlines import warn_of_deadlines
from payment_service.domain.deadlines import deadline_due, deadline_near, deadlines_of
from payment_service.domain.payment import EscrowMode, OnDeadline, Payment, State
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import JobKind
from payment_service.domain.schedule import SCHEDULE_COLUMNS, schedule_of
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.steps.payments import CARD, PLATFORM, PROMOTE, event_kinds, in_days
from tests.support.world import CAPTURED, IN_ESCROW, World, until
from tests.unit.domain.builders import in_state, separate

CAPTURE, REFUND = payments_pb2.ON_DEADLINE_CAPTURE, payments_pb2.ON_DEADLINE_REFUND
HOUR = timedelta(hours=1)
POLICY = Policy(deadline_margin=12 * 3600.0, deadline_retry=3600.0, deadline_warning=24 * 3600.0)
MARGIN, AGAIN, AHEAD = 12 * HOUR, HOUR, 24 * HOUR
#: More than are ever generated.
ALL = 10_000
JOBS_BY_SCHEDULE = (
    warn_of_deadlines,
    act_on_deadlines.act_on_deadlines,
    expire_unpaid,
    sync_expired_authorizations,
    retry_waiting_captures,
)


# ---- the SQL against the domain ----


@pytest.fixture
def transaction(postgres: EmbeddedPostgres, database_url: str) -> Iterator[SqlTransaction]:
    """As superuser, with foreign keys off; nothing of it is committed."""
    url = postgres.admin_url(database_url.rpartition("/")[2])
    with contextlib.closing(connect(url)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SET session_replication_role = replica")
        yield SqlTransaction(connection, POLICY)


def escrows(chance: random.Random, number: int, now: datetime) -> Iterator[Payment]:
    """Payments around their deadlines, in every order of the times that matter."""

    def around(mean: timedelta, hours: float) -> datetime | None:
        moment = now + mean + chance.uniform(-hours, hours) * HOUR
        return chance.choice((None, moment, moment))

    for count in range(number):
        mode = chance.choice(list(EscrowMode))
        state = chance.choice((State.IN_ESCROW,) * 4 + (State.CAPTURING, State.CAPTURED))
        yield replace(
            in_state(state, separate(mode)),
            payment_id=f"pay_{count}",
            payment_intent_id=f"pi_{count}",
            charge_id=f"ch_{count}",
            on_deadline=chance.choice(list(OnDeadline)),
            remainder_to_client=mode is EscrowMode.PLATFORM_HOLD and chance.random() < 0.5,
            escrow_expire_time=around(MARGIN, 16),
            release_due_time=around(timedelta(), 30 if count % 2 else 4),
            deadline_time=around(-HOUR, 3),
            warn_time=around(AHEAD / 2, 20),
            update_time=now - 40 * HOUR,
        )


def insert(tx: SqlTransaction, payment: Payment) -> None:
    names = [*rows.PAYMENT_COLUMNS, *SCHEDULE_COLUMNS, "head_hash"]
    schedule = schedule_of(payment, POLICY)
    tx._do(
        f"INSERT INTO payments ({', '.join(names)}) "  # noqa: S608 - names of ours
        f"VALUES ({', '.join(f':{name}' for name in names)})",
        **rows.payment_values(payment),
        **rows.schedule_values(schedule),
        head_hash=bytes(32),
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_job_finds_what_the_domain_would_act_on(transaction: SqlTransaction, seed: int) -> None:
    tx = transaction
    payments = list(escrows(random.Random(seed), 1_500, tx.now))
    for payment in payments:
        insert(tx, payment)
    resting = [one for one in payments if one.state is State.IN_ESCROW and not one.operation_id]
    due = {one.payment_id for one in resting if deadline_due(one, tx.now, MARGIN, AGAIN)}
    found = due_for(tx, JobKind.ACT_ON_DEADLINES)
    assert 50 < len(due) < len(resting) - 50
    assert sorted(found) == sorted(due)
    warned = [one for one in payments if one.state in (State.IN_ESCROW, State.CAPTURING)]
    near = {one.payment_id for one in warned if deadline_near(one, tx.now, AHEAD)}
    passed = {one.payment_id for one in warned if has_missed_warning(one, tx.now)}
    assert 50 < len(near) < len(warned) - 50
    assert near <= set(due_for(tx, JobKind.WARN_OF_DEADLINES)) <= near | passed


def due_for(tx: SqlTransaction, job: JobKind) -> Sequence[str]:
    return SqlReader(tx.connection).payments_due(job, ALL)


def has_missed_warning(payment: Payment, now: datetime) -> bool:
    """A deadline has passed since the last change without a warning; now it is too late for one."""
    return any(
        deadline.time < now and (payment.warn_time is None or payment.warn_time < deadline.time)
        for deadline in deadlines_of(payment)
    )


async def test_a_stored_time_that_is_too_early_moves_nothing(
    start_world: StartWorld, as_superuser: Callable[..., int]
) -> None:
    world = await start_world()
    assert world.service is not None
    expert = await world.expert()
    await world.initiate(expert)
    await world.escrowed(expert, on_deadline=CAPTURE, expected_completion_time=in_days(5))
    await world.settle_down()
    await world.service.stop()
    await world.service.start(loops=False)
    as_superuser(
        world,
        "UPDATE payments SET warn_due_time = now() - interval '1 day', "
        "deadline_due_time = now() - interval '1 day', "
        "expire_due_time = now() - interval '1 day', "
        "hold_check_due_time = now() - interval '1 day', "
        "capture_retry_due_time = now() - interval '1 day'",
    )
    before = world.sql("SELECT payment_id, version FROM payments ORDER BY 1")
    for job in JOBS_BY_SCHEDULE:
        await job(world.service.app)
    turns = {job for (job,) in world.sql("SELECT DISTINCT job FROM job_backoff")}
    assert turns == {
        "warn_of_deadlines",
        "act_on_deadlines",
        "expire_unpaid",
        "sync_expired_authorizations",
    }
    assert world.sql("SELECT payment_id, version FROM payments ORDER BY 1") == before


# ---- what was to go back ----


async def rest_refused(world: World, **fields: Any) -> payments_pb2.Payment:
    """The expert was paid 3,000 of 10,000, and Stripe refused to refund the remainder."""
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM, **fields)
    await world.stripe.fault("/refunds$", "status", status=400, code="charge_disputed")
    payment = await world.capture(held.payment_id, 3_000, final=True)
    assert (payment.state, payment.held_amount.minor_units) == (IN_ESCROW, 7_000)
    await world.settle_down()
    return payment


def come(world: World, as_superuser: Callable[..., int]) -> None:
    """The gig's date has come."""
    as_superuser(world, "UPDATE payments SET release_due_time = now() - interval '1 second'")


async def test_a_deadline_does_not_pay_the_remainder_to_the_expert(
    world: World, as_superuser: Callable[..., int]
) -> None:
    payment = await rest_refused(world, on_deadline=CAPTURE, expected_completion_time=in_days(30))
    assert {deadline.action for deadline in payment.deadlines} == {REFUND}
    come(world, as_superuser)
    payment = await world.in_state(payment.payment_id, CAPTURED)
    assert payment.captured_amount.minor_units == 3_000
    assert payment.returned_amount.minor_units == 7_000
    await check_books(world)


async def test_a_refund_that_stripe_refuses_at_a_deadline_stays_in_escrow(
    world: World, as_superuser: Callable[..., int]
) -> None:
    payment = await rest_refused(world, on_deadline=CAPTURE, expected_completion_time=in_days(30))
    await world.stripe.fault("/refunds$", "status", times=None, status=400, code="charge_disputed")
    come(world, as_superuser)
    for tries in (2, 3):

        async def refused(tries: int = tries) -> bool:
            return (await event_kinds(world, payment.payment_id)).count("refund_refused") == tries

        await until(refused, "the refusal")
        # Tried again an hour later.
        as_superuser(world, "UPDATE payments SET deadline_time = now() - interval '2 hours'")
    payment = await world.get(payment.payment_id)
    assert payment.captured_amount.minor_units == 3_000
    await check_books(world)


async def test_an_alert_deadline_leaves_the_remainder_in_escrow(
    world: World, as_superuser: Callable[..., int]
) -> None:
    payment = await rest_refused(world, expected_completion_time=in_days(30))
    come(world, as_superuser)

    async def reported() -> bool:
        return "deadline_passed" in await event_kinds(world, payment.payment_id)

    await until(reported, "the alert")
    assert (await world.get(payment.payment_id)).held_amount.minor_units == 7_000


@pytest.mark.parametrize("final", [False, True])
async def test_a_caller_may_decide_again_about_the_remainder(
    world: World, as_superuser: Callable[..., int], final: bool
) -> None:
    payment = await rest_refused(world, on_deadline=CAPTURE, expected_completion_time=in_days(30))
    payment = await world.capture(payment.payment_id, 1_000, final=final)
    assert payment.captured_amount.minor_units == 4_000
    come(world, as_superuser)
    payment = await world.in_state(payment.payment_id, CAPTURED)
    assert payment.captured_amount.minor_units == 4_000
    assert payment.returned_amount.minor_units == 6_000
    await check_books(world)


# ---- no payment starves ----


def test_an_item_that_had_its_turn_waits_behind_the_others(transaction: SqlTransaction) -> None:
    tx = transaction
    for hours, name in ((3, "pay_a"), (2, "pay_b"), (1, "pay_c")):
        payment = replace(
            in_state(State.IN_ESCROW, separate(EscrowMode.PLATFORM_HOLD)),
            payment_id=name,
            payment_intent_id=f"pi_{name}",
            charge_id=f"ch_{name}",
            release_due_time=tx.now - hours * HOUR,
        )
        insert(tx, payment)

    def queue() -> list[str]:
        return list(SqlReader(tx.connection).payments_due(JobKind.ACT_ON_DEADLINES, 3))

    def rest_is_over() -> float:
        """How long it was."""
        pause: timedelta = tx._one(
            "UPDATE job_backoff SET next_time = now() - interval '1 second' RETURNING pause"
        )["pause"]
        return pause.total_seconds()

    assert queue() == ["pay_a", "pay_b", "pay_c"]
    pauses = []
    for _ in range(9):
        assert claim_turn(tx, JobKind.ACT_ON_DEADLINES, "pay_a")
        assert not claim_turn(tx, JobKind.ACT_ON_DEADLINES, "pay_a")
        assert queue() == ["pay_b", "pay_c"]
        pauses.append(rest_is_over())
        assert queue() == ["pay_b", "pay_c", "pay_a"]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    tx._do("UPDATE job_backoff SET next_time = now() - interval '2 hours'")
    assert claim_turn(tx, JobKind.ACT_ON_DEADLINES, "pay_a")
    assert rest_is_over() == 1


async def promoted(world: World, payment_id: str) -> bool:
    return (await world.get(payment_id)).escrow_mode == PLATFORM


async def test_a_late_gig_does_not_starve_other_deadlines(
    start_world: StartWorld,
    as_superuser: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(act_on_deadlines, "_BATCH", 1)
    world = await start_world()
    expert = await world.expert()
    late = await world.escrowed(
        expert, escrow_mode=CARD, on_deadline=PROMOTE, expected_completion_time=in_days(3)
    )
    due = await world.escrowed(expert, escrow_mode=CARD, on_deadline=PROMOTE)
    await world.settle_down()
    # The gig's date passed and was reported two hours ago; the authorization lasts for days.
    as_superuser(
        world,
        "UPDATE payments SET release_due_time = now() - interval '3 hours', "
        "deadline_time = now() - interval '2 hours', "
        "escrow_expire_time = now() + interval '3 days' WHERE payment_id = %s",
        late.payment_id,
    )
    as_superuser(
        world,
        "UPDATE payments SET escrow_expire_time = now() + interval '11 hours' "
        "WHERE payment_id = %s",
        due.payment_id,
    )
    await until(lambda: promoted(world, due.payment_id), "the promotion", 8)
    assert not await promoted(world, late.payment_id)
