"""When each background job must examine a payment next.

The times are computed from the payment and the policy with each transition, and stored in the
payment's row (``Transaction.record``). So a job finds its payments by one column, and the rule
itself stands here once. Before a job acts, it locks the payment and asks :func:`is_due` again.

A stored time may be too early, never too late: some rules also depend on another row, such as the
open operation or the expert's account. The job decides those under the lock. If an operator changes
the policy, a payment keeps its stored times until its next transition.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Final

from payment_service.domain import guards
from payment_service.domain.deadlines import deadlines_of, due_time, warning_time
from payment_service.domain.experts import Expert, ExpertStatus
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.payment import Freeze, Payment, State, WaitingReason
from payment_service.domain.ports.policy import Policy

_ENDED: Final = (State.CAPTURED, State.CANCELED, State.EXPIRED, State.REFUNDED)
#: An event at Stripe is expected next, or may come at any time.
UNFINISHED: Final = tuple(state for state in State if state not in _ENDED)
#: Nothing of ours is in progress, so only Stripe can tell what happens next.
POLLED: Final = (State.PENDING, State.FAILED, State.IN_ESCROW)
_UNPAID: Final = (State.PENDING, State.FAILED)
#: A capture that waits for the expert's account does not keep an authorization from expiring.
_WARNED: Final = (State.IN_ESCROW, State.CAPTURING, State.REFUNDING)
#: Where an authorization of the card may expire at Stripe without an event.
_AUTHORIZED: Final = (State.IN_ESCROW, State.CAPTURING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The times (UTC) from which on the jobs must examine a payment. None: not as it stands now."""

    #: The earliest deadline. No job selects by it; lists and metrics do.
    first_deadline_time: datetime | None = None
    warn_due_time: datetime | None = None
    deadline_due_time: datetime | None = None
    #: The payment window ends; an unpaid payment is then canceled.
    expire_due_time: datetime | None = None
    #: The authorization must have expired by then, so Stripe is asked.
    hold_check_due_time: datetime | None = None
    #: A capture that waits for its expert may be tried, if the account can be paid.
    capture_retry_due_time: datetime | None = None


SCHEDULE_COLUMNS: Final = tuple(field.name for field in fields(Schedule))


def schedule_of(payment: Payment, policy: Policy) -> Schedule:
    """Returns the schedule of a payment as it stands. This is a pure function."""
    deadlines = deadlines_of(payment)
    return Schedule(
        first_deadline_time=deadlines[0].time if deadlines else None,
        warn_due_time=_warn_due_time(payment, policy),
        deadline_due_time=_deadline_due_time(payment, policy),
        expire_due_time=(
            payment.payment_expire_time
            if payment.state in _UNPAID and not payment.operation_id
            else None
        ),
        hold_check_due_time=(
            payment.escrow_expire_time
            if payment.held and not payment.charged and payment.state in _AUTHORIZED
            else None
        ),
        capture_retry_due_time=_capture_retry_due_time(payment, policy),
    )


def account_check_due_time(
    expert: Expert, now: datetime, policy: Policy, *, captures_wait: bool
) -> datetime | None:
    """Returns when the account must be read from Stripe again; None while there is no account.

    Events may never come, so the clock decides. ``captures_wait`` says that captures wait for this
    expert. An account that is not ready is read ever more rarely while nothing changes.
    """
    if not expert.account.stripe_account_id:
        return None
    if captures_wait:
        return now + timedelta(seconds=policy.waiting_account_seconds)
    longest = timedelta(seconds=policy.ready_account_seconds)
    if expert.status is ExpertStatus.READY:
        return now + longest
    unchanged = now - expert.update_time
    return now + min(max(timedelta(seconds=policy.unready_account_seconds), unchanged / 2), longest)


def is_due(time: datetime | None, now: datetime) -> bool:
    """Returns whether a time of a schedule has come."""
    return time is not None and time <= now


def may_be_warned(payment: Payment) -> bool:
    """Returns whether the payment holds money that a deadline concerns."""
    return payment.state in _WARNED


def may_act_on_deadline(payment: Payment) -> bool:
    """Returns whether a deadline may act on the payment.

    It may while the payment rests in escrow. It may also pre-empt a repayment to the client, if the
    repayment is parked; `preempt_repayment.plan_preemption` decides that.
    """
    if payment.state is State.IN_ESCROW:
        return not payment.operation_id
    return payment.state is State.REFUNDING and payment.client_payable > 0


def may_retry_capture(payment: Payment, expert: Expert, now: datetime, policy: Policy) -> bool:
    """Returns whether a capture that waits for its expert is to be tried again now.

    It is tried when the account can be paid again. If Stripe refused although the account looked
    ready, it is tried after a pause, or when the account has changed.
    """
    if guards.reason_to_wait(payment, expert) is not WaitingReason.EXPERT_REFUSED:
        return False
    due = _capture_retry_due_time(payment, policy)
    return due is not None and (due <= now or expert.update_time > payment.update_time)


def may_book_loss(operation: Operation | None, now: datetime) -> bool:
    """Returns whether a lost dispute can be booked on a payment with this open operation.

    A parked operation that can have no effect any more is abandoned for the loss. A reversal is
    not: the client already has the money that the reversal takes back from the expert.
    """
    if operation is None:
        return True
    reverses = operation.kind is OperationKind.REVERSE_TRANSFER
    return operation.is_without_effect(now) and not reverses


def _warn_due_time(payment: Payment, policy: Policy) -> datetime | None:
    if not may_be_warned(payment):
        return None
    ahead = timedelta(seconds=policy.deadline_warning)
    times = [
        warning_time(deadline, payment, ahead)
        for deadline in deadlines_of(payment)
        # Nobody is warned of a deadline that has passed.
        if deadline.time >= payment.update_time
    ]
    return min((time for time in times if time is not None), default=None)


def _deadline_due_time(payment: Payment, policy: Policy) -> datetime | None:
    if not may_act_on_deadline(payment):
        return None
    margin = timedelta(seconds=policy.deadline_margin)
    again = timedelta(seconds=policy.deadline_retry)
    times = [due_time(deadline, payment, margin, again) for deadline in deadlines_of(payment)]
    return min((time for time in times if time is not None), default=None)


def _capture_retry_due_time(payment: Payment, policy: Policy) -> datetime | None:
    if not guards.waits_for_expert(payment) or payment.frozen is not Freeze.NONE:
        return None
    if payment.waiting_reason is WaitingReason.DESTINATION_ACCOUNT_REPLACED:
        return None
    if payment.waiting_reason in (WaitingReason.NOTHING, WaitingReason.EXPERT_REFUSED):
        return payment.update_time + timedelta(seconds=policy.capture_retry)
    return payment.update_time
