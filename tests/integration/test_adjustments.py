"""What no rule covers is corrected by two people, exactly once, and nobody else can."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import pytest

from marketplace.payments.v1 import (
    adjustments_pb2,
    events_pb2,
    ledger_pb2,
    money_pb2,
    operations_pb2,
)
from payment_service.adapters.postgres.adjustments import AdjustmentWrites
from payment_service.domain.ports.records import Cause
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.phases import run_in_phase
from tests.support.requests import new_key
from tests.support.steps.operators import open_kinds, run
from tests.support.world import World

Adjustment: TypeAlias = adjustments_pb2.Adjustment
Proposal: TypeAlias = adjustments_pb2.ProposeAdjustmentRequest
Line: TypeAlias = tuple[str, int]
StartWorld: TypeAlias = Callable[..., Awaitable[World]]

PROPOSED = adjustments_pb2.ADJUSTMENT_STATE_PROPOSED
APPROVED = adjustments_pb2.ADJUSTMENT_STATE_APPROVED
REJECTED = adjustments_pb2.ADJUSTMENT_STATE_REJECTED
EXPIRED = adjustments_pb2.ADJUSTMENT_STATE_EXPIRED

CALLER = "x-test-caller"


@pytest.fixture(autouse=True)
def named_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes a caller's name from the metadata, as an authenticator would vouch for it."""

    def cause_of(context: Any, rpc: str) -> Cause:
        given = dict(context.invocation_metadata() or ())
        return Cause(str(given.get(CALLER, "local")), rpc, "req")

    for module in ("adjustments", "operations"):
        monkeypatch.setattr(f"payment_service.rpc.{module}.cause_of", cause_of)


def by(caller: str) -> tuple[tuple[str, str], ...]:
    return ((CALLER, caller),)


def proposal(*lines: Line, currency: str = "USD", **fields: Any) -> Proposal:
    given = {
        "ticket": "FIN-7",
        "reason": "what the bank has confirmed",
        "idempotency_key": new_key(),
        **fields,
    }
    return adjustments_pb2.ProposeAdjustmentRequest(
        lines=[
            adjustments_pb2.AdjustmentLine(
                account=account,
                amount=money_pb2.Money(minor_units=units, currency_code=currency),
            )
            for account, units in lines
        ],
        **given,
    )


async def propose(world: World, *lines: Line, caller: str = "ann", **fields: Any) -> Adjustment:
    answer = await world.operations.ProposeAdjustment(
        proposal(*lines, **fields), metadata=by(caller)
    )
    assert answer.adjustment.state == PROPOSED
    return answer.adjustment


async def approve(world: World, adjustment_id: str, caller: str = "bob", key: str = "") -> Any:
    request = adjustments_pb2.ApproveAdjustmentRequest(
        adjustment_id=adjustment_id, idempotency_key=key or new_key()
    )
    return (await world.operations.ApproveAdjustment(request, metadata=by(caller))).adjustment


async def reject(world: World, adjustment_id: str, caller: str = "bob") -> Any:
    request = adjustments_pb2.RejectAdjustmentRequest(
        adjustment_id=adjustment_id, reason="not so", idempotency_key=new_key()
    )
    return (await world.operations.RejectAdjustment(request, metadata=by(caller))).adjustment


async def listed(world: World, **filters: Any) -> list[Adjustment]:
    request = adjustments_pb2.ListAdjustmentsRequest(**filters)
    return list((await world.operations.ListAdjustments(request)).adjustments)


async def postings(world: World, payment_id: str) -> list[ledger_pb2.Posting]:
    request = ledger_pb2.ListPostingsRequest(payment_id=payment_id)
    return list((await world.ledger.ListPostings(request)).postings)


