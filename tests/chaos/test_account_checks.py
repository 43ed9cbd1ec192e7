"""The checks of experts' accounts catch what they are for: one thing is broken at a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from chaos.checks import CHECKS, accounts, violations
from chaos.evidence import Evidence
from chaos.history import Entry
from marketplace.payments.v1 import experts_pb2
from tests.chaos.evidence import NOW, _drop, _effect, _put, on_the_platform, tell

#: When the expert's first account was replaced: before the transfer was ordered.
_EXCHANGE = NOW - timedelta(minutes=1)


def exchanged() -> Evidence:
    """What was held went to the expert's second account; the first one had been rejected."""
    world = on_the_platform()
    world.experts[0]["stripe_account_id"] = "acct_2"
    world.former_accounts = [
        {"stripe_account_id": "acct_1", "expert_id": "e", "replace_time": _EXCHANGE}
    ]
    world.lost_accounts = {"acct_1"}
    effect = _effect(12, "account_created", "acct_2", 0, "op_12")
    world.effects.append({**effect, "metadata": {"expert_id": "e"}})
    for operation in world.operations:
        operation["create_time"] = NOW
    transfer = {"id": "tr_1", "destination": "acct_2", "created": int(NOW.timestamp())}
    amounts = {"currency": "usd", "amount": 900, "amount_reversed": 0}
    world.transfers = [{**transfer, **amounts}]
    world.history.add(_answer("key-2", "acct_2"))
    return world


def _answer(key: str, account: str) -> Entry:
    expert = experts_pb2.Expert(expert_id="e", stripe_account_id=account)
    body = experts_pb2.ReplaceExpertAccountResponse(expert=expert).SerializeToString()
    return Entry(0, "ReplaceExpertAccount", key, b"", 1, 2, "ok", "OK", body=body)


def _ordered(after: timedelta) -> Callable[[Evidence], None]:
    """The transfer went to the first account, and was ordered so long after the exchange."""

    def spoil(world: Evidence) -> None:
        world.transfers[0]["destination"] = "acct_1"
        [order] = [one for one in world.operations if one["kind"] == "transfer"]
        order["create_time"] = _EXCHANGE + after

    return spoil


def _with_a_destination(account: str) -> Callable[[Evidence], None]:
    """A destination charge whose capture begins when the expert has the second account."""

    def spoil(world: Evidence) -> None:
        world.payments[0].update(charge_model="DESTINATION", destination_account_id=account)
        world.events[2]["kind"] = "payment.capture_started"

    return spoil


SPOILED: list[tuple[str, Callable[[Evidence], None]]] = [
    ("one_account_per_exchange", lambda world: world.effects.append(world.effects[-1])),
    ("one_account_per_exchange", _drop("effects")),
    ("one_account_per_exchange", lambda world: world.lost_accounts.clear()),
    ("one_account_per_exchange", lambda world: world.lost_accounts.add("acct_2")),
    ("no_phantom_effect", _put("effects", object="acct_3")),
    ("no_phantom_effect", _drop("former_accounts")),
    ("exchanges_are_answered_right", lambda world: world.history.add(_answer("key-3", "acct_2"))),
    ("exchanges_are_answered_right", lambda world: world.history.add(_answer("key-3", "acct_1"))),
    ("exchanges_are_answered_right", lambda world: world.history.add(_answer("key-3", "acct_9"))),
    ("money_goes_to_the_present_account", _ordered(timedelta(seconds=1))),
    ("money_goes_to_the_present_account", _put("transfers", destination="acct_9")),
    ("money_goes_to_the_present_account", _put("transfers", id="tr_9")),
    ("money_goes_to_the_present_account", _put("transfers", created=0)),
    ("money_goes_to_the_present_account", _put("experts", expert_id="f")),
    ("money_goes_to_the_present_account", _with_a_destination("acct_1")),
    ("no_former_account_is_captured_for", _with_a_destination("acct_1")),
    ("no_former_account_is_captured_for", _with_a_destination("acct_9")),
    ("what_waited_has_gone_on", _put("payments", waiting_for="expert")),
    (
        "what_waited_has_gone_on",
        lambda world: tell(world, "waiting", "CAPTURED", {"waiting_for": "expert"}),
    ),
]


def test_a_sound_exchange_has_no_violations() -> None:
    assert [str(found) for found in violations(exchanged())] == []


@pytest.mark.parametrize(
    ("check", "spoil"), SPOILED, ids=lambda given: getattr(given, "__name__", given)
)
def test_a_check_catches_its_violation(check: str, spoil: Callable[[Evidence], None]) -> None:
    world = exchanged()
    spoil(world)
    assert check in {found.check for found in violations(world)}


def test_every_check_has_a_violation_of_its_own() -> None:
    own = {name for name in CHECKS if hasattr(accounts, name)}
    assert own <= {check for check, _ in SPOILED}


@pytest.mark.parametrize(
    "spoil", [_ordered(timedelta(seconds=-1)), _with_a_destination("acct_2")], ids=["sent", "new"]
)
def test_what_was_ordered_before_the_exchange_may_reach_the_former_account(
    spoil: Callable[[Evidence], None],
) -> None:
    world = exchanged()
    spoil(world)
    # Everything else in such a world belongs to another charge model.
    names = ("money_goes_to_the_present_account", "no_former_account_is_captured_for")
    assert [found for found in violations(world) if found.check in names] == []
