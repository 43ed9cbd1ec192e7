"""One payment that cannot be written: no loop ends with it, nor waits behind it.

The poison stands first in every queue, and one payment is looked at a round. The tests are the
background: each runs the loop's own function.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from marketplace.payments.v1 import disputes_pb2, operations_pb2, payments_pb2
from payment_service.application.app import App
from payment_service.application.jobs.act_on_deadlines import act_on_deadlines
from payment_service.application.jobs.expire_unpaid import expire_unpaid
from payment_service.application.jobs.recover_operations import recover_operations
from payment_service.application.jobs.retry_waiting_captures import retry_waiting_captures
from payment_service.application.jobs.sync_expired_authorizations import (
    sync_expired_authorizations,
)
from payment_service.application.jobs.update_waiting_reasons import update_waiting_reasons
from payment_service.application.jobs.warn_of_deadlines import warn_of_deadlines
from payment_service.application.jobs.write_off_lost_disputes import write_off_lost_disputes
from tests.integration.conftest import StartWorld
from tests.support.steps.disputes import contest, decide, dispute_where
from tests.support.steps.payments import CARD, PLATFORM, PROMOTE, event_kinds, reasons
from tests.support.world import CAPTURED, CAPTURING, EXPIRED, IN_ESCROW, PENDING, Payment, World

LOST = disputes_pb2.DISPUTE_OUTCOME_LOST
_EIGHT_DAYS = 8 * 24 * 3600
_ROUNDS = 4
AsSuperuser = Callable[..., int]


_JOBS = (
    "act_on_deadlines",
    "expire_unpaid",
    "recover_operations",
    "retry_waiting_captures",
    "sync_expired_authorizations",
    "update_waiting_reasons",
    "warn_of_deadlines",
    "write_off_lost_disputes",
)


@pytest.fixture(autouse=True)
def one_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _JOBS:
        module = importlib.import_module(f"payment_service.application.jobs.{name}")
        monkeypatch.setattr(module, "_BATCH", 1)


@pytest.fixture
async def world(start_world: StartWorld) -> World:
    """Nothing asks Stripe by itself: what the loop under test does not do stays undone."""
    return await start_world(policy={"poll_seconds": 3600.0, "quiet_seconds": 3600.0})


async def poison(world: World, as_superuser: AsSuperuser, payment: Payment) -> None:
    """Stop the loops; from now on nothing can be recorded of the payment."""
    await world.settle_down()
    assert world.service is not None
    await world.service.stop()
    await world.service.start(loops=False)
    as_superuser(
        world,
        "CREATE TRIGGER poison BEFORE INSERT ON events FOR EACH ROW "
        "WHEN (NEW.payment_id = %s) EXECUTE FUNCTION refuse_change()",
        payment.payment_id,
    )


async def rounds(world: World, work: Callable[[App], Awaitable[int]]) -> None:
    assert world.service is not None
    for _ in range(_ROUNDS):
        await work(world.service.app)


def set_in_turn(
    world: World, as_superuser: AsSuperuser, column: str, begin: str, *payments: Payment
) -> None:
    """Set a time of the payments, one minute after the other from ``begin`` on."""
    for payment, minutes in zip(payments, itertools.count()):
        as_superuser(
            world,
            f"UPDATE payments SET {column} = now() + %s::interval + make_interval(mins => %s) "  # noqa: S608
            "WHERE payment_id = %s",
            begin,
            minutes,
            payment.payment_id,
        )


async def test_poisoned_deadline(world: World, as_superuser: AsSuperuser) -> None:
    expert = await world.expert()
    first, second = [
        await world.escrowed(expert, escrow_mode=CARD, on_deadline=PROMOTE) for _ in range(2)
    ]
    await poison(world, as_superuser, first)
    set_in_turn(world, as_superuser, "escrow_expire_time", "10 hours", first, second)
    await rounds(world, act_on_deadlines)
    assert (await world.get(second.payment_id)).escrow_mode == PLATFORM
    assert (await world.get(first.payment_id)).escrow_mode == CARD


async def test_poisoned_warning(world: World, as_superuser: AsSuperuser) -> None:
    expert = await world.expert()
    first, second = [await world.escrowed(expert) for _ in range(2)]
    await poison(world, as_superuser, first)
    set_in_turn(world, as_superuser, "escrow_expire_time", "20 hours", first, second)
    await rounds(world, warn_of_deadlines)
    assert "deadline_near" in await event_kinds(world, second.payment_id)
    assert "deadline_near" not in await event_kinds(world, first.payment_id)


async def test_poisoned_confirmation_window(world: World, as_superuser: AsSuperuser) -> None:
    expert = await world.expert()
    first, second = [(await world.initiate(expert)).payment for _ in range(2)]
    await poison(world, as_superuser, first)
    set_in_turn(world, as_superuser, "payment_expire_time", "-1 hour", first, second)
    await rounds(world, expire_unpaid)
    assert (await world.get(second.payment_id)).state == EXPIRED
    assert (await world.get(first.payment_id)).state == PENDING


async def test_poisoned_expired_hold(world: World, as_superuser: AsSuperuser) -> None:
    expert = await world.expert()
    first, second = [await world.escrowed(expert) for _ in range(2)]
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await poison(world, as_superuser, first)
    await world.stripe.advance(_EIGHT_DAYS)
    set_in_turn(world, as_superuser, "escrow_expire_time", "-1 hour", first, second)
    await rounds(world, sync_expired_authorizations)
    assert (await world.get(second.payment_id)).state == EXPIRED
    assert (await world.get(first.payment_id)).state == IN_ESCROW


async def waiting_for_two_experts(world: World) -> tuple[Payment, Payment, list[str]]:
    """Two captures whose experts' accounts are restricted, and the accounts."""
    payments, accounts = [], []
    for _ in range(2):
        expert = await world.expert()
        held = await world.escrowed(expert, escrow_mode=PLATFORM)
        accounts.append(world.account_of(expert))
        await world.stripe.control("POST", f"/accounts/{accounts[-1]}/restrict")
        payments.append(await world.capture(held.payment_id))
        assert payments[-1].waiting_for == payments_pb2.WAITING_FOR_EXPERT
    return payments[0], payments[1], accounts


