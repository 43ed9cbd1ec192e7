"""A correction that two people have decided."""

from __future__ import annotations

from datetime import datetime

from payment_service.domain.adjustments import Adjustment
from payment_service.domain.payment import Payment
from payment_service.domain.state_machine import EventKind, Transition, move


def adjusted(payment: Payment, adjustment: Adjustment, now: datetime) -> Transition:
    """Posts an approved adjustment. It touches no amount of the payment's row."""
    return move(
        payment,
        EventKind.ADJUSTED,
        payment.state,
        now,
        facts=adjustment.facts,
        postings=adjustment.postings,
    )
