"""Transitions that move no money: what a payment waits for, and its deadlines."""

from __future__ import annotations

from datetime import datetime

from payment_service.domain.payment import OnDeadline, Payment, WaitingFor, WaitingReason
from payment_service.domain.state_machine import EventKind, Transition, move


def waiting_changed(
    payment: Payment,
    waiting_for: WaitingFor,
    why: str,
    now: datetime,
    reason: WaitingReason = WaitingReason.NOTHING,
) -> Transition:
    """The payment waits for Stripe (the recovery job retries), an operator, or the expert.

    ``reason`` says why it waits for the expert.
    """
    return move(
        payment,
        EventKind.WAITING_CHANGED,
        payment.state,
        now,
        facts={
            "waiting_for": waiting_for.value,
            "why": why,
            **({"waiting_reason": reason.value} if reason else {}),
        },
        waiting_for=waiting_for,
        waiting_reason=reason,
    )


def deadline_near(
    payment: Payment, what: str, time: datetime, action: OnDeadline, now: datetime
) -> Transition:
    """A warning in advance: the deadline ``what`` is at ``time`` (UTC), and ``action`` follows."""
    return move(
        payment,
        EventKind.DEADLINE_NEAR,
        payment.state,
        now,
        facts={"deadline": what, "time": time.isoformat(), "action": action.value},
        warn_time=time,
    )


def deadline_passed(
    payment: Payment, what: str, time: datetime, now: datetime, refused: str = ""
) -> Transition:
    """A deadline passed without an action; ``refused`` is the reason if one was refused."""
    return move(
        payment,
        EventKind.DEADLINE_PASSED,
        payment.state,
        now,
        facts={
            "deadline": what,
            "time": time.isoformat(),
            **({"refused": refused} if refused else {}),
        },
        deadline_time=now,
    )
