"""Operations: which key Stripe sees, and how long the same key means the same request."""

from dataclasses import replace
from datetime import timedelta

import pytest

from payment_service.domain.operations import OPEN_STATES, OperationKind, OperationState
from tests.unit.domain.builders import NOW, new_operation

OPERATION = new_operation(OperationKind.CAPTURE, 500, because="deadline", share=7)


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


def test_params_are_read_by_type() -> None:
    assert (OPERATION.text("because"), OPERATION.text("absent")) == ("deadline", "")
    assert (OPERATION.number("share"), OPERATION.number("absent")) == (7, 0)
    with pytest.raises(TypeError, match="because of op_1 is not a number"):
        OPERATION.number("because")
