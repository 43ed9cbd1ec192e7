"""Transitions that pay the expert out of escrow."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from payment_service.domain.ledger import CaptureSplit, CaptureTransactions, StripeAmount
from payment_service.domain.payment import Failure, Payment, State
from payment_service.domain.state_machine import EventKind, Transition, move
from payment_service.domain.texts import FreeText
from payment_service.domain.transitions.fields import (
    OPERATION_CLOSED,
    reverted,
    with_next_operation,
)


def start_capture(
    payment: Payment,
    split: CaptureSplit,
    operation_id: str,
    notes: str,
    now: datetime,
    *,
    by_deadline: bool = False,
) -> Transition:
    """A capture was recorded as an operation; ``debt_offset`` of the expert's debt is reserved."""
    return move(
        payment,
        EventKind.CAPTURE_STARTED,
        State.CAPTURING,
        now,
        facts={
            "amount": split.amount,
            "debt_offset": split.debt_offset,
            "notes": FreeText(notes),
            "operation_id": operation_id,
        },
        operation_id=operation_id,
        debt_offset=split.debt_offset,
        deadline_time=now if by_deadline else payment.deadline_time,
        failure=None,
    )


def capture_refused(payment: Payment, failure: Failure) -> Transition:
    """Stripe refused the capture."""
    return reverted(payment, EventKind.CAPTURE_REFUSED, payment.resting_state, failure)


def capture_abandoned(payment: Payment, reason: str, now: datetime) -> Transition:
    """A capture that had no effect was abandoned."""
    return move(
        payment,
        EventKind.CAPTURE_ABANDONED,
        payment.resting_state,
        now,
        facts={"reason": FreeText(reason), "operation_id": payment.operation_id},
        **OPERATION_CLOSED,
    )


def captured(
    payment: Payment,
    split: CaptureSplit,
    lines: CaptureTransactions,
    *,
    charge_id: str,
    transfer_id: str,
    now: datetime,
) -> Transition:
    """DESTINATION: Stripe charged the card and paid the expert, or somebody did so out of band.

    ``split`` is what Stripe really collected. Stripe releases what was held beyond it.
    """
    ours = payment.state is State.CAPTURING
    book = payment.book
    return move(
        payment,
        EventKind.CAPTURED if ours else EventKind.CAPTURED_OUT_OF_BAND,
        State.CAPTURED,
        now,
        facts={
            "amount": split.amount,
            "commission": split.commission,
            "debt_offset": split.debt_offset,
            "released": max(payment.held - split.amount, 0),
            "charge_id": charge_id,
            "transfer_id": transfer_id,
        },
        postings=[*book.hold_released(payment.held), *book.captured(split, lines)],
        held=0,
        charged=split.amount,
        captured=split.amount,
        net_commission=split.commission,
        charge_id=charge_id,
        transfer_id=transfer_id,
        capture_time=now,
        escrow_time=payment.escrow_time or now,
        failure=None,
        **OPERATION_CLOSED,
    )


def transferred(
    payment: Payment,
    split: CaptureSplit,
    sent: StripeAmount,
    received: StripeAmount,
    *,
    transfer_id: str,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """SEPARATE: an amount out of escrow was transferred to the expert.

    ``transfer_id`` is empty if all of the amount is commission, so that no transfer was made.
    With ``next_operation_id`` the capture was final, and that operation refunds the remainder.
    """
    after = replace(
        payment, held=payment.held - split.amount, captured=payment.captured + split.amount
    )
    return move(
        payment,
        EventKind.CAPTURED,
        after.resting_state if next_operation_id is None else State.REFUNDING,
        now,
        facts={
            "amount": split.amount,
            "commission": split.commission,
            "debt_offset": split.debt_offset,
            "sent": split.sent,
            "transfer_id": transfer_id,
        },
        postings=payment.book.transferred(split, sent, received),
        held=after.held,
        captured=after.captured,
        net_commission=payment.net_commission + split.commission,
        # Recorded now, because Stripe may refuse that refund, also when it is repeated later.
        remainder_to_client=payment.remainder_to_client or next_operation_id is not None,
        transfer_id=transfer_id or payment.transfer_id,
        capture_time=now,
        failure=None,
        **with_next_operation(next_operation_id),
    )
