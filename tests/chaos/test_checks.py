"""Every check catches what it is for: a checker that cannot fail is a defect.

One small sound world, in which no check finds anything; then one thing is broken at a time.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from chaos.checks import CHECKS, accounts, disputes, funds, violations
from chaos.checks.arithmetic import commission_of
from chaos.evidence import Evidence
from chaos.history import Entry, Seen
from marketplace.payments.v1 import money_pb2, operations_pb2
from tests.chaos.evidence import (
    INTENT,
    PAYMENT,
    _add,
    _drop,
    _effect,
    _entry,
    _operation,
    _posting,
    _put,
    _told,
    hashed,
    on_the_platform,
    sound,
)


def _twice(kind: str) -> Callable[[Evidence], None]:
    def spoil(world: Evidence) -> None:
        world.effects.append(next(e for e in world.effects if e["kind"] == kind))

    return spoil


def _say(entry: Entry) -> Callable[[Evidence], None]:
    def spoil(world: Evidence) -> None:
        world.history.add(entry)

    return spoil


def _refused(code: str, reason: str = "") -> Entry:
    return Entry(0, "GetPayment", "", b"", 1, 2, "info", code, reason)


def _shown(version: int, amounts: tuple[int, int, int]) -> Entry:
    seen = Seen(PAYMENT, version, "REFUNDING", amounts)
    return Entry(0, "GetPayment", "", b"", 0, 0.5, "ok", "OK", seen=seen)


def _set(name: str, value: Any) -> Callable[[Evidence], None]:
    def spoil(world: Evidence) -> None:
        setattr(world, name, value)

    return spoil


def _another_start(world: Evidence) -> None:
    """An edge that does not exist, in an unbroken chain."""
    body = json.loads(world.events[-1]["body"])
    world.events[-1]["body"] = json.dumps({**body, "to": "PENDING"})


SPOILED: list[tuple[str, Callable[[Evidence], None]]] = [
    ("at_most_one_effect", _twice("captured")),
    ("at_most_one_effect", _twice("refunded")),
    ("at_most_one_effect", _twice("intent_created")),
    ("one_end_per_payment", _add("effects", _effect(9, "canceled", INTENT, 1000, "op_9"))),
    ("no_phantom_effect", _add("effects", _effect(9, "refunded", "re_9", 1, "op_9"))),
    ("no_phantom_effect", _put("effects", payment_intent="pi_9")),
    ("no_phantom_effect", _put("payments", charged=999)),
    ("no_effect_lost", _drop("effects", 2)),
    ("no_effect_lost", _drop("effects", 3)),
    ("no_effect_lost", _put("operations", state="REFUSED")),
    ("states_agree_with_stripe", _put("intents", status="requires_capture")),
    ("postings_sum_to_zero", _put("postings", minor_units=-99)),
    (
        "books_equal_stripe",
        _add("lines", ("stripe:platform", {**_posting(1, "", 0), "id": "txn_2", "net": 5})),
    ),
    ("books_equal_stripe", _drop("lines")),
    ("nothing_stays_between_accounts", _add("postings", _posting(7, "expert_debt:e", -3))),
    ("nothing_stays_between_accounts", _put("payments", held=10, captured=990)),
    ("nothing_stays_between_accounts", _drop("postings", 2)),
    ("amounts_add_up", _put("payments", refunded_after_capture=1001)),
    ("amounts_add_up", _put("payments", commission=99, expert_amount=901)),
    ("amounts_add_up", _put("payments", net_commission=66)),
    ("amounts_add_up", _put("payments", refunded_from_escrow=1)),
    ("amounts_add_up", _put("payments", charged=0)),
    ("held_money_is_paid_once", _put("payments", charge_model="SEPARATE")),
    ("debts_have_a_reason", _put("events", **_told("client_refunded", expert_amount=300))),
    ("debts_have_a_reason", _put("events", **_told("expert_debt_recorded", amount=300))),
    ("debts_are_what_is_left", _put("events", **_told("client_refunded", expert_amount=300))),
    ("due_is_taken_back_once", _put("events", **_told("transfer_reversed", amount=1))),
    ("due_is_taken_back_once", _put("events", **_told("debt_collected", amount=1))),
    ("bounces_are_paid_again", _put("events", **_told("refund_failed", amount=333))),
    ("states_move_along_edges", _another_start),
    ("states_move_along_edges", _drop("events", 3)),
    ("states_move_along_edges", _put("payments", version=8)),
    ("feed_has_every_version_once", _drop("feed", 3)),
    ("feed_has_every_version_once", _put("feed", position=1)),
    ("feed_has_every_version_once", lambda world: world.feed.append(dict(world.feed[0]))),
    ("feed_has_every_version_once", _put("feed", payment_id="pay_9")),
    ("chain_is_intact", _put("events", kind="other")),
    ("chain_is_intact", _put("payments", head_hash=b"")),
    ("acknowledged_is_kept", _say(_shown(6, (0, 1000, 0)))),
    ("acknowledged_is_kept", _say(_shown(8, (0, 1000, 333)))),
    ("acknowledged_is_kept", _drop("events")),
    ("no_answer_goes_back", _say(_entry("GetPayment", "", 2, started=9))),
    ("same_key_same_bytes", _say(_entry("CapturePayment", "key", 4, started=9, body=b"other"))),
    ("every_key_is_answered", _set("unanswered", ["key"])),
    ("every_key_is_answered", _put("idempotency_keys", answer=None)),
    ("only_declared_errors", _say(_refused("UNKNOWN"))),
    ("only_declared_errors", _say(_refused("INTERNAL"))),
    ("only_declared_errors", _say(_refused("UNAVAILABLE", "UNEXPECTED"))),
    ("nothing_was_wrong_on_the_way", _set("wrong", ["a forged webhook"])),
    ("nothing_was_wrong_on_the_way", _set("ended", ["service-1"])),
    ("everything_is_settled", _set("converged", False)),
    ("everything_is_settled", _put("operations", state="UNKNOWN")),
    ("everything_is_settled", _put("operations", state="PARKED")),
    ("everything_is_settled", _put("webhook_events", state="WAITING")),
    (
        "no_discrepancies",
        _set("discrepancies", [{"payment_id": PAYMENT, "kind": "k", "detail": "d"}]),
    ),
    ("no_webhook_lost", _drop("webhook_events")),
    ("no_webhook_lost", _drop("deliveries")),
    ("no_secret_in_sight", _set("leaks", ["a line"])),
    ("every_fault_struck", _set("injected", Counter({}))),
]


def test_a_sound_world_has_no_violations() -> None:
    world = sound()
    assert [str(found) for found in violations(world)] == []


def test_a_sound_world_on_the_platform_has_no_violations() -> None:
    assert [str(found) for found in violations(on_the_platform())] == []


@pytest.mark.parametrize(
    "spoil",
    [
        _put("effects", amount=901),
        _put("payments", refunded_from_escrow=1),
        _put("payments", held=101),
        _put("postings", account="expert_debt:e", minor_units=-1),
        lambda world: world.effects.append(_effect(5, "reversed", "trr_1", 5, "op_5")),
        lambda world: world.effects.append(_effect(5, "refunded", "re_9", 5, "op_5")),
    ],
)
def test_held_money_that_is_paid_twice_is_found(spoil: Callable[[Evidence], None]) -> None:
    world = on_the_platform()
    spoil(world)
    assert "held_money_is_paid_once" in {found.check for found in violations(world)}


@pytest.mark.parametrize(
    ("check", "spoil"), SPOILED, ids=lambda given: getattr(given, "__name__", given)
)
def test_a_check_catches_its_violation(check: str, spoil: Callable[[Evidence], None]) -> None:
    world = sound()
    spoil(world)
    assert check in {found.check for found in violations(world)}


@pytest.mark.parametrize(("owed", "found"), [(300, False), (301, True)])
def test_debt_offset_of_a_refunded_capture_becomes_debt_again(owed: int, found: bool) -> None:
    """It never was in a transfer, so nothing of it could be reversed."""
    world = sound()
    world.events.append({**world.events[-1], **_told("captured", debt_offset=300)})
    world.events.append({**world.events[-1], **_told("client_refunded", expert_amount=owed)})
    world.events.append({**world.events[-1], **_told("expert_debt_recorded", amount=owed)})
    checks = [one for one in violations(world) if "refused no reversal" in str(one)]
    assert bool(checks) is found


@pytest.mark.parametrize(("owed", "found"), [(90, False), (91, True)])
def test_less_than_a_unit_of_what_was_converted_is_owed(owed: int, found: bool) -> None:
    """Of 10.00 the transfer has 11 units of another currency: Stripe reverses no part of one."""
    world = on_the_platform()
    del world.operations[-1], world.events[-2:]  # The reversal that Stripe refused, and why.
    world.transfers = [{"id": "tr_1", "currency": "inr", "amount": 11}]
    world.events.append({**world.events[-1], **_told("client_refunded", expert_amount=owed)})
    world.events.append({**world.events[-1], **_told("expert_debt_recorded", amount=owed)})
    assert bool(list(CHECKS["debts_have_a_reason"](world))) is found


def _write_off(key: str, part: int) -> Entry:
    amount = money_pb2.Money(minor_units=part, currency_code="USD")
    body = operations_pb2.WriteOffExpertDebtResponse(expert_id="e", written_off_amount=amount)
    return Entry(0, "WriteOffExpertDebt", key, b"", 1, 2, "ok", "OK", body=body.SerializeToString())


def in_debt() -> Evidence:
    """Of the 3.00 that came due and were not taken back, an operator wrote 1.00 off."""
    world = on_the_platform()
    of_the_expert = {"payment_id": None, "expert_id": "e", "kind": "debt_written_off"}
    world.postings.append({**_posting(3, "losses", 100), **of_the_expert})
    world.postings.append({**_posting(3, "expert_debt:e", -100), **of_the_expert})
    world.history.add(_write_off("key-9", 100))
    world.history.add(_write_off("key-9", 100))
    return world


def test_a_sound_debt_has_no_violations() -> None:
    assert [str(found) for found in violations(in_debt())] == []


@pytest.mark.parametrize(
    "spoil",
    [
        _say(_write_off("key-10", 100)),
        lambda world: world.history.entries.clear(),
        lambda world: world.postings.extend(world.postings[-2:]),
        _put("postings", kind=""),
        _put("postings", minor_units=-99),
        _drop("postings"),
        lambda world: world.events[-2].update(_told("client_refunded", expert_amount=301)),
        lambda world: world.events[-1].update(_told("captured", debt_offset=1)),
    ],
)
def test_a_debt_that_is_written_off_or_kept_back_twice_is_found(
    spoil: Callable[[Evidence], None],
) -> None:
    world = in_debt()
    spoil(world)
    assert "debts_are_what_is_left" in {found.check for found in violations(world)}


def test_a_write_off_is_the_platforms_loss() -> None:
    world = in_debt()
    world.postings[-2]["account"] = "commission"
    found = {violation.check for violation in violations(world)}
    assert "nothing_stays_between_accounts" in found


def bounced() -> Evidence:
    """The 3.33 came back from the client's bank, and an operator sent them once more."""
    world = sound()
    steps = [("refund_failed", "CAPTURED"), ("repayment_due", "REFUNDING")]
    for kind, to in [*steps, ("client_repaid", "CAPTURED")]:
        last = world.events[-1]
        body = {**json.loads(last["body"]), "facts": {"amount": 333}, "to": to}
        body["from"] = json.loads(last["body"])["to"]
        number = len(world.events) + 1
        event = hashed(number, f"payment.{kind}", json.dumps(body), last["hash"])
        world.events.append(event)
        world.feed.append({"position": 3 * number, "payment_id": PAYMENT, "sequence": number})
        world.payments[0].update(version=number, head_hash=event["hash"])
    again = {**_operation("op_9", "refund"), "purpose": "REPAYMENT", "minor_units": 333}
    world.operations.append(again)
    [refund] = world.movements
    world.movements += [
        {**refund, "movement_id": "re_1:failed", "kind": "refund_failure"},
        {**refund, "movement_id": "re_2", "operation_id": "op_9"},
    ]
    world.effects.append({**_effect(8, "refund_failed", "re_1", 333, ""), "idempotency_key": None})
    world.effects.append(_effect(9, "refunded", "re_2", 333, "op_9"))
    world.refunds = [
        {"id": "re_1", "amount": 333, "status": "failed", "balance_transaction": "txn_1"},
        {"id": "re_2", "amount": 333, "status": "succeeded"},
    ]
    discrepancy = {"kind": "refund_failed", "detail": "re_1 of 333 bounced"}
    world.discrepancies = [{"payment_id": PAYMENT, **discrepancy}]
    return world


