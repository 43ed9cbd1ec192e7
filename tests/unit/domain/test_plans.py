"""What a call would do: the guards, the legs, and how a new payment's money is held."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payment_service.domain import money, plans
from payment_service.domain.errors import Busy, InvalidArgument, Precondition, Refusal
from payment_service.domain.escrow import (
    Payment,
    State,
)
from payment_service.domain.ledger import RefundSplit, Share
from payment_service.domain.plans import CapturePlan, RefundPlan
from tests.unit.domain.builders import (
    BUSY,
    in_state,
    new_payment,
)

# ---- which capture is allowed ----


@pytest.mark.parametrize(
    ("part", "final", "taken"),
    [(None, False, 10_000), (None, True, 10_000), (10_000, False, 10_000), (10_000, True, 10_000)],
)
def test_capture_takes_what_is_held(part: int | None, final: bool, taken: int) -> None:
    plan = plans.plan_capture(in_state(State.IN_ESCROW), part, final)
    assert plan == CapturePlan(Share(taken, 1_000), taken, 0, 0)


@pytest.mark.parametrize("part", [1, 4_000, 9_999])
def test_capture_of_a_part_needs_final(part: int) -> None:
    payment = in_state(State.IN_ESCROW)
    plan = plans.plan_capture(payment, part, final=True)
    commission = money.fee(part, 1_000, "USD")
    assert plan == CapturePlan(Share(part, commission), part, 10_000 - part, 0)
    with pytest.raises(Precondition) as refusal:
        plans.plan_capture(payment, part, final=False)
    assert refusal.value.reason == "WOULD_RELEASE_REMAINDER"
    assert refusal.value.facts == {
        "payment_id": "pay_1",
        "held": "10000",
        "requested": str(part),
    }


def test_capture_that_would_leave_the_expert_nothing_is_refused() -> None:
    payment = in_state(State.IN_ESCROW, new_payment(basis_points=6_000))
    with pytest.raises(Precondition) as refusal:
        plans.plan_capture(payment, 1, final=True)
    assert refusal.value.reason == "COMMISSION_TOO_LARGE"
    assert refusal.value.facts == {"amount": "1", "commission": "1"}
    assert plans.plan_capture(payment, 2, final=True).share == Share(2, 1)


CAPTURE = (State.IN_ESCROW,)
REFUND = (State.PENDING, State.FAILED, State.IN_ESCROW, State.CAPTURED)


def capture_refusal(payment: Payment, part: int | None) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        plans.plan_capture(payment, part, final=True)
    return refusal.value


def refund_refusal(payment: Payment, part: int | None) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        plans.plan_refund(payment, part)
    return refusal.value


@pytest.mark.parametrize("part", [None, 1, 10_000, 10_001, 0, -1])
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    ("allowed", "refusal_of"), [(CAPTURE, capture_refusal), (REFUND, refund_refusal)]
)
def test_wrong_state_is_named_whatever_the_amount(
    allowed: tuple[State, ...],
    refusal_of: Callable[[Payment, int | None], Refusal],
    state: State,
    part: int | None,
) -> None:
    payment = in_state(state)
    if state in allowed:
        payment = replace(payment, operation_id="op_1")
    refusal = refusal_of(payment, part)
    if state in BUSY or state in allowed:
        assert (type(refusal), refusal.reason) == (Busy, "OPERATION_IN_PROGRESS")
        assert refusal.facts == {"payment_id": "pay_1", "state": state.value}
    else:
        assert (type(refusal), refusal.reason) == (Precondition, "WRONG_STATE")
        assert refusal.facts == {
            "payment_id": "pay_1",
            "state": state.value,
            "allowed_states": ",".join(allowed),
        }


@pytest.mark.parametrize(
    ("currency", "part", "fault"),
    [
        ("USD", 0, "must be more than zero"),
        ("USD", -1, "must be more than zero"),
        ("KWD", 5, "must be a multiple of 10 in KWD"),
        ("ISK", 150, "must be a multiple of 100 in ISK"),
        ("UGX", 1, "must be a multiple of 100 in UGX"),
    ],
)
@pytest.mark.parametrize(
    ("allowed", "refusal_of"), [(CAPTURE, capture_refusal), (REFUND, refund_refusal)]
)
def test_impossible_amount_is_an_invalid_field(
    allowed: tuple[State, ...],
    refusal_of: Callable[[Payment, int | None], Refusal],
    currency: str,
    part: int,
    fault: str,
) -> None:
    for state in allowed:
        refusal = refusal_of(in_state(state, new_payment(currency=currency)), part)
        assert (type(refusal), refusal.reason) == (InvalidArgument, "INVALID_FIELD")
        assert refusal.fields == (("amount.minor_units", fault),)


@pytest.mark.parametrize(
    ("allowed", "refusal_of"), [(CAPTURE, capture_refusal), (REFUND, refund_refusal)]
)
def test_more_than_there_is_is_refused(
    allowed: tuple[State, ...], refusal_of: Callable[[Payment, int | None], Refusal]
) -> None:
    for state in allowed:
        refusal = refusal_of(in_state(state), 10_001)
        assert (type(refusal), refusal.reason) == (Precondition, "AMOUNT_TOO_LARGE")
        assert refusal.facts == {
            "payment_id": "pay_1",
            "requested": "10001",
            "available": "10000",
            "currency": "USD",
        }


# ---- which refund is allowed ----


@pytest.mark.parametrize("part", [None, 10_000])
@pytest.mark.parametrize("state", [State.PENDING, State.FAILED, State.IN_ESCROW])
def test_uncaptured_payment_is_given_back_by_cancelling(state: State, part: int | None) -> None:
    plan = plans.plan_refund(in_state(state), part)
    assert plan == RefundPlan(True, 10_000, RefundSplit())


@pytest.mark.parametrize("part", [1, 9_999])
@pytest.mark.parametrize("state", [State.PENDING, State.FAILED, State.IN_ESCROW])
def test_part_of_an_uncaptured_payment_cannot_be_given_back(state: State, part: int) -> None:
    payment = in_state(state)
    refusal = refund_refusal(payment, part)
    assert (type(refusal), refusal.reason) == (Precondition, "PARTIAL_REFUND_NEEDS_CAPTURE")
    assert refusal.facts == {
        "payment_id": "pay_1",
        "held": str(payment.held),
        "requested": str(part),
    }


@pytest.mark.parametrize(
    ("part", "commission", "expert"),
    [(None, 1_000, 9_000), (10_000, 1_000, 9_000), (5, 0, 5), (6, 1, 5), (3_333, 333, 3_000)],
)
def test_refund_after_capture_divides_by_the_commission_given_back(
    part: int | None, commission: int, expert: int
) -> None:
    plan = plans.plan_refund(in_state(State.CAPTURED), part)
    split = RefundSplit(0, commission, expert)
    assert plan == RefundPlan(False, commission + expert, split)


def test_refund_after_a_refund_is_of_what_is_left() -> None:
    payment = replace(in_state(State.CAPTURED), refunded=4_000, net_commission=600)
    assert plans.plan_refund(payment, None) == RefundPlan(False, 6_000, RefundSplit(0, 600, 5_400))
    assert refund_refusal(payment, 6_001).facts["available"] == "6000"


@given(st.data())
def test_refund_never_gives_back_more_than_either_side_has(data: st.DataObject) -> None:
    """Whatever commission Stripe really collected, an operator's included."""
    net = data.draw(st.integers(1, 1_000))
    commission = data.draw(st.integers(0, net))
    payment = replace(
        in_state(State.CAPTURED, new_payment(1_000, basis_points=data.draw(st.integers(0, 9_999)))),
        refunded=1_000 - net,
        net_commission=commission,
    )
    part = data.draw(st.integers(1, net))
    split = plans.split_refund(payment, part, from_escrow=0)
    assert split.whole == split.from_captured == part
    assert 0 <= split.commission <= commission
    assert 0 <= split.expert_part <= payment.net_expert
    if part == net:
        assert split == RefundSplit(0, commission, payment.net_expert)
