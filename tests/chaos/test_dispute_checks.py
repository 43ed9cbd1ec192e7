"""The checks of what is contested catch what they are for: one thing is broken at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from chaos.checks import CHECKS, disputes, violations
from chaos.evidence import Evidence, Row
from chaos.history import Entry, SeenDispute
from marketplace.payments.v1 import disputes_pb2
from tests.chaos.evidence import (
    INTENT,
    NOW,
    PAYMENT,
    _add,
    _drop,
    _effect,
    _operation,
    _posting,
    _put,
    sound,
    tell,
)

DISPUTE, INQUIRY, WARNING = "dp_1", "dp_2", "issfr_1"
_FACTS = {"dispute_id": DISPUTE, "stage": "CHARGEBACK", "status": "needs_response"}
_LOST = {
    **_FACTS,
    "amount": 700,
    "from_payable": 0,
    "from_escrow": 0,
    "commission": 67,
    "expert_amount": 600,
    "beyond": 33,
}


def contested() -> Evidence:
    """The bank keeps 7.00: the 6.67 that are left of the sound payment, and 0.33 that are not.

    Our evidence did not help. There was a warning, which was released, and there is an inquiry.
    """
    world = sound()
    [payment] = world.payments
    amounts = {
        "held": 0,
        "captured": 1000,
        "refunded_after_capture": 333,
        "net_commission": 67,
        "lost": 0,
    }
    more = {"charged": 1000, "refunded_from_escrow": 0, "client_payable": 0}
    tell(world, "fraud_warning", "CAPTURED", {"warning_id": WARNING}, **amounts, **more)
    tell(world, "fraud_warning_dismissed", "CAPTURED", {"warning_id": WARNING})
    tell(world, "dispute_opened", "CAPTURED", _FACTS)
    tell(world, "dispute_funds_withdrawn", "CAPTURED", {**_FACTS, "amount": 700})
    withdrawn = len(world.events)
    tell(world, "dispute_answer_started", "CAPTURED", {"dispute_id": DISPUTE})
    tell(world, "dispute_lost", "REFUNDING", _LOST, lost=667, net_commission=0)
    lost = len(world.events)
    tell(world, "transfer_reversed", "REFUNDED", {"amount": 600})
    asked = {**_FACTS, "dispute_id": INQUIRY, "stage": "INQUIRY"}
    tell(world, "dispute_opened", "REFUNDED", asked)
    payment.update(lost=667, lost_held=0, net_commission=0, frozen="INQUIRY", frozen_by=INQUIRY)
    world.postings += [
        _posting(withdrawn, f"dispute_hold:{PAYMENT}", 700),
        _posting(withdrawn, "stripe:platform", -700, "txn_d"),
        _posting(withdrawn, "dispute_fee", 15),
        _posting(withdrawn, "stripe:platform", -15, "txn_d"),
        _posting(lost, "commission", 67),
        _posting(lost, "expert_debt:e", 600),
        _posting(lost, "losses", 33),
        _posting(lost, f"dispute_hold:{PAYMENT}", -700),
        _posting(lost + 1, "expert_funds:e", 600),
        _posting(lost + 1, "expert_debt:e", -600),
    ]
    world.lines.append(("stripe:platform", {"id": "txn_d", "currency": "usd", "net": -715}))
    world.operations.append(
        {
            **_operation("op_8", "submit_evidence"),
            "payment_id": None,
            "dispute_id": DISPUTE,
            "payload": {"submit": True, "evidence": {}},
        }
    )
    world.effects.append(_effect(8, "evidence_submitted", DISPUTE, 700, "op_8"))
    request = disputes_pb2.SubmitEvidenceRequest(dispute_id=DISPUTE, submit=True)
    request.evidence.uncategorized_text = "done"
    said = request.SerializeToString()
    world.history.add(Entry(0, "SubmitEvidence", "key-8", said, 1, 2, "ok", "OK"))
    world.idempotency_keys.append(
        {"key": "key-8", "answer": b"x", "operation_id": "op_8", "payment_id": PAYMENT}
    )
    world.disputes = [
        _record(DISPUTE, "lost", "LOST", withdrawn=700, lost=700, fee=15, submission_count=1),
        _record(INQUIRY, "warning_needs_response", "OPEN", stage="INQUIRY"),
    ]
    world.disputes[0]["has_evidence"] = True
    line = {"id": "txn_d", "amount": -700, "fee": 15, "currency": "usd"}
    world.stripe_disputes = [
        _at_stripe(DISPUTE, "lost", [line], {"uncategorized_text": "done"}),
        _at_stripe(INQUIRY, "warning_needs_response", [], {}),
    ]
    world.fraud_warnings = [{"id": WARNING, "payment_intent": INTENT, "actionable": False}]
    world.history.add(_told(1, "LOST", (700, 0, 700, 1)))
    return world


def _record(dispute_id: str, status: str, outcome: str, **changes: Any) -> Row:
    row = {
        "dispute_id": dispute_id,
        "payment_id": PAYMENT,
        "charge_id": "ch_1",
        "stage": "CHARGEBACK",
        "status": status,
        "outcome": outcome,
        "amount": 700,
        "operation_id": "",
        "has_evidence": False,
    }
    names = ("withdrawn", "reinstated", "lost", "fee", "submission_count")
    return {**row, **dict.fromkeys(names, 0), **changes}


def _at_stripe(dispute_id: str, status: str, lines: list[Row], evidence: Row) -> Row:
    return {
        "id": dispute_id,
        "payment_intent": INTENT,
        "charge": "ch_1",
        "status": status,
        "amount": 700,
        "currency": "usd",
        "balance_transactions": lines,
        "evidence": {"receipt": None, **evidence},
        "evidence_details": {
            "has_evidence": bool(evidence),
            "submission_count": int(bool(evidence)),
        },
    }


def _told(at: float, outcome: str, counts: tuple[int, int, int, int]) -> Entry:
    seen = (SeenDispute(DISPUTE, outcome, counts),)
    return Entry(0, "GetDispute", "", b"", at, at + 0.5, "ok", "OK", disputes=seen)


def _first(table: str, **changes: Any) -> Callable[[Evidence], None]:
    def spoil(world: Evidence) -> None:
        getattr(world, table)[0].update(changes)

    return spoil


def _loss(**changes: int) -> Callable[[Evidence], None]:
    """Divided otherwise, in facts, amounts and chain alike."""

    def spoil(world: Evidence) -> None:
        event = next(event for event in world.events if event["kind"] == "payment.dispute_lost")
        body = json.loads(event["body"])
        body["facts"].update(changes)
        event["body"] = json.dumps(body)

    return spoil


def _begins(kind: str, to: str, *, during: str) -> Callable[[Evidence], None]:
    """Something is begun right after the event that freezes."""

    def spoil(world: Evidence) -> None:
        at = next(n for n, event in enumerate(world.events) if event["kind"] == f"payment.{during}")
        body = json.loads(world.events[at]["body"])
        event = {**world.events[at], "kind": f"payment.{kind}", "body": json.dumps(body)}
        world.events.insert(at + 1, event)

    return spoil


def _line_of_the_loss(world: Evidence) -> None:
    """The platform bears what the expert should."""
    for row in world.postings[-6:-2]:
        row["minor_units"] += {"expert_debt:e": -600, "losses": 600}.get(row["account"], 0)


SPOILED: list[tuple[str, Callable[[Evidence], None]]] = [
    ("disputes_are_as_at_stripe", _drop("disputes")),
    ("disputes_are_as_at_stripe", _drop("stripe_disputes")),
    ("disputes_are_as_at_stripe", _first("disputes", lost=699)),
    ("disputes_are_as_at_stripe", _first("disputes", withdrawn=699)),
    ("disputes_are_as_at_stripe", _first("disputes", fee=0)),
    ("disputes_are_as_at_stripe", _first("disputes", reinstated=1)),
    ("disputes_are_as_at_stripe", _first("disputes", operation_id="op_8")),
    ("disputes_are_as_at_stripe", _first("disputes", submission_count=2)),
    ("disputes_are_as_at_stripe", _put("disputes", stage="CHARGEBACK")),
    ("disputes_are_as_at_stripe", _put("stripe_disputes", status="warning_closed")),
    ("losses_are_divided_right", _loss(commission=66, expert_amount=601)),
    ("losses_are_divided_right", _loss(beyond=0)),
    ("losses_are_divided_right", _loss(from_escrow=1)),
    ("losses_are_divided_right", _line_of_the_loss),
    ("losses_are_divided_right", _first("disputes", lost=0)),
    ("losses_are_divided_right", _put("payments", lost=666)),
    ("losses_are_divided_right", _put("payments", lost_held=1)),
    ("contested_money_is_on_the_books", _drop("postings", -3)),
    ("contested_money_is_on_the_books", _add("postings", _posting(9, "dispute_fee", 1))),
    ("what_is_contested_is_frozen", _put("payments", frozen="NONE", frozen_by="")),
    ("what_is_contested_is_frozen", _put("payments", frozen_by=DISPUTE)),
    ("what_is_contested_is_frozen", _put("stripe_disputes", status="warning_closed")),
    ("nothing_begins_while_frozen", _begins("capture_started", "", during="fraud_warning")),
    ("nothing_begins_while_frozen", _begins("capture_started", "", during="dispute_opened")),
    ("nothing_begins_while_frozen", _begins("refund_started", "", during="dispute_opened")),
    ("evidence_is_given_once", _put("effects", idempotency_key=None)),
    ("evidence_is_given_once", _put("effects", object=INQUIRY)),
    ("evidence_is_given_once", _put("effects", kind="evidence_staged")),
    ("evidence_is_given_once", _drop("effects")),
    ("evidence_is_given_once", _first("stripe_disputes", evidence={"receipt": "another"})),
    ("at_most_one_effect", lambda world: world.effects.append(world.effects[-1])),
    ("no_effect_lost", _drop("effects")),
    (
        "told_of_disputes_is_kept",
        lambda world: world.history.add(_told(2, "OPEN", (700, 0, 700, 1))),
    ),
    ("told_of_disputes_is_kept", lambda world: world.history.add(_told(2, "LOST", (700, 0, 0, 1)))),
    ("told_of_disputes_is_kept", _first("disputes", outcome="OPEN")),
    ("told_of_disputes_is_kept", _first("disputes", submission_count=0)),
    ("amounts_add_up", _put("payments", lost=668)),
    ("amounts_add_up", _put("payments", net_commission=1)),
    ("nothing_stays_between_accounts", _loss(amount=690)),
    ("debts_have_a_reason", _loss(expert_amount=601)),
    ("states_move_along_edges", lambda world: tell(world, "dispute_closed", "CAPTURED", _FACTS)),
    ("states_move_along_edges", lambda world: tell(world, "dispute_lost", "CAPTURED", _FACTS)),
]


def test_a_sound_dispute_has_no_violations() -> None:
    assert [str(found) for found in violations(contested())] == []


@pytest.mark.parametrize(
    ("check", "spoil"), SPOILED, ids=lambda given: getattr(given, "__name__", given)
)
def test_a_check_catches_its_violation(check: str, spoil: Callable[[Evidence], None]) -> None:
    world = contested()
    spoil(world)
    assert check in {found.check for found in violations(world)}


def test_every_check_has_a_violation_of_its_own() -> None:
    own = {name for name in CHECKS if hasattr(disputes, name)} | {"told_of_disputes_is_kept"}
    assert own <= {check for check, _ in SPOILED}


def test_an_acceptance_that_came_to_what_the_bank_decided_had_an_effect() -> None:
    world = contested()
    accepted = {**world.operations[-1], "operation_id": "op_9", "kind": "accept_dispute"}
    world.operations.append({**accepted, "payload": {}})
    assert "no_effect_lost" in {found.check for found in violations(world)}
    world.effects.append({**_effect(9, "dispute_lost", DISPUTE, 700, ""), "idempotency_key": None})
    assert violations(world) == []


def test_an_open_chargeback_is_held_and_frozen() -> None:
    world = sound()
    [payment] = world.payments
    amounts = {"held": 0, "captured": 1000, "refunded_after_capture": 333}
    tell(world, "dispute_opened", "CAPTURED", _FACTS, **amounts)
    payment.update(frozen="CHARGEBACK", frozen_by=DISPUTE)
    world.disputes = [_record(DISPUTE, "needs_response", "OPEN", withdrawn=700)]
    line = {"id": "txn_d", "amount": -700, "fee": 0, "currency": "usd"}
    world.stripe_disputes = [_at_stripe(DISPUTE, "needs_response", [line], {})]
    found = {violation.check for violation in violations(world)}
    assert "contested_money_is_on_the_books" in found
    world.postings.append(_posting(8, f"dispute_hold:{PAYMENT}", 700))
    world.postings.append(_posting(8, "stripe:platform", -700, "txn_d"))
    world.lines.append(("stripe:platform", {"id": "txn_d", "currency": "usd", "net": -700}))
    assert violations(world) == []


@pytest.mark.parametrize(
    "changes",
    [{}, {"state": "SUCCEEDED"}, {"last_error": "http_500"}, {"purpose": "REQUESTED"}],
    ids=["contested", "done", "another reason", "a call of its own"],
)
def test_a_remainder_is_kept_back_only_for_a_dispute(changes: Row) -> None:
    """Anything else that is not returned after a final capture is a discrepancy."""
    world = contested()
    refused = {
        **_operation("op_9", "refund"),
        "state": "REFUSED",
        "last_error": "charge_disputed",
        "purpose": "REMAINDER",
    }
    world.operations.append({**refused, **changes})
    discrepancy = {"kind": "remainder_not_returned", "detail": "op_9: charge_disputed", "time": NOW}
    world.discrepancies = [{"payment_id": PAYMENT, **discrepancy}]
    found = [one for one in violations(world) if one.check == "no_discrepancies"]
    assert bool(found) is bool(changes)