def _first_of(table: str, **changes: Any) -> Callable[[Evidence], None]:
    def spoil(world: Evidence) -> None:
        getattr(world, table)[0].update(changes)

    return spoil


def test_a_sound_bounce_has_no_violations() -> None:
    assert [str(found) for found in violations(bounced())] == []


@pytest.mark.parametrize(
    ("check", "spoil"),
    [
        ("bounces_are_paid_again", _drop("movements", 1)),
        ("bounces_are_paid_again", _first_of("refunds", amount=332)),
        ("bounces_are_paid_again", _first_of("refunds", status="succeeded")),
        ("bounces_are_paid_again", _put("operations", minor_units=332)),
        ("bounces_are_paid_again", _put("operations", state="REFUSED")),
        ("bounces_are_paid_again", lambda world: world.operations.append(world.operations[-1])),
        ("bounces_are_paid_again", _drop("events")),
        ("bounces_are_paid_again", _put("events", **_told("client_repaid", amount=332))),
        ("no_discrepancies", _drop("discrepancies")),
        ("no_discrepancies", lambda world: world.discrepancies.append(world.discrepancies[0])),
        ("no_discrepancies", _put("discrepancies", detail="re_2 of 333 bounced")),
        ("no_discrepancies", _put("discrepancies", kind="out_of_band_refund")),
        ("states_move_along_edges", _drop("events", 7)),
    ],
)
def test_a_bounce_that_is_not_paid_once_is_found(
    check: str, spoil: Callable[[Evidence], None]
) -> None:
    world = bounced()
    spoil(world)
    assert check in {found.check for found in violations(world)}


def test_every_check_has_a_violation_of_its_own() -> None:
    # Those of these modules have theirs in files of their own.
    apart = (disputes, accounts, funds)
    others = {name for name in CHECKS if any(hasattr(module, name) for module in apart)}
    others.add("told_of_disputes_is_kept")
    assert {check for check, _ in SPOILED} == set(CHECKS) - others


def test_an_unknown_outcome_may_be_either_way() -> None:
    world = sound()
    for code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"):
        world.history.add(Entry(0, "RefundPayment", "key-9", b"", 1, 2, "info", code))
    assert violations(world) == []


@pytest.mark.parametrize(
    ("minor_units", "basis_points", "currency", "commission"),
    [
        (1001, 1000, "JPY", 100),
        (10050, 1250, "KWD", 1260),
        (50500, 1000, "ISK", 5100),
        (5, 1000, "USD", 1),
    ],
)
def test_commission(minor_units: int, basis_points: int, currency: str, commission: int) -> None:
    assert commission_of(minor_units, basis_points, currency) == commission
