"""Operations: which key Stripe sees, and how long the same key means the same request."""

import json
from dataclasses import asdict, replace
from datetime import timedelta

import pytest

from payment_service.domain.operation_payloads import (
    CapturePayload,
    CreateAccountPayload,
    MalformedPayload,
    ReversalLeg,
    ReversalPayload,
    TransferPayload,
    payload_from_json,
    payload_to_json,
)
from payment_service.domain.operations import (
    OF_A_DISPUTE,
    OPEN_STATES,
    PAYLOAD_TYPES,
    OperationKind,
    OperationPurpose,
    OperationState,
)
from tests.unit.domain.builders import NOW, PAYLOADS, new_operation, new_transfer

OPERATION = new_operation(OperationKind.CAPTURE, 500)


@pytest.mark.parametrize("tries", [0, 1, 19])
@pytest.mark.parametrize("state", OperationState)
def test_stripe_key_is_stable_over_tries(tries: int, state: OperationState) -> None:
    again = replace(OPERATION, tries=tries, state=state, last_error="timeout", lease_token="other")
    assert again.stripe_key == OPERATION.stripe_key == "op_1-1"


def test_stripe_key_is_new_for_each_attempt_and_operation() -> None:
    keys = {replace(OPERATION, attempt=attempt).stripe_key for attempt in range(1, 101)}
    others = {replace(OPERATION, operation_id=f"op_{n}").stripe_key for n in range(2, 102)}
    assert len(keys | others) == 200


@pytest.mark.parametrize(
    ("age", "allowed"),
    [
        (timedelta(0), True),
        (timedelta(hours=23) - timedelta(microseconds=1), True),
        (timedelta(hours=23), False),
        (timedelta(hours=24), False),
        (timedelta(days=30), False),
    ],
)
def test_same_key_is_resent_for_23_hours_only(age: timedelta, allowed: bool) -> None:
    assert OPERATION.may_resend(NOW + age) is allowed


def test_23_hours_count_from_the_attempt_not_from_the_operation() -> None:
    later = replace(OPERATION, attempt=2, attempt_time=NOW + timedelta(hours=30))
    assert later.may_resend(NOW + timedelta(hours=52))
    assert not later.may_resend(NOW + timedelta(hours=53))


@pytest.mark.parametrize("state", OperationState)
def test_operation_is_open_until_stripes_definite_word(state: OperationState) -> None:
    ended = state in (OperationState.SUCCEEDED, OperationState.REFUSED)
    assert replace(OPERATION, state=state).is_open is not ended
    assert (state in OPEN_STATES) is not ended


# ---- payloads ----


@pytest.mark.parametrize("kind", OperationKind)
def test_payload_comes_back_from_json_as_it_was(kind: OperationKind) -> None:
    stored = json.loads(json.dumps(payload_to_json(PAYLOADS[kind])))
    assert payload_from_json(PAYLOAD_TYPES[kind], stored) == PAYLOADS[kind]


@pytest.mark.parametrize("kind", OperationKind)
def test_payload_is_stored_in_the_same_bytes_by_every_release(kind: OperationKind) -> None:
    """Marks at Stripe contain them, and Stripe refuses a repeated request that differs."""
    assert json.dumps(payload_to_json(PAYLOADS[kind])) == json.dumps(asdict(PAYLOADS[kind]))


def test_nested_payloads_come_back_from_json_as_they_were() -> None:
    leg = ReversalLeg(transfer_id="tr_2", minor_units=40, transfer_minor_units=36)
    reversal = ReversalPayload(
        transfer_id="tr_1", transfer_minor_units=9, remaining_legs=(leg, leg), debt_after=5
    )
    capture = CapturePayload(
        payment_intent_id="pi_1",
        notes="n",
        application_fee=0,
        transfer=new_transfer(400, final=True),
        transfer_amount=4_000,
    )
    for payload in (reversal, capture):
        text = json.dumps(payload_to_json(payload))
        assert text == json.dumps(asdict(payload))
        assert payload_from_json(type(payload), json.loads(text)) == payload
    assert reversal.unrecovered == 85


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"owed": True}, "misses or adds owed"),
        ({"debt_after": True}, "debt_after is no <class 'int'>: a bool"),
        ({"debt_after": None}, "debt_after is no <class 'int'>: a NoneType"),
        ({"transfer_id": 7}, "transfer_id is no <class 'str'>: a int"),
        ({"remaining_legs": "tr_2"}, "remaining_legs is no tuple"),
        ({"remaining_legs": [{"transfer_id": "tr_2"}]}, r"remaining_legs\[0\] misses or adds"),
    ],
)
def test_malformed_payload_is_refused(change: dict[str, object], sentence: str) -> None:
    stored = payload_to_json(PAYLOADS[OperationKind.REVERSE_TRANSFER]) | change
    with pytest.raises(MalformedPayload, match=sentence):
        payload_from_json(ReversalPayload, stored)


@pytest.mark.parametrize("missing", ["transfer_id", "debt_after", "remaining_legs"])
def test_payload_with_a_missing_key_is_refused(missing: str) -> None:
    stored = payload_to_json(PAYLOADS[OperationKind.REVERSE_TRANSFER])
    del stored[missing]
    with pytest.raises(MalformedPayload, match=f"misses or adds {missing}"):
        payload_from_json(ReversalPayload, stored)


def test_unknown_business_type_is_refused() -> None:
    stored = payload_to_json(PAYLOADS[OperationKind.CREATE_ACCOUNT]) | {"business_type": "guild"}
    with pytest.raises(MalformedPayload, match="business_type"):
        payload_from_json(CreateAccountPayload, stored)


def test_operation_carries_only_the_payload_of_its_kind() -> None:
    with pytest.raises(TypeError, match="op_1 is a refund and cannot carry a TransferPayload"):
        new_operation(OperationKind.REFUND, payload=new_transfer())
    with pytest.raises(TypeError, match="op_1 is a capture and has no TransferPayload"):
        OPERATION.payload_as(TransferPayload)


@pytest.mark.parametrize("kind", OperationKind)
@pytest.mark.parametrize("purpose", OperationPurpose)
def test_only_a_refund_returns_the_remainder(
    kind: OperationKind, purpose: OperationPurpose
) -> None:
    operation = new_operation(kind, purpose=purpose)
    is_remainder = (kind, purpose) == (OperationKind.REFUND, OperationPurpose.REMAINDER)
    assert operation.returns_remainder is is_remainder
    assert operation.is_repayment is (purpose is OperationPurpose.REPAYMENT)


@pytest.mark.parametrize("kind", sorted(OF_A_DISPUTE))
def test_answer_to_a_dispute_names_the_payment_that_it_concerns(kind: OperationKind) -> None:
    answer = replace(new_operation(kind), payment_id="", dispute_id="dp_1")
    assert answer.related_payment_id == "pay_1"
