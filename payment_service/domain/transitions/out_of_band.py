"""Transitions that record what somebody did at Stripe without this service."""

from __future__ import annotations

from datetime import datetime

from payment_service.domain.ledger import LOSSES, RefundSplit, StripeAmount
from payment_service.domain.payment import Payment, State
from payment_service.domain.state_machine import BUSY, EventKind, Transition, move
from payment_service.domain.transitions.refund import after_refund, amounts, split_facts

_S = State


def refunded_out_of_band(
    payment: Payment,
    refund_id: str,
    split: RefundSplit,
    settled: StripeAmount,
    losses: str,
    now: datetime,
) -> Transition:
    """The expert's part of such a refund is the platform's loss until an operator decides."""
    after = after_refund(payment, split)
    return move(
        payment,
        EventKind.REFUNDED_OUT_OF_BAND,
        payment.state if payment.state in BUSY else after.resting_state,
        now,
        facts={"refund_id": refund_id, **split_facts(split)},
        postings=payment.book.client_refunded(split, settled, owed_by=losses),
        **amounts(after),
    )


def transferred_out_of_band(
    payment: Payment,
    transfer_id: str,
    part: int,
    sent: StripeAmount,
    received: StripeAmount,
    now: datetime,
) -> Transition:
    """Somebody sent the expert money by hand: the platform's loss until an operator decides."""
    return move(
        payment,
        EventKind.TRANSFERRED_OUT_OF_BAND,
        payment.state,
        now,
        facts={"transfer_id": transfer_id, "amount": part},
        postings=payment.book.transferred_out_of_band(part, sent, received),
    )


def reversed_out_of_band(
    payment: Payment,
    reversal_id: str,
    part: int,
    platform: StripeAmount,
    connected: StripeAmount,
    now: datetime,
) -> Transition:
    """What was taken from the expert out of band is the platform's until an operator decides."""
    return move(
        payment,
        EventKind.REVERSED_OUT_OF_BAND,
        payment.state,
        now,
        facts={"reversal_id": reversal_id, "amount": part},
        postings=payment.book.transfer_reversed(part, platform, connected, pays=LOSSES),
    )


def fee_refunded_out_of_band(
    payment: Payment,
    fee_refund_id: str,
    part: int,
    platform: StripeAmount,
    connected: StripeAmount,
    now: datetime,
) -> Transition:
    """It lowers what the platform has kept; what it had not kept any more is its loss."""
    commission = min(part, payment.net_commission)
    return move(
        payment,
        EventKind.FEE_REFUNDED_OUT_OF_BAND,
        payment.state,
        now,
        facts={"fee_refund_id": fee_refund_id, "amount": part, "commission": commission},
        postings=payment.book.fee_refunded(part, commission, platform, connected),
        net_commission=payment.net_commission - commission,
    )
