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
    """Somebody refunded the client: the expert's amount is a loss until an operator decides."""
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
    amount: int,
    sent: StripeAmount,
    received: StripeAmount,
    now: datetime,
) -> Transition:
    """Somebody sent the expert money: the platform's loss until an operator decides."""
    return move(
        payment,
        EventKind.TRANSFERRED_OUT_OF_BAND,
        payment.state,
        now,
        facts={"transfer_id": transfer_id, "amount": amount},
        postings=payment.book.transferred_out_of_band(amount, sent, received),
    )


def reversed_out_of_band(
    payment: Payment,
    reversal_id: str,
    amount: int,
    platform: StripeAmount,
    connected: StripeAmount,
    now: datetime,
) -> Transition:
    """Somebody reversed a transfer: the money is the platform's until an operator decides."""
    return move(
        payment,
        EventKind.REVERSED_OUT_OF_BAND,
        payment.state,
        now,
        facts={"reversal_id": reversal_id, "amount": amount},
        postings=payment.book.transfer_reversed(amount, platform, connected, pays=LOSSES),
    )


def fee_refunded_out_of_band(
    payment: Payment,
    fee_refund_id: str,
    amount: int,
    platform: StripeAmount,
    connected: StripeAmount,
    now: datetime,
) -> Transition:
    """Somebody returned an application fee: it lowers the commission, and beyond that is a loss."""
    commission = min(amount, payment.net_commission)
    return move(
        payment,
        EventKind.FEE_REFUNDED_OUT_OF_BAND,
        payment.state,
        now,
        facts={"fee_refund_id": fee_refund_id, "amount": amount, "commission": commission},
        postings=payment.book.fee_refunded(amount, commission, platform, connected),
        net_commission=payment.net_commission - commission,
    )
