"""The times at which an escrow must end or change, and what is to happen then.

A deadline is never acted upon by the clock alone: Stripe is asked first, and only a payment that
still rests in escrow has any.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from payment_service.domain.payment import OnDeadline, Payment


class DeadlineKind(StrEnum):
    CARD_AUTHORIZATION = "CARD_AUTHORIZATION"  # The charge's own ``capture_before``.
    HOLDING_LIMIT = "HOLDING_LIMIT"  # For how long the platform may hold money (Stripe's rule).
    RELEASE_DUE = "RELEASE_DUE"  # When the gig was to be done, as the caller said.


@dataclass(frozen=True, slots=True)
class Deadline:
    """When something runs out (UTC), and what is done about it."""

    kind: DeadlineKind
    time: datetime
    action: OnDeadline

    def act_time(self, margin: timedelta) -> datetime:
        """What Stripe would end by itself is acted upon ahead; our own date when it comes."""
        return self.time if self.kind is DeadlineKind.RELEASE_DUE else self.time - margin


def deadlines_of(payment: Payment) -> list[Deadline]:
    """The deadlines of money in escrow, the earliest first; none where nothing is held."""
    if not payment.held:
        return []
    action = payment.on_deadline
    # A promotion concerns the card's authorization alone; anything else is told.
    otherwise = OnDeadline.ALERT if action is OnDeadline.PROMOTE else action
    if payment.remainder_to_client and action is OnDeadline.CAPTURE:
        # The caller was told so: the expert is not paid it because nobody asks again.
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


def deadline_due(
    payment: Payment, now: datetime, margin: timedelta, again: timedelta
) -> Deadline | None:
    """The deadline to be acted upon now. What was refused is tried ``again`` after a while."""
    acted = payment.deadline_time
    passed = [d for d in deadlines_of(payment) if d.act_time(margin) <= now]
    # What is to be done comes before what is only told, whichever passed first.
    for deadline in sorted(passed, key=lambda d: d.action is OnDeadline.ALERT):
        if acted is None or acted < deadline.act_time(margin):
            return deadline
        if deadline.action is not OnDeadline.ALERT and acted + again <= now:
            return deadline
    return None


def deadline_near(payment: Payment, now: datetime, ahead: timedelta) -> Deadline | None:
    """The next deadline, if it is near and nobody was warned of it yet."""
    for deadline in deadlines_of(payment):
        warned = payment.warn_time
        if now <= deadline.time <= now + ahead and (warned is None or warned < deadline.time):
            return deadline
    return None