async def change_experts(world: World, as_superuser: AsSuperuser, change: str) -> None:
    changed = as_superuser(world, f"UPDATE experts SET {change}")  # noqa: S608 - of the test
    assert changed == 2


async def test_poisoned_waiting_reason(world: World, as_superuser: AsSuperuser) -> None:
    first, second, _ = await waiting_for_two_experts(world)
    await poison(world, as_superuser, first)
    await change_experts(world, as_superuser, "disabled_reason = 'rejected.fraud'")
    await rounds(world, update_waiting_reasons)
    assert (await reasons(world, second.payment_id))[-1] == "EXPERT_REJECTED"
    assert (await reasons(world, first.payment_id))[-1] == "EXPERT_RESTRICTED"


async def test_poisoned_waiting_capture(world: World, as_superuser: AsSuperuser) -> None:
    first, second, accounts = await waiting_for_two_experts(world)
    await poison(world, as_superuser, first)
    for account in accounts:
        await world.stripe.control("POST", f"/accounts/{account}/restore")
    await change_experts(
        world,
        as_superuser,
        "transfers_active = true, disabled_reason = '', requirements_due = '{}'",
    )
    await rounds(world, retry_waiting_captures)
    await rounds(world, recover_operations)
    assert (await world.get(second.payment_id)).state == CAPTURED
    assert (await world.get(first.payment_id)).state == CAPTURING


async def test_poisoned_lost_dispute(world: World, as_superuser: AsSuperuser) -> None:
    expert = await world.expert()
    first, second = [await world.escrowed(expert, escrow_mode=PLATFORM) for _ in range(2)]
    disputes = []
    for payment in (first, second):
        disputes.append(await contest(world, payment))
        await dispute_where(world, disputes[-1])
    await poison(world, as_superuser, first)
    for dispute in disputes:
        await decide(world, dispute, "lose")
    # As it is written down while something else is under way.
    assert (
        as_superuser(
            world, "UPDATE disputes SET status = 'lost', outcome = 'LOST', close_time = now()"
        )
        == 2
    )
    await rounds(world, write_off_lost_disputes)
    lost = [(await dispute_where(world, one)).lost_amount.minor_units for one in disputes]
    assert lost == [0, 10_000]


async def test_poisoned_reconciliation(world: World, as_superuser: AsSuperuser) -> None:
    expert = await world.expert()
    payments = [await world.escrowed(expert) for _ in range(3)]
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await poison(world, as_superuser, payments[0])
    for payment in payments:
        await world.stripe.api("POST", f"/payment_intents/{payment.payment_intent_id}/capture")
    report = await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())
    assert report.corrected_payments == 2
    states: list[Any] = [(await world.get(one.payment_id)).state for one in payments]
    assert states == [IN_ESCROW, CAPTURED, CAPTURED]
