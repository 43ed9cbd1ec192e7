"""The fields that are read of Stripe's answers: their types, and that Stripe documents them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from stripe._object_classes import get_object_class

from payment_service.adapters.stripe import views
from payment_service.adapters.stripe.client import path_to
from payment_service.adapters.stripe.fields import (
    Json,
    Unreadable,
    flag,
    flag_or_false,
    id_in,
    items,
    metadata_of,
    moment,
    moment_or_none,
    number,
    number_or_none,
    part,
    parts,
    text,
    text_or_empty,
    texts,
)

#: Stripe shows it only to accounts in a preview.
_UNDOCUMENTED = {("transfer_reversal", "status")}


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (text, None),
        (text, 1),
        (text_or_empty, {"id": "a"}),
        (number, None),
        (number, "1"),
        (number, 1.5),
        (number, True),
        (number_or_none, "1"),
        (flag, None),
        (flag, 1),
        (flag_or_false, "true"),
        (moment, None),
        (moment_or_none, "2026-11-30"),
        (part, 1),
        (part, []),
        (parts, {"data": []}),
        (parts, ["re_1"]),
        (texts, [1]),
        (id_in, {}),
    ],
)
def test_another_type_is_refused_and_named(
    read: Callable[[Json, str], object], value: object
) -> None:
    with pytest.raises(Unreadable, match=r"^(refund\.held|object\.id) is no "):
        read({"object": "refund", "held": value}, "held")


def test_what_is_not_there() -> None:
    for shown in ({}, {"held": None}):
        assert text_or_empty(shown, "held") == ""
        assert number_or_none(shown, "held") is None
        assert flag_or_false(shown, "held") is False
        assert part(shown, "held") is None
        assert parts(shown, "held") == []
        assert texts(shown, "held") == []
        assert id_in(shown, "held") == ""
    assert metadata_of({"metadata": None}) == {}


@pytest.mark.parametrize("page", [{}, {"data": None}, {"data": {}}, {"ok": True}])
def test_an_answer_without_a_list_is_no_empty_list(page: Json) -> None:
    """It would say that a transfer of ours is not at Stripe, and so may be made again."""
    with pytest.raises(Unreadable, match="data is no list"):
        items(page)
    assert items({"data": []}) == items(None) == []


def test_a_dispute_that_cannot_be_answered_has_no_deadline() -> None:
    assert moment_or_none({"due_by": 0}, "due_by") is None
    assert moment_or_none({"due_by": 60}, "due_by") == datetime(1970, 1, 1, 0, 1, tzinfo=UTC)


def test_an_object_is_expanded_or_only_its_id() -> None:
    assert part({"charge": "ch_1"}, "charge") is None
    assert id_in({"charge": "ch_1"}, "charge") == "ch_1"
    assert id_in({"charge": {"id": "ch_1"}}, "charge") == "ch_1"


def test_an_id_stays_in_its_place_of_a_path() -> None:
    assert path_to("v1", "refunds", "re_1") == "/v1/refunds/re_1"
    assert path_to("v1", "refunds", "../accounts?a=b") == "/v1/refunds/..%2Faccounts%3Fa%3Db"


class _Watched(dict[str, Any]):
    """An object of Stripe's that keeps which of its fields were read."""

    asked: set[tuple[str, str]]

    def get(self, name: str, default: Any = None) -> Any:
        if "object" in self:
            self.asked.add((self["object"], name))
        return super().get(name, default)


def _watched(value: Any, asked: set[tuple[str, str]]) -> Any:
    if isinstance(value, list):
        return [_watched(one, asked) for one in value]
    if not isinstance(value, dict):
        return value
    found = _Watched({name: _watched(one, asked) for name, one in value.items()})
    found.asked = asked
    return found


_LINE = {"object": "balance_transaction", "id": "txn_1", "currency": "usd", "amount": 1,
         "fee": 0, "net": 1, "created": 1, "type": "charge", "source": "ch_1"}  # fmt: skip
_TRANSFER = {"object": "transfer", "id": "tr_1", "amount": 1, "currency": "usd", "created": 1,
             "balance_transaction": _LINE, "destination_payment": {"object": "charge"}}  # fmt: skip
_FEE = {"object": "application_fee", "id": "fee_1", "amount": 1, "currency": "usd",
        "balance_transaction": _LINE}  # fmt: skip
_CHARGE = {"object": "charge", "id": "ch_1", "captured": True, "amount_captured": 1,
           "currency": "usd", "created": 1, "balance_transaction": _LINE, "transfer": _TRANSFER,
           "application_fee": _FEE,
           "review": {"object": "review", "id": "prv_1", "open": False}}  # fmt: skip
_INTENT = {"object": "payment_intent", "id": "pi_1", "status": "succeeded", "amount": 1,
           "currency": "usd", "created": 1, "latest_charge": _CHARGE}  # fmt: skip
_SAMPLES: list[tuple[Callable[[Json], object], dict[str, Any]]] = [
    (views.observation_of, _INTENT),
    (views.balance_entry_of, _LINE),
    (views.refund_of, {"object": "refund", "id": "re_1", "amount": 1, "created": 1}),
    (views.reversal_of, {"object": "transfer_reversal", "id": "trr_1", "amount": 1, "created": 1}),
    (views.fee_refund_of, {"object": "fee_refund", "id": "fr_1", "amount": 1}),
    (views.dispute_of, {"object": "dispute", "id": "dp_1", "status": "lost", "reason": "general",
                        "amount": 1, "created": 1, "evidence_details":
                        {"has_evidence": False, "submission_count": 0}}),
    (views.fraud_warning_of, {"object": "radar.early_fraud_warning", "id": "issfr_1",
                              "fraud_type": "misc", "actionable": True}),
    (views.found_account_of, {"object": "account", "id": "acct_1"}),
    (views.payout_of, {"object": "payout", "id": "po_1", "amount": 1, "currency": "usd",
                       "status": "paid", "automatic": True, "arrival_date": 1, "created": 1}),
    (views.account_balances_of, {"object": "balance", "available": [], "pending": []}),
]  # fmt: skip


@pytest.mark.parametrize(("view", "sample"), _SAMPLES)
def test_every_field_that_is_read_is_documented(
    view: Callable[[Json], object], sample: dict[str, Any]
) -> None:
    asked: set[tuple[str, str]] = set()
    view(_watched(sample, asked))
    assert len(asked) >= 2
    unknown = {
        (kind, name)
        for kind, name in asked - _UNDOCUMENTED
        if name not in get_object_class("V1", kind).__annotations__
    }
    assert unknown == set()
