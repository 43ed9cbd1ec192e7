"""What an object at Stripe says of the operation that made it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import stripe

from payment_service.adapters.stripe.outcomes import outcome_of
from payment_service.domain.ids import derived_id
from payment_service.domain.marks import CAPTURE, marked_operation, marks_of
from payment_service.domain.operation_payloads import ReversalLeg, ReversalPayload
from payment_service.domain.operations import OperationKind
from payment_service.domain.ports.stripe import Unknown
from tests.unit.domain.builders import NOW, new_operation

HERE = "ins_1"


@pytest.mark.parametrize("kind", [kind for kind in OperationKind if kind != "submit_evidence"])
@pytest.mark.parametrize("prefix", ["", CAPTURE])
def test_an_operation_is_read_back_as_it_was(kind: OperationKind, prefix: str) -> None:
    operation = new_operation(kind, 1_234)
    marks = marks_of(operation, HERE, prefix)
    read = marked_operation({"notes": "done", **marks}, HERE, "obj_1", NOW, prefix)
    assert read is not None
    assert (read.operation_id, read.kind, read.purpose) == (
        operation.operation_id,
        operation.kind,
        operation.purpose,
    )
    assert (read.minor_units, read.payload) == (operation.minor_units, operation.payload)


def test_marks_fit_into_stripes_metadata() -> None:
    legs = tuple(
        ReversalLeg(transfer_id=f"tr_{n:024}", minor_units=n, transfer_minor_units=n)
        for n in range(40)
    )
    payload = ReversalPayload(
        transfer_id="tr_1", transfer_minor_units=1, remaining_legs=legs, debt_after=1
    )
    operation = new_operation(OperationKind.REVERSE_TRANSFER, 1, payload=payload)
    marks = marks_of(operation, HERE)
    assert len(marks) <= 22
    assert all(len(key) <= 40 and len(value) <= 500 for key, value in marks.items())
    read = marked_operation(marks, HERE, "trr_1", NOW)
    assert read is not None
    assert read.payload == payload
    # What does not fit is left out as a whole, and the object cannot be recovered.
    much = replace(operation, payload=replace(payload, remaining_legs=legs * 10))
    assert set(marks_of(much, HERE)) == {"installation_id", "operation_id"}
    assert marked_operation(marks_of(much, HERE), HERE, "trr_1", NOW) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"installation_id": "ins_2"},
        {"operation_id": ""},
        {"operation_0": "{"},
        {"operation_0": "[]"},
        {"operation_0": '{"kind":"refund"}'},
        {"operation_0": ""},
    ],
)
def test_what_is_not_ours_or_not_whole_is_not_read(wrong: dict[str, str]) -> None:
    marks = marks_of(new_operation(OperationKind.REFUND, 100), HERE)
    assert marked_operation({**marks, **wrong}, HERE, "re_1", NOW) is None


def test_an_id_depends_on_the_installation_and_on_each_part_of_its_origin() -> None:
    ids = {
        derived_id("op", "ins_1", "a", "bc"),
        derived_id("op", "ins_1", "ab", "c"),
        derived_id("op", "ins_2", "a", "bc"),
        derived_id("pay", "ins_1", "a", "bc"),
        derived_id("op", "ins_1", "a", "bc", ""),
    }
    assert len(ids) == 5
    assert derived_id("op", "ins_1", "a", "bc") in ids


def test_a_key_of_another_request_is_unknown_and_never_a_refusal() -> None:
    error = stripe.IdempotencyError("used before", http_status=400)
    assert outcome_of(error) == Unknown("idempotency_error", replayed=True)
