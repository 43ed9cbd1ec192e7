"""What PostgreSQL itself refuses in a payment's row, and what the service writes there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from datetime import timedelta

import psycopg2
import psycopg2.errors
import pytest

from payment_service.adapters.postgres.engine import SqlDatabase
from payment_service.adapters.postgres.recording import recording
from payment_service.adapters.postgres.rows import payment_values, schedule_values
from payment_service.adapters.postgres.statements import array_of
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.domain import transitions
from payment_service.domain.schedule import Schedule
from tests.integration.conftest import StartWorld
from tests.support.world import World
from tests.unit.domain.builders import NOW, new_payment

#: What breaks each rule in the row of a payment of 100.00 that was captured whole.
_BREAKS = {
    "known_state": "state = 'LOST'",
    "version_starts_at_one": "version = 0",
    "amount_is_positive": "amount = 0",
    "commission_rate_range": "commission_basis_points = 10000",
    "commission_is_not_negative": "commission = -1, expert_amount = 10001",
    "expert_amount_is_positive": "commission = 10000, expert_amount = 0",
    "quote_adds_up": "commission = 1001",
    "charged_money_is_accounted_for": "captured = 9999",
    "held_within_amount": "held = -1, captured = 10001",
    "charged_within_amount": "charged = 10001, captured = 10001",
    "captured_within_amount": "captured = 10001, lost_held = -1",
    "returned_within_amount": "refunded_from_escrow = -1, lost_held = 1",
    "lost_held_within_amount": "lost_held = -1, held = 1",
    "refunded_within_captured": "refunded_after_capture = 10001",
    "lost_within_captured": "lost = 9000, refunded_after_capture = 1001",
    "commission_within_captured": "lost = 9001",
    "client_payable_within_refunds": "client_payable = 1",
    "pending_refund_within_refunds": "pending_refund = 1",
    "pending_refund_only_while_refunding": "pending_refund = 1, refunded_after_capture = 1",
    "debt_offset_is_not_negative": "debt_offset = -1",
    "debt_offset_only_while_capturing": "debt_offset = 1",
    "remainder_to_return_was_charged": (
        "remainder_to_client = true, charged = 0, captured = 0, net_commission = 0"
    ),
    "held_only_in_escrow": "held = 1, captured = 9999",
    "escrow_holds_money": "state = 'IN_ESCROW'",
    "captured_has_money_left": "lost = 10000, net_commission = 0",
    "refunded_has_no_money_left": "state = 'REFUNDED'",
    "known_waiting_for": "waiting_for = 'godot'",
    "known_waiting_reason": "waiting_for = 'expert', waiting_reason = 'LAZY'",
    "waiting_reason_fits_waiting_for": (
        "waiting_for = 'expert', waiting_reason = 'REFUND_PENDING_FUNDS'"
    ),
    "known_freeze_reason": "frozen = 'COLD', frozen_by = 'dp_1'",
    "frozen_by_something": "frozen = 'CHARGEBACK'",
}


async def test_every_rule_is_refused_by_its_name(
    world: World, as_superuser: Callable[..., int]
) -> None:
    await world.captured()
    source = world.sql("SELECT prosrc FROM pg_proc WHERE proname = 'keeps_the_rules'")[0][0]
    assert set(re.findall(r"THEN\s+'(\w+)'", source)) - {"processor"} == set(_BREAKS)
    # Not even a session without triggers may break one.
    for rule, change in _BREAKS.items():
        with pytest.raises(psycopg2.errors.CheckViolation) as refused:
            as_superuser(world, f"UPDATE payments SET {change}")  # noqa: S608 - ours
        assert refused.value.diag.constraint_name == rule


@pytest.mark.parametrize(
    ("change", "is_refused"),
    [
        ("description = '[erased]'", False),
        ("description = '[erased]', net_commission = 1", True),
        ("description = 'another one'", True),
        ("description = '[erased]', client_id = 'another'", True),
        ("client_id = 'another', version = version + 1", True),
        ("client_id = client_id, version = version + 1", False),
        ("net_commission = 1", True),
        ("net_commission = 1, version = version + 1", False),
        ("net_commission = 1, version = version - 1", True),
        ("version = NULL", True),
    ],
)
async def test_the_quote_stays_and_every_change_is_counted(
    world: World, change: str, is_refused: bool
) -> None:
    await world.captured(description="for Ada")
    expected = (
        pytest.raises(psycopg2.errors.RestrictViolation) if is_refused else contextlib.nullcontext()
    )
    with world.session() as cursor, expected:
        cursor.execute(f"UPDATE payments SET {change}")  # noqa: S608 - ours


def test_a_transition_writes_what_it_changes() -> None:
    later = NOW + timedelta(hours=1)
    transition = transitions.authorized(new_payment(), "ch_1", None, later)
    schedule = schedule_values(Schedule(warn_due_time=later))
    row = {**payment_values(transition.after), **schedule, "head_hash": b"hash"}
    statement = recording(transition, row, has_texts=False)
    (assigned,) = re.findall(r"UPDATE payments SET (.*?) WHERE", statement)
    written = dict(one.split(" = ") for one in assigned.split(", "))
    changed = ("state", "held", "charge_id", "version", "update_time", "escrow_time", "head_hash")
    assert written == {
        **{name: f":{name}" for name in changed},
        # The policy may be another one than before.
        **dict.fromkeys(schedule, "NULL"),
        "warn_due_time": ":warn_due_time",
    }


async def test_an_array_arrives_as_it_was(database_url: str) -> None:
    texts = ["a", "", "NULL", 'say "so"', "back\\slash", "{a,b}", "ä 'quoted'", " space ", "%s :a"]
    database = SqlDatabase(database_url, write_connections=1, read_connections=1)

    def same(tx: SqlTransaction) -> tuple[list[str], list[int]]:
        row = tx._one(
            "SELECT CAST(:texts AS text[]) AS texts, CAST(:numbers AS bigint[]) AS numbers",
            texts=array_of(texts),
            numbers=array_of([-(2**40), 0]),
        )
        return row["texts"], row["numbers"]

    try:
        for _ in range(4):  # As it is, and prepared.
            assert await database.transact(same) == (texts, [-(2**40), 0])
    finally:
        await database.close()


#: What makes a plan for one value look cheaper than one for all: much history of other values.
_HISTORY = (
    (
        "INSERT INTO postings (payment_id, sequence, account, currency, minor_units, kind, "
        "balance_transaction_id, time) SELECT payment_id, sequence, account, currency, "
        "minor_units, kind, '', time FROM postings, generate_series(1, 300)"
    ),
    (
        "INSERT INTO webhook_events SELECT (jsonb_populate_record(webhook_events, "
        "jsonb_build_object('event_id', event_id || n))).* "
        "FROM webhook_events, generate_series(1, 500) AS n"
    ),
    "ANALYZE",
    # A session remembers what its plans cost before.
    (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'payment_service' AND datname = current_database()"
    ),
)


async def test_what_a_payment_sends_is_planned_once(
    start_world: StartWorld, as_superuser: Callable[..., int]
) -> None:
    """To plan a statement takes PostgreSQL longer than to execute it.

    It plans one anew each time if a plan for its values looks cheaper than one for all values.
    """
    world = await start_world(database_write_connections=1)
    assert world.service is not None
    expert = await world.expert()
    await world.captured(expert)
    await world.settle_down()
    for statement in _HISTORY:
        as_superuser(world, statement)
    for _ in range(12):
        await world.captured(expert)

    def plans(tx: SqlTransaction) -> list[tuple[str, int, int]]:
        rows = tx._all("SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements")
        return [(row["statement"], row["generic_plans"], row["custom_plans"]) for row in rows]

    found = await world.service.app.database.transact(plans)  # type: ignore[arg-type]
    often = [row for row in found if row[1] + row[2] > 7]
    assert len(often) >= 15
    assert [row for row in often if row[2] > 6] == []