async def test_two_people_correct_the_books_of_a_payment(world: World) -> None:
    payment = await world.captured()
    debt = f"expert_debt:{payment.expert_id}"
    proposed = await propose(world, (debt, 400), ("losses", -400), payment_id=payment.payment_id)
    assert balance(world, debt) == 0
    assert not [one for one in await postings(world, payment.payment_id) if one.kind == "adjusted"]

    approved = await approve(world, proposed.adjustment_id)

    assert (approved.state, approved.proposed_by, approved.decided_by) == (APPROVED, "ann", "bob")
    posted = [one for one in await postings(world, payment.payment_id) if one.kind == "adjusted"]
    assert [(one.account, one.amount.minor_units) for one in posted] == [
        (debt, 400),
        ("losses", -400),
    ]
    assert {one.transaction_id for one in posted} == {approved.transaction_id}
    after = await world.get(payment.payment_id)
    assert after.state == payment.state
    request = events_pb2.ListPaymentEventsRequest(payment_id=payment.payment_id, page_size=200)
    trail = await world.events.ListPaymentEvents(request)
    [event] = [one for one in trail.events if one.kind == "payment.adjusted"]
    assert trail.chain_intact
    assert event.texts["reason"] == "what the bank has confirmed"
    assert approved.transaction_id == f"{payment.payment_id}:{event.sequence}"
    await world.settle_down()  # The new debt is collected meanwhile.
    await run(world)
    assert await open_kinds(world) == []
    await check_books(world)


async def test_an_expert_and_the_platform_have_corrections_of_their_own(world: World) -> None:
    expert = await world.expert()
    debt = f"expert_debt:{expert}"
    of_expert = await propose(world, (debt, 700), ("commission", -700), expert_id=expert)
    approved = await approve(world, of_expert.adjustment_id)
    assert balance(world, debt) == 700
    [(kind,)] = world.sql(
        "SELECT kind FROM expert_events WHERE expert_id = %s ORDER BY sequence DESC LIMIT 1", expert
    )
    assert kind == "expert.adjusted"
    assert approved.transaction_id.startswith(f"{expert}:")
    own = await propose(world, ("platform_fees", -55), ("account_deficits", 55))
    await approve(world, own.adjustment_id)
    assert balance(world, "platform_fees") == -55
    assert balance(world, "account_deficits") == 55
    await run(world)
    assert await open_kinds(world) == []
    await check_books(world)


async def test_a_part_of_the_opening_balance_is_moved_by_two_people(world: World) -> None:
    """It was kept for somebody who gave it up: it is a gain."""
    await run(world)
    had = balance(world, "opening_balance")
    own = await propose(world, ("opening_balance", 2_500), ("losses", -2_500))
    await approve(world, own.adjustment_id)
    await run(world)
    assert balance(world, "opening_balance") == had + 2_500
    assert balance(world, "losses") == -2_500
    assert balance(world, "stripe:platform") == -had
    assert await open_kinds(world) == []
    await check_books(world)
    expert = await world.expert()
    of_expert = propose(world, ("opening_balance", 5), ("losses", -5), expert_id=expert)
    assert (await refusal(of_expert)).reason == "INVALID_FIELD"


async def test_the_proposer_cannot_approve(world: World) -> None:
    proposed = await propose(world, ("losses", 5), ("fx", -5), caller="ann")
    refused = await refusal(approve(world, proposed.adjustment_id, "ann"))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "APPROVER_IS_PROPOSER")
    assert refused.facts["proposed_by"] == "ann"
    assert balance(world, "losses") == 0
    # Without authentication everybody is one caller.
    local = await propose(world, ("losses", 5), ("fx", -5), caller="local")
    refused = await refusal(approve(world, local.adjustment_id, "local"))
    assert refused.reason == "APPROVER_IS_PROPOSER"
    # The proposer may take the proposal back.
    assert (await reject(world, proposed.adjustment_id, "ann")).state == REJECTED


async def test_development_may_let_one_person_do_both(start_world: StartWorld) -> None:
    world = await start_world(adjustments_by_one_person=True)
    proposed = await propose(world, ("losses", 5), ("fx", -5), caller="local")
    assert (await approve(world, proposed.adjustment_id, "local")).state == APPROVED


@pytest.mark.parametrize(
    ("account", "owner"),
    [
        ("stripe:platform", ""),
        ("stripe:connected:{expert}", "expert"),
        ("expert_funds:{expert}", "expert"),
        ("escrow:{payment}", "payment"),
        ("client_payable:{payment}", "payment"),
        ("pending_refund:{payment}", "payment"),
        ("dispute_hold:{payment}", "payment"),
        ("commission", "payment"),
        ("processor_fee", "payment"),
        ("hold", "payment"),
        ("reserves", ""),
        ("platform_bank", ""),
        ("expert_debt:{expert}", ""),
        ("expert_debt:somebody", "expert"),
        ("losses ", ""),
    ],
)
async def test_what_others_vouch_for_is_not_adjusted(
    world: World, account: str, owner: str
) -> None:
    payment = await world.captured()
    account = account.format(expert=payment.expert_id, payment=payment.payment_id)
    owners = {
        "payment": {"payment_id": payment.payment_id},
        "expert": {"expert_id": payment.expert_id},
        "": {},
    }
    refused = await refusal(propose(world, (account, 5), ("losses", -5), **owners[owner]))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert "cannot be adjusted here" in refused.fields["lines[0].account"]


