"""The times at which an escrow must end or change, and what happens then.

A deadline is never acted on by the clock alone. Stripe is synced first, and only a payment that
still rests in escrow is acted on. `schedule` says when the background jobs examine a payment.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from payment_service.domain.payment import OnDeadline, Payment


class DeadlineKind(StrEnum):
    CARD_AUTHORIZATION = "CARD_AUTHORIZATION"  # The charge's own ``capture_before``.
    HOLDING_LIMIT = "HOLDING_LIMIT"  # How long the platform may hold money (Stripe's rule).
    RELEASE_DUE = "RELEASE_DUE"  # When the gig was to be done, as the caller said.


@dataclass(frozen=True, slots=True)
class Deadline:
    """A time (UTC) at which the escrow ends or is to end, and what is done about it."""

    kind: DeadlineKind
    time: datetime
    action: OnDeadline

    def act_time(self, margin: timedelta) -> datetime:
        """Returns when the action is taken first.

        Stripe ends a hold by itself, so the action comes a margin before. Our own date has none.
        """
        return self.time if self.kind is DeadlineKind.RELEASE_DUE else self.time - margin


def deadlines_of(payment: Payment) -> list[Deadline]:
    """Returns the deadlines of money in escrow, the earliest first; none if nothing is held."""
    if not payment.held:
        return []
    action = payment.on_deadline
    # A promotion concerns only the authorization of the card; other deadlines then raise an alert.
    otherwise = OnDeadline.ALERT if action is OnDeadline.PROMOTE else action
    if payment.remainder_to_client and action is OnDeadline.CAPTURE:
        # The caller was promised that the client gets the remainder, so the expert does not.
        otherwise = OnDeadline.REFUND
    found = []
    if payment.escrow_expire_time is not None:
        if payment.charged:
            found.append(
                Deadline(DeadlineKind.HOLDING_LIMIT, payment.escrow_expire_time, otherwise)
            )
        else:
            found.append(
                Deadline(DeadlineKind.CARD_AUTHORIZATION, payment.escrow_expire_time, action)
            )
    if payment.release_due_time is not None:
        found.append(Deadline(DeadlineKind.RELEASE_DUE, payment.release_due_time, otherwise))
    return sorted(found, key=lambda deadline: deadline.time)


def due_time(
    deadline: Deadline,
    payment: Payment,
    margin: timedelta,
    again: timedelta,
    *,
    can_capture: bool = True,
) -> datetime | None:
    """Returns when the deadline is to be acted on next, or None if it never is again.

    An alert is raised once. An action that was refused is tried again after the pause ``again``,
    except a capture that can never succeed (``can_capture`` is False).
    """
    acted, act_time = payment.deadline_time, deadline.act_time(margin)
    if acted is None or acted < act_time:
        return act_time
    once = deadline.action is OnDeadline.ALERT
    hopeless = deadline.action is OnDeadline.CAPTURE and not can_capture
    return None if once or hopeless else acted + again


def deadline_due(
    payment: Payment,
    now: datetime,
    margin: timedelta,
    again: timedelta,
    *,
    can_capture: bool = True,
) -> Deadline | None:
    """Returns the deadline that must be acted on now, or None.

    An action comes before an alert, even if the alert's time passed first.
    """
    due = [
        deadline
        for deadline in deadlines_of(payment)
        if (time := due_time(deadline, payment, margin, again, can_capture=can_capture))
        and time <= now
    ]
    return min(due, key=lambda deadline: deadline.action is OnDeadline.ALERT, default=None)


def warning_time(deadline: Deadline, payment: Payment, ahead: timedelta) -> datetime | None:
    """Returns from when on to warn of the deadline, or None if a warning was already recorded."""
    warned = payment.warn_time
    return deadline.time - ahead if warned is None or warned < deadline.time else None


def deadline_near(payment: Payment, now: datetime, ahead: timedelta) -> Deadline | None:
    """Returns the next deadline that is near, has not passed, and was not warned of yet."""
    for deadline in deadlines_of(payment):
        time = warning_time(deadline, payment, ahead)
        if time is not None and time <= now <= deadline.time:
            return deadline
    return None
