"""Transitions that pay the expert out of escrow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from payment_service.domain.ledger import CaptureSplit, CaptureTransactions, StripeAmount
from payment_service.domain.payment import Failure, Payment, State, WaitingFor, WaitingReason
from payment_service.domain.state_machine import EventKind, Transition, move
from payment_service.domain.transitions.fields import reverted, with_next_operation

#: What every transition says that ends the operation at Stripe.
_NOTHING_UNDER_WAY: Final[Mapping[str, Any]] = {
    "operation_id": "",
    "waiting_for": WaitingFor.NOTHING,
    "waiting_reason": WaitingReason.NOTHING,
    "debt_offset": 0,
}


def start_capture(
    payment: Payment,
    share: CaptureSplit,
    operation_id: str,
    notes: str,
    now: datetime,
    *,
    by_deadline: bool = False,
) -> Transition:
    return move(
        payment,
        EventKind.CAPTURE_STARTED,
        State.CAPTURING,
        now,
        facts={
            "amount": share.part,
            "netted": share.netted,
            "notes": notes,
            "operation_id": operation_id,
        },
        operation_id=operation_id,
        debt_offset=share.netted,
        deadline_time=now if by_deadline else payment.deadline_time,
        failure=None,
    )


def capture_refused(payment: Payment, failure: Failure) -> Transition:
    return reverted(payment, EventKind.CAPTURE_REFUSED, payment.resting_state, failure)


def capture_abandoned(payment: Payment, reason: str, now: datetime) -> Transition:
    """A capture that nothing came of is not to be made any more."""
    return move(
        payment,
        EventKind.CAPTURE_ABANDONED,
        payment.resting_state,
        now,
        facts={"reason": reason, "operation_id": payment.operation_id},
        **_NOTHING_UNDER_WAY,
    )


def captured(
    payment: Payment,
    share: CaptureSplit,
    lines: CaptureTransactions,
    *,
    charge_id: str,
    transfer_id: str,
    now: datetime,
) -> Transition:
    """Stripe took the money and split it; whatever was held beyond it is the client's again.

    ``share`` is what Stripe really collected. Also the way by which a capture that somebody made at
    Stripe's dashboard is followed. (DESTINATION)
    """
    ours = payment.state is State.CAPTURING
    book = payment.book
    return move(
        payment,
        EventKind.CAPTURED if ours else EventKind.CAPTURED_OUT_OF_BAND,
        State.CAPTURED,
        now,
        facts={
            "amount": share.part,
            "commission": share.commission,
            "netted": share.netted,
            "released": max(payment.held - share.part, 0),
            "charge_id": charge_id,
            "transfer_id": transfer_id,
        },
        postings=[*book.hold_released(payment.held), *book.captured(share, lines)],
        held=0,
        charged=share.part,
        captured=share.part,
        net_commission=share.commission,
        charge_id=charge_id,
        transfer_id=transfer_id,
        capture_time=now,
        escrow_time=payment.escrow_time or now,
        failure=None,
        **_NOTHING_UNDER_WAY,
    )


def transferred(
    payment: Payment,
    share: CaptureSplit,
    sent: StripeAmount,
    received: StripeAmount,
    *,
    transfer_id: str,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """A part of what the platform holds went to the expert. (SEPARATE)

    ``next_operation_id`` refunds the rest to the client, where the capture was to be the last.
    """
    after = replace(payment, held=payment.held - share.part, captured=payment.captured + share.part)
    return move(
        payment,
        EventKind.CAPTURED,
        after.resting_state if next_operation_id is None else State.REFUNDING,
        now,
        facts={
            "amount": share.part,
            "commission": share.commission,
            "netted": share.netted,
            "sent": share.sent,
            "transfer_id": transfer_id,
        },
        postings=payment.book.transferred(share, sent, received),
        held=after.held,
        captured=after.captured,
        net_commission=payment.net_commission + share.commission,
        # Remembered now, since Stripe may refuse that refund, today and again.
        remainder_to_client=payment.remainder_to_client or next_operation_id is not None,
        transfer_id=transfer_id,
        capture_time=now,
        failure=None,
        **with_next_operation(next_operation_id),
    )
