"""The checks of what waits for money: refunds without funds, and debts that could be collected."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from chaos.checks import violations
from chaos.checks.disputes import _moved
from chaos.evidence import Evidence, Row
from tests.chaos.evidence import (
    INTENT,
    PAYMENT,
    _operation,
    _posting,
    _put,
    on_the_platform,
    sound,
    tell,
)

_WAITS = {
    "state": "REFUNDING",
    "waiting_for": "processor",
    "waiting_reason": "REFUND_PENDING_FUNDS",
    "pending_refund": 400,
}


def _refund(**changes: Any) -> Row:
    refund = {"id": "re_2", "amount": 400, "status": "pending", "payment_intent": INTENT}
    return {**refund, "balance_transaction": None, **changes}


def waited() -> Evidence:
    """A refund of 4.00 waited for the platform's balance, as the payment said; it is paid now."""
    world = sound()
    world.waiting = [(_refund(), {**world.payments[0], **_WAITS})]
    world.refunds = [_refund(status="succeeded", balance_transaction="txn_9")]
    world.discrepancies = [
        {
            "payment_id": PAYMENT,
            "kind": "refund_waits_for_funds",
            "detail": "op_3",
            "resolve_time": world.events[-1]["time"],
        }
    ]
    return world


def _say(**changes: Any) -> Callable[[Evidence], None]:
    """Changes what the payment said while its refund waited."""

    def spoil(world: Evidence) -> None:
        [(refund, payment)] = world.waiting
        assert payment is not None
        world.waiting = [(refund, {**payment, **changes})]

    return spoil


def _waiting(refund: Row | None, payment: Row | None) -> Callable[[Evidence], None]:
    def spoil(world: Evidence) -> None:
        world.waiting.append((refund, payment))

    return spoil


def test_a_refund_that_waited_and_said_so_has_no_violations() -> None:
    assert [str(found) for found in violations(waited())] == []


@pytest.mark.parametrize(
    ("check", "spoil"),
    [
        ("what_waits_for_funds_says_so", _say(waiting_reason="")),
        ("what_waits_for_funds_says_so", _say(state="CAPTURED")),
        ("what_waits_for_funds_says_so", _say(waiting_for="operator")),
        ("what_waits_for_funds_says_so", _say(pending_refund=399)),
        ("what_waits_for_funds_says_so", _waiting(_refund(), None)),
        ("what_waits_for_funds_says_so", _waiting(None, {"payment_id": PAYMENT})),
        ("accepted_refunds_are_paid", _put("refunds", status="pending")),
        ("accepted_refunds_are_paid", _put("payments", pending_refund=400)),
        ("no_discrepancies", _put("discrepancies", resolve_time=None)),
    ],
)
def test_a_refund_that_waits_in_silence_or_for_ever_is_found(
    check: str, spoil: Callable[[Evidence], None]
) -> None:
    world = waited()
    spoil(world)
    assert check in {found.check for found in violations(world)}


def not_paid() -> Evidence:
    """A refund of 3.33 waited until the charge was disputed, and the client is paid otherwise."""
    world = sound()
    facts = {"amount": 333}
    tell(world, "pending_refund_failed", "CAPTURED", facts)
    tell(world, "client_payable_settled", "CAPTURED", facts)
    [refund] = world.movements
    world.movements.append({**refund, "movement_id": "re_1:failed", "kind": "refund_failure"})
    world.operations[-1]["state"] = "REFUSED"
    world.refunds = [_refund(id="re_1", amount=333, status="failed")]
    detail = {"kind": "refund_failed", "detail": "re_1 of 333 not paid", "resolve_time": None}
    world.discrepancies = [{"payment_id": PAYMENT, **detail}]
    return world


def test_a_refund_that_is_settled_outside_of_stripe_has_no_violations() -> None:
    assert [str(found) for found in violations(not_paid())] == []


@pytest.mark.parametrize(
    "kind", ["payment.pending_refund_failed", "payment.client_payable_settled"]
)
def test_a_refund_that_nobody_pays_is_found(kind: str) -> None:
    world = not_paid()
    for event in world.events:
        if event["kind"] == kind:
            event["body"] = json.dumps({**json.loads(event["body"]), "facts": {"amount": 332}})
    assert "bounces_are_paid_again" in {found.check for found in violations(world)}


def owing(available: int, left: int = 900) -> Evidence:
    """An expert owes 3.00; so much of the transfer is left, and so much is in the account."""
    world = on_the_platform()
    transfer = {"id": "tr_1", "destination": "acct_1", "currency": "usd", "amount": 900}
    world.transfers = [{**transfer, "amount_reversed": 900 - left, "created": 0}]
    world.available = {("acct_1", "usd"): available}
    return world


@pytest.mark.parametrize(
    ("available", "left", "found"),
    [(0, 900, False), (99, 900, False), (100, 900, True), (900, 50, False), (900, 900, True)],
)
def test_a_debt_that_could_be_paid_is_found(available: int, left: int, found: bool) -> None:
    checks = {one.check for one in violations(owing(available, left))}
    assert ("no_debt_is_left_that_can_be_paid" in checks) is found


def test_a_debt_that_was_kept_back_otherwise_is_none() -> None:
    world = owing(900)
    world.postings.append({**_posting(6, "expert_debt:e", -300), "payment_id": "pay_2"})
    world.operations.append(_operation("op_5", "transfer"))
    checks = {one.check for one in violations(world)}
    assert "no_debt_is_left_that_can_be_paid" not in checks


def _lines(*amounts: int) -> Row:
    lines = [{"amount": amount, "currency": "usd", "fee": 0} for amount in amounts]
    return {"currency": "inr", "amount": 1_000_000, "balance_transactions": lines}


@pytest.mark.parametrize(
    ("amounts", "moved"),
    [
        ((-12_000,), (1_000_000, 0)),
        ((-12_000, -7), (1_000_000, 0)),
        ((-12_000, 6), (1_000_000, 500)),
        ((-12_000, 6, -6), (1_000_500, 500)),
        ((-12_000, -7, 12_007), (1_000_000, 1_000_000)),
    ],
)
def test_further_lines_of_a_converted_dispute_have_its_rate(
    amounts: tuple[int, ...], moved: tuple[int, int]
) -> None:
    assert _moved(_lines(*amounts))[:2] == moved
