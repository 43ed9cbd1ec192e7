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
    """Stripe's answer is not known (the sweep asks), or the operation is parked.

    ``reason`` says why it waits for the expert, where it does.
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
    """A warning, ahead of time: ``what`` runs out at ``time``, and then ``action`` is taken."""
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
    """A deadline at which nothing is done but telling: that, and what was ``refused`` why."""
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
