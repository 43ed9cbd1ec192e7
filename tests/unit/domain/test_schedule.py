"""The stored times of the jobs against the rules that the jobs decide by."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payment_service.domain.deadlines import deadline_due, deadline_near, deadlines_of
from payment_service.domain.experts import Account, BusinessType, Expert
from payment_service.domain.operations import OperationKind, OperationState
from payment_service.domain.payment import (
    ChargeModel,
    EscrowMode,
    Freeze,
    OnDeadline,
    Payment,
    State,
    WaitingFor,
    WaitingReason,
)
from payment_service.domain.ports.policy import Policy
from payment_service.domain.schedule import (
    Schedule,
    account_check_due_time,
    is_due,
    may_act_on_deadline,
    may_be_warned,
    may_book_loss,
    may_retry_capture,
    schedule_of,
)
from tests.unit.domain.builders import NOW, in_state, new_operation, new_payment, separate

HOUR = timedelta(hours=1)
POLICY = Policy(deadline_margin=12 * 3600.0, deadline_retry=3600.0, deadline_warning=24 * 3600.0)
MARGIN, AGAIN, AHEAD = 12 * HOUR, HOUR, 24 * HOUR

hours = st.integers(-60, 60)
times = st.one_of(st.none(), hours.map(lambda count: NOW + count * HOUR))


@st.composite
def payments(draw: st.DrawFn) -> Payment:
    """Payments in every state, with every order of the times that matter."""
    state = draw(st.sampled_from(State))
    base = draw(
        st.sampled_from(
            [new_payment(), *(separate(mode) for mode in EscrowMode)]
            if state is not State.PROMOTING
            else [separate(EscrowMode.CARD_HOLD)]
        )
    )
    payment = replace(
        in_state(state, base),
        on_deadline=draw(st.sampled_from(OnDeadline)),
        escrow_expire_time=draw(times),
        release_due_time=draw(times),
        deadline_time=draw(times),
        warn_time=draw(times),
        payment_expire_time=NOW + draw(hours) * HOUR,
        update_time=NOW - 60 * HOUR,
    )
    if payment.charged and payment.state in (State.IN_ESCROW, State.REFUNDING):
        payment = replace(payment, remainder_to_client=draw(st.booleans()))
    if state is State.REFUNDING:
        payment = replace(payment, client_payable=draw(st.sampled_from((0, 100))))
    if state in (State.PENDING, State.IN_ESCROW):
        payment = replace(payment, operation_id=draw(st.sampled_from(("", "op_1"))))
    return payment


@given(payments(), hours)
def test_a_deadline_is_due_exactly_when_the_rule_says(payment: Payment, count: int) -> None:
    now = NOW + count * HOUR
    rule = may_act_on_deadline(payment) and deadline_due(payment, now, MARGIN, AGAIN) is not None
    assert is_due(schedule_of(payment, POLICY).deadline_due_time, now) is rule


@given(payments(), hours)
def test_a_warning_is_due_when_the_rule_says_until_the_deadline_passes(
    payment: Payment, count: int
) -> None:
    now = NOW + count * HOUR
    rule = may_be_warned(payment) and deadline_near(payment, now, AHEAD) is not None
    due = is_due(schedule_of(payment, POLICY).warn_due_time, now)
    missed = any(deadline.time < now for deadline in deadlines_of(payment))
    assert due is rule or (due and missed)


@given(payments(), hours)
def test_an_unpaid_payment_expires_when_its_window_ends(payment: Payment, count: int) -> None:
    now = NOW + count * HOUR
    unpaid = payment.state in (State.PENDING, State.FAILED) and not payment.operation_id
    rule = unpaid and payment.payment_expire_time <= now
    assert is_due(schedule_of(payment, POLICY).expire_due_time, now) is rule


@given(payments(), hours)
def test_an_authorization_is_synced_when_it_must_have_expired(payment: Payment, count: int) -> None:
    now = NOW + count * HOUR
    authorized = payment.state in (State.IN_ESCROW, State.CAPTURING) and not payment.charged
    expired = payment.escrow_expire_time is not None and payment.escrow_expire_time <= now
    rule = authorized and expired
    assert is_due(schedule_of(payment, POLICY).hold_check_due_time, now) is rule


@given(payments())
def test_the_first_deadline_is_the_first_of_the_deadlines(payment: Payment) -> None:
    first = min((deadline.time for deadline in deadlines_of(payment)), default=None)
    assert schedule_of(payment, POLICY).first_deadline_time == first


@pytest.mark.parametrize("state", [State.CAPTURED, State.CANCELED, State.EXPIRED, State.REFUNDED])
def test_a_payment_at_its_end_has_no_schedule(state: State) -> None:
    payment = replace(
        in_state(state, separate()), escrow_expire_time=NOW, release_due_time=NOW, warn_time=None
    )
    assert schedule_of(payment, POLICY) == Schedule()


# ---- captures that wait for their expert ----


def expert(*, ready: bool = True, changed: datetime = NOW - HOUR) -> Expert:
    return Expert(
        expert_id="expert_1",
        name="Ada",
        email="ada@example.com",
        country="US",
        business_type=BusinessType.INDIVIDUAL,
        commission_basis_points=1000,
        account=Account("acct_1", transfers_active=ready, details_submitted=True),
        create_time=NOW - HOUR,
        update_time=changed,
    )


def waiting(reason: WaitingReason, frozen: Freeze = Freeze.NONE) -> Payment:
    return replace(
        in_state(State.CAPTURING),
        waiting_for=WaitingFor.EXPERT,
        waiting_reason=reason,
        frozen=frozen,
        frozen_by="" if frozen is Freeze.NONE else "dp_1",
    )


@pytest.mark.parametrize("reason", WaitingReason)
@pytest.mark.parametrize("frozen", Freeze)
@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("changed", [NOW - HOUR, NOW + HOUR])
@pytest.mark.parametrize("seconds", [0, 59, 60, 3600])
def test_a_capture_is_retried_when_the_account_can_be_paid(
    reason: WaitingReason, frozen: Freeze, *, ready: bool, changed: datetime, seconds: int
) -> None:
    payment, now = waiting(reason, frozen), NOW + timedelta(seconds=seconds)
    payee = expert(ready=ready, changed=changed)
    retried = may_retry_capture(payment, payee, now, POLICY)
    refused = reason in (WaitingReason.NOTHING, WaitingReason.EXPERT_REFUSED)
    final = reason is WaitingReason.DESTINATION_ACCOUNT_REPLACED
    in_time = not refused or seconds >= 60 or changed > NOW
    assert retried is (ready and frozen is Freeze.NONE and not final and in_time)
    # The job finds each of them by its stored time, or because the expert has changed.
    stored = schedule_of(payment, POLICY).capture_retry_due_time
    found = is_due(stored, now) or (stored is not None and changed > payment.update_time)
    assert found or not retried


def test_a_capture_for_a_replaced_destination_is_not_retried() -> None:
    payment = replace(waiting(WaitingReason.EXPERT_RESTRICTED), destination_account_id="acct_0")
    assert not may_retry_capture(payment, expert(), NOW + HOUR, POLICY)
    transferred = replace(payment, charge_model=ChargeModel.SEPARATE)
    assert may_retry_capture(transferred, expert(), NOW + HOUR, POLICY)


# ---- losses ----


@pytest.mark.parametrize("kind", OperationKind)
@pytest.mark.parametrize("state", OperationState)
@pytest.mark.parametrize("unsure", [None, NOW - HOUR, NOW + HOUR])
def test_a_loss_is_booked_unless_an_operation_may_still_have_an_effect(
    kind: OperationKind, state: OperationState, unsure: datetime | None
) -> None:
    operation = replace(new_operation(kind), state=state, unsure_until=unsure)
    parked = state is OperationState.PARKED and unsure != NOW + HOUR
    assert may_book_loss(operation, NOW) is (parked and kind is not OperationKind.REVERSE_TRANSFER)
    assert may_book_loss(None, NOW)


# ---- accounts that are read by the clock ----


def checked_after(payee: Expert, *, captures_wait: bool = False) -> timedelta:
    due = account_check_due_time(payee, NOW, POLICY, captures_wait=captures_wait)
    assert due is not None
    return due - NOW


def test_an_account_is_read_every_minute_while_a_capture_waits_for_it() -> None:
    for ready in (True, False):
        assert checked_after(expert(ready=ready), captures_wait=True) == timedelta(minutes=1)


def test_an_account_that_is_ready_is_read_daily() -> None:
    assert checked_after(expert()) == timedelta(days=1)


@pytest.mark.parametrize(
    ("unchanged", "pause"),
    [
        (timedelta(0), timedelta(minutes=5)),
        (timedelta(minutes=10), timedelta(minutes=5)),
        (timedelta(hours=4), timedelta(hours=2)),
        (timedelta(days=30), timedelta(days=1)),
    ],
)
def test_an_account_that_is_not_ready_is_read_ever_more_rarely(
    unchanged: timedelta, pause: timedelta
) -> None:
    assert checked_after(expert(ready=False, changed=NOW - unchanged)) == pause


def test_an_account_that_does_not_exist_yet_is_not_read() -> None:
    payee = replace(expert(), account=Account(""))
    assert account_check_due_time(payee, NOW, POLICY, captures_wait=True) is None