async def test_lines_must_balance_and_stay_within_the_limit(start_world: StartWorld) -> None:
    world = await start_world(adjustment_limit_minor_units=1_000)
    refused = await refusal(propose(world, ("losses", 5), ("fx", -4)))
    assert "must sum to zero in USD" in refused.fields["lines"]
    refused = await refusal(propose(world, ("losses", 0), ("fx", 0)))
    assert "must not be zero" in refused.fields["lines[0].amount.minor_units"]
    refused = await refusal(propose(world, ("losses", 5)))
    assert "2 to 20" in refused.fields["lines"]
    refused = await refusal(propose(world, ("losses", 600), ("fx", 401), ("losses", -1_001)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "ADJUSTMENT_TOO_LARGE")
    assert refused.facts == {"currency": "USD", "requested": "1001", "limit": "1000"}
    await propose(world, ("losses", 1_000), ("fx", -1_000))


async def test_nobody_takes_off_more_debt_than_there_is(world: World) -> None:
    expert = await world.expert()
    debt = f"expert_debt:{expert}"
    more = await propose(world, (debt, -500), ("losses", 500), expert_id=expert)
    refused = await refusal(approve(world, more.adjustment_id))
    assert (refused.reason, refused.facts["available"]) == ("AMOUNT_TOO_LARGE", "0")
    owed = await propose(world, (debt, 600), ("losses", -600), expert_id=expert)
    await approve(world, owed.adjustment_id)
    # A refusal leaves the proposal open.
    await approve(world, more.adjustment_id)
    assert balance(world, debt) == 100


async def test_an_expired_proposal_is_dead(start_world: StartWorld) -> None:
    world = await start_world(policy={"adjustment_life": 0.05})
    proposed = await propose(world, ("losses", 5), ("fx", -5))
    await asyncio.sleep(0.1)
    for decide in (approve, reject):
        refused = await refusal(decide(world, proposed.adjustment_id))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "ADJUSTMENT_EXPIRED")
    [found] = await listed(world, state=EXPIRED)
    assert (found.adjustment_id, found.state) == (proposed.adjustment_id, EXPIRED)
    assert await listed(world, state=PROPOSED) == []
    assert balance(world, "losses") == 0


async def test_a_repeated_key_gets_the_same_answer_and_another_key_none(world: World) -> None:
    key = new_key()
    request = proposal(("losses", 5), ("fx", -5))
    first = await world.operations.ProposeAdjustment(request, metadata=by("ann"))
    again = await world.operations.ProposeAdjustment(request, metadata=by("ann"))
    assert first == again
    assert len(await listed(world)) == 1
    adjustment_id = first.adjustment.adjustment_id
    approved = await approve(world, adjustment_id, key=key)
    assert await approve(world, adjustment_id, key=key) == approved
    refused = await refusal(approve(world, adjustment_id))
    assert (refused.reason, refused.facts["state"]) == ("WRONG_STATE", "APPROVED")
    refused = await refusal(reject(world, adjustment_id))
    assert refused.reason == "WRONG_STATE"
    assert balance(world, "losses") == 5
    refused = await refusal(approve(world, "adj_nothing"))
    assert (refused.code, refused.reason) == ("NOT_FOUND", "ADJUSTMENT_NOT_FOUND")


@pytest.mark.parametrize("owner", ["payment", "expert", "platform"])
async def test_of_many_decisions_at_once_one_counts(world: World, owner: str) -> None:
    payment = await world.captured()
    owners: dict[str, dict[str, str]] = {
        "payment": {"payment_id": payment.payment_id},
        "expert": {"expert_id": payment.expert_id},
        "platform": {},
    }
    expected = 0
    for _ in range(3):
        proposed = await propose(world, ("losses", 7), ("fx", -7), **owners[owner])
        decisions = [
            decide(world, proposed.adjustment_id, f"approver-{number}")
            for number in range(3)
            for decide in (approve, reject)
        ]
        outcomes = await asyncio.gather(*decisions, return_exceptions=True)
        decided = [one for one in outcomes if isinstance(one, Adjustment)]
        assert len(decided) == 1
        [found] = [
            one for one in await listed(world) if one.adjustment_id == proposed.adjustment_id
        ]
        assert (found.state, found.decided_by) == (decided[0].state, decided[0].decided_by)
        expected += 7 if decided[0].state == APPROVED else 0
        assert balance(world, "losses") == expected
    await run(world)
    assert await open_kinds(world) == []


async def test_an_approval_is_no_older_than_what_it_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refund that comes between the locks of the adjustment and of the payment comes first."""
    payment = await world.captured()
    proposed = await propose(world, ("losses", 7), ("fx", -7), payment_id=payment.payment_id)
    lock = AdjustmentWrites.lock_adjustment

    def lock_and_be_overtaken(tx: AdjustmentWrites, adjustment_id: str) -> Any:
        locked = lock(tx, adjustment_id)
        refund = world.refund(payment.payment_id, 100)
        run_in_phase(refund)
        return locked

    monkeypatch.setattr(AdjustmentWrites, "lock_adjustment", lock_and_be_overtaken)
    approved = await approve(world, proposed.adjustment_id)

    assert approved.state == APPROVED
    times = [
        time
        for (time,) in world.sql(
            "SELECT time FROM events WHERE payment_id = %s ORDER BY sequence", payment.payment_id
        )
    ]
    assert times == sorted(times)
    await check_books(world)


async def test_an_approval_that_dies_before_the_commit_has_posted_nothing(world: World) -> None:
    payment = await world.captured()
    proposed = await propose(world, ("losses", 7), ("fx", -7), payment_id=payment.payment_id)
    with failing_decision(world):
        refused = await refusal(approve(world, proposed.adjustment_id))
    assert refused.code == "UNAVAILABLE"
    assert balance(world, "losses") == 0
    assert (await world.get(payment.payment_id)).version == payment.version
    await approve(world, proposed.adjustment_id)
    assert balance(world, "losses") == 7
    await check_books(world)


@contextlib.contextmanager
def failing_decision(world: World) -> Iterator[None]:
    """Lets the database refuse the decision, which is written after the postings."""
    world.sql("ALTER TABLE adjustments ADD CONSTRAINT broken CHECK (state <> 'APPROVED') NOT VALID")
    try:
        yield
    finally:
        world.sql("ALTER TABLE adjustments DROP CONSTRAINT broken")


async def test_the_schema_refuses_a_decision_that_is_changed(world: World) -> None:
    proposed = await propose(world, ("losses", 7), ("fx", -7))
    await approve(world, proposed.adjustment_id)
    for change in ("state = 'REJECTED'", "lines = '[]'", "decided_by = 'eve'", "reason = 'other'"):
        with pytest.raises(Exception, match="an adjustment is not rewritten"):
            world.sql(f"UPDATE adjustments SET {change}")  # noqa: S608
    with pytest.raises(Exception, match="append-only"):
        world.sql("DELETE FROM adjustments")


async def test_reconciliation_finds_lines_that_nobody_approved(
    world: World, as_superuser: Callable[..., int]
) -> None:
    payment = await world.captured()
    proposed = await propose(world, ("losses", 7), ("fx", -7), payment_id=payment.payment_id)
    await approve(world, proposed.adjustment_id)
    await world.settle_down()
    as_superuser(world, "UPDATE adjustments SET state = 'REJECTED', sequence = 0")
    assert "invariant_adjustments_are_as_approved" in await violated(world)
    as_superuser(
        world,
        "UPDATE adjustments SET state = 'APPROVED', sequence = %s, lines = %s",
        int(world.sql("SELECT max(sequence) FROM postings WHERE kind = 'adjusted'")[0][0]),
        '[["losses", "USD", 8], ["fx", "USD", -8]]',
    )
    assert "invariant_adjustments_are_as_approved" in await violated(world)


async def violated(world: World) -> set[str]:
    report = await run(world)
    return {f"invariant_{one.name}" for one in report.invariants if one.violations}


async def test_erasing_a_user_keeps_the_books_and_not_the_words(world: World) -> None:
    payment = await world.captured()
    one = await propose(
        world, ("losses", 7), ("fx", -7), payment_id=payment.payment_id, reason="a canary"
    )
    request = operations_pb2.EraseUserRequest(
        user_id=payment.client_id, kind=operations_pb2.USER_KIND_CLIENT, reason="ticket 7"
    )
    refused = await refusal(world.operations.EraseUser(request))
    assert refused.reason == "USER_HAS_OPEN_BUSINESS"
    assert one.adjustment_id in refused.facts["open"]
    await approve(world, one.adjustment_id)
    await world.operations.EraseUser(request)
    [found] = await listed(world, payment_id=payment.payment_id)
    assert (found.reason, found.ticket, found.state) == ("[erased]", "FIN-7", APPROVED)
    await run(world)
    assert await open_kinds(world) == []
    await check_books(world)


async def indebted(world: World, amount: int) -> str:
    """An expert who owes this much."""
    expert = await world.expert()
    lines = ((f"expert_debt:{expert}", amount), ("losses", -amount))
    proposed = await propose(world, *lines, expert_id=expert)
    await approve(world, proposed.adjustment_id)
    return expert


def write_off(expert: str, amount: int = 0, **fields: Any) -> Any:
    given: dict[str, Any] = {"amount": money_pb2.Money(minor_units=amount)} if amount else {}
    return operations_pb2.WriteOffExpertDebtRequest(
        expert_id=expert,
        currency_code="USD",
        reason="will not pay",
        idempotency_key=new_key(),
        **given,
        **fields,
    )


async def test_a_large_write_off_needs_a_second_person(world: World) -> None:
    expert = await indebted(world, 80_000)
    debt = f"expert_debt:{expert}"
    preview = await world.operations.WriteOffExpertDebt(write_off(expert, validate_only=True))
    assert (preview.needs_approval, preview.adjustment_id) == (True, "")
    answer = await world.operations.WriteOffExpertDebt(write_off(expert), metadata=by("ann"))
    assert answer.needs_approval
    assert (answer.written_off_amount.minor_units, answer.debt.minor_units) == (0, 80_000)
    assert balance(world, debt) == 80_000
    refused = await refusal(approve(world, answer.adjustment_id, "ann"))
    assert refused.reason == "APPROVER_IS_PROPOSER"
    await approve(world, answer.adjustment_id, "bob")
    assert balance(world, debt) == 0
    assert balance(world, "losses") == 0
    [(kind, body)] = world.sql(
        "SELECT kind, body::jsonb FROM expert_events WHERE expert_id = %s "
        "ORDER BY sequence DESC LIMIT 1",
        expert,
    )
    assert (kind, body["amount"], body["proposed_by"]) == (
        "expert.debt_written_off",
        80_000,
        "ann",
    )
    await run(world)
    assert await open_kinds(world) == []


async def test_a_large_debt_is_not_written_off_in_small_parts(world: World) -> None:
    expert = await indebted(world, 90_000)
    first = await world.operations.WriteOffExpertDebt(write_off(expert, 30_000))
    assert (first.needs_approval, first.debt.minor_units) == (False, 60_000)
    second = await world.operations.WriteOffExpertDebt(write_off(expert, 30_000))
    assert second.needs_approval
    third = await world.operations.WriteOffExpertDebt(write_off(expert, 20_000))
    assert (third.needs_approval, third.debt.minor_units) == (False, 40_000)
    # What two people decide does not use up what one may decide alone.
    await approve(world, second.adjustment_id)
    fourth = await world.operations.WriteOffExpertDebt(write_off(expert, 1))
    assert fourth.needs_approval
    assert balance(world, f"expert_debt:{expert}") == 10_000


async def test_a_debt_of_a_payment_that_comes_back_is_collected_again(world: World) -> None:
    """Two people undo a write-off: what the payment left is taken back from its transfer."""
    payment = await world.captured()
    debt = f"expert_debt:{payment.expert_id}"
    owed = await propose(world, (debt, 400), ("losses", -400), payment_id=payment.payment_id)
    assert world.service is not None
    await world.settle_down()
    await world.service.stop()
    await world.service.start(loops=False)
    await world.channel.channel_ready()
    await approve(world, owed.adjustment_id)
    await world.operations.WriteOffExpertDebt(write_off(payment.expert_id))
    world.sql("DELETE FROM debt_checks")
    again = await propose(world, (debt, 400), ("losses", -400), expert_id=payment.expert_id)
    await approve(world, again.adjustment_id)
    assert world.sql("SELECT expert_id FROM debt_checks") == [(payment.expert_id,)]
