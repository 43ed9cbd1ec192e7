"""Transitions that return money to the client, and take the expert's amount back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from payment_service.domain.ledger import RefundSplit, StripeAmount, expert_debt
from payment_service.domain.payment import Failure, Payment, State, WaitingFor, WaitingReason
from payment_service.domain.state_machine import EventKind, Transition, move
from payment_service.domain.texts import FreeText
from payment_service.domain.transitions.fields import (
    OPERATION_CLOSED,
    reverted,
    with_next_operation,
)


def start_refund(
    payment: Payment,
    split: RefundSplit,
    operation_id: str,
    reason: str,
    now: datetime,
    *,
    by_deadline: bool = False,
) -> Transition:
    """A refund was recorded as an operation."""
    return move(
        payment,
        EventKind.REFUND_STARTED,
        State.REFUNDING,
        now,
        facts={
            **split_facts(split),
            "reason": FreeText(reason),
            "operation_id": operation_id,
        },
        operation_id=operation_id,
        deadline_time=now if by_deadline else payment.deadline_time,
        failure=None,
    )


def refund_accepted(
    payment: Payment, refund_id: str, split: RefundSplit, why: str, now: datetime
) -> Transition:
    """The refund waits until the platform's available balance covers it.

    Its amounts are divided now, so that the expert's amount can be taken back and pay for it.
    ``refund_id`` is empty if Stripe wants to be asked again.
    """
    after = after_refund(payment, split)
    return move(
        payment,
        EventKind.REFUND_ACCEPTED,
        State.REFUNDING,
        now,
        facts={"refund_id": refund_id, "why": why, **split_facts(split)},
        postings=payment.book.refund_accepted(split, owed_by=expert_debt(payment.expert_id)),
        **{**amounts(after), "pending_refund": payment.pending_refund + split.whole},
        waiting_for=WaitingFor.PROCESSOR,
        waiting_reason=WaitingReason.REFUND_PENDING_FUNDS,
    )


def refund_refused(payment: Payment, failure: Failure) -> Transition:
    """Stripe did not make the refund. If it was accepted before, the client is owed its amount."""
    if not payment.pending_refund:
        return reverted(payment, EventKind.REFUND_REFUSED, payment.resting_state, failure)
    owed = payment.pending_refund
    return move(
        payment,
        EventKind.PENDING_REFUND_FAILED,
        payment.resting_state,
        failure.time,
        facts={"code": failure.code, "amount": owed},
        postings=payment.book.pending_refund_failed(owed),
        pending_refund=0,
        client_payable=payment.client_payable + owed,
        failure=failure,
        **OPERATION_CLOSED,
    )


def client_refunded(
    payment: Payment,
    refund_id: str,
    split: RefundSplit,
    settled: StripeAmount,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """The client has the money. The expert's amount is the expert's debt until it is reversed.

    ``next_operation_id`` None means that nothing is to be reversed; empty, that only debt is left.
    """
    after = after_refund(payment, split)
    return move(
        payment,
        EventKind.CLIENT_REFUNDED,
        after.resting_state if next_operation_id is None else State.REFUNDING,
        now,
        facts={"refund_id": refund_id, **split_facts(split)},
        postings=payment.book.client_refunded(
            split, settled, owed_by=expert_debt(payment.expert_id)
        ),
        **amounts(after),
        **with_next_operation(next_operation_id),
    )


def transfer_reversed(
    payment: Payment,
    reversal_id: str,
    amount: int,
    *,
    platform: StripeAmount,
    connected: StripeAmount,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """The reversal of one transfer brought ``amount`` back; ``next_operation_id`` reverses more."""
    return move(
        payment,
        EventKind.TRANSFER_REVERSED,
        payment.resting_state if next_operation_id is None else State.REFUNDING,
        now,
        facts={"reversal_id": reversal_id, "amount": amount},
        postings=payment.book.transfer_reversed(
            amount, platform, connected, pays=expert_debt(payment.expert_id)
        ),
        **with_next_operation(next_operation_id),
    )


def debt_collected(
    payment: Payment,
    reversal_id: str,
    amount: int,
    *,
    platform: StripeAmount,
    connected: StripeAmount,
    operation_id: str,
    now: datetime,
) -> Transition:
    """A reversal of one of the payment's transfers paid ``amount`` of what its expert owes."""
    return move(
        payment,
        EventKind.DEBT_COLLECTED,
        payment.state,
        now,
        facts={"reversal_id": reversal_id, "amount": amount, "operation_id": operation_id},
        postings=payment.book.transfer_reversed(
            amount, platform, connected, pays=expert_debt(payment.expert_id)
        ),
    )


def expert_debt_recorded(payment: Payment, amount: int, code: str, now: datetime) -> Transition:
    """``amount`` could not be reversed: it stays on the books as the expert's debt."""
    return move(
        payment,
        EventKind.EXPERT_DEBT_RECORDED,
        payment.resting_state,
        now,
        facts={"amount": amount, "code": code},
        **OPERATION_CLOSED,
    )


def after_refund(payment: Payment, split: RefundSplit) -> Payment:
    """Returns the payment with the amounts after the refund."""
    return replace(
        payment,
        held=payment.held - split.from_escrow,
        refunded_from_escrow=payment.refunded_from_escrow + split.from_escrow,
        refunded_after_capture=payment.refunded_after_capture + split.from_captured,
        net_commission=payment.net_commission - split.commission,
        client_payable=payment.client_payable - split.from_payable,
        pending_refund=payment.pending_refund - split.from_pending,
    )


def amounts(after: Payment) -> dict[str, int]:
    names = (
        *("held", "refunded_from_escrow", "refunded_after_capture"),
        *("net_commission", "client_payable", "pending_refund"),
    )
    return {name: getattr(after, name) for name in names}


def split_facts(split: RefundSplit) -> dict[str, int]:
    return {
        "amount": split.whole,
        "from_payable": split.from_payable,
        "from_pending": split.from_pending,
        "from_escrow": split.from_escrow,
        "commission": split.commission,
        "expert_amount": split.expert_amount,
    }


def refund_failed(
    payment: Payment, refund_id: str, amount: int, settled: StripeAmount, now: datetime
) -> Transition:
    """A booked refund failed: ``amount`` is payable to the client, in any state."""
    return move(
        payment,
        EventKind.REFUND_FAILED,
        payment.state,
        now,
        facts={"refund_id": refund_id, "amount": amount},
        postings=payment.book.refund_failed(amount, settled),
        client_payable=payment.client_payable + amount,
    )


def refund_failed_unbooked(
    payment: Payment,
    refund_id: str,
    amount: int,
    sent: StripeAmount,
    refunded_from_escrow: StripeAmount,
    now: datetime,
) -> Transition:
    """A refund failed before it was booked: nothing is payable by it."""
    return move(
        payment,
        EventKind.REFUND_FAILED_UNBOOKED,
        payment.state,
        now,
        facts={"refund_id": refund_id, "amount": amount},
        postings=payment.book.refund_failed_unbooked(amount, sent, refunded_from_escrow),
    )


def repayment_due(payment: Payment, operation_id: str, now: datetime) -> Transition:
    """No other operation is open: a repayment is recorded, parked for an operator."""
    return move(
        payment,
        EventKind.REPAYMENT_DUE,
        State.REFUNDING,
        now,
        facts={"amount": payment.client_payable, "operation_id": operation_id},
        operation_id=operation_id,
        waiting_for=WaitingFor.OPERATOR,
    )


def repayment_abandoned(payment: Payment, reason: str, now: datetime) -> Transition:
    """The open repayment ends: the client was paid otherwise, or something else comes first."""
    return move(
        payment,
        EventKind.REPAYMENT_ABANDONED,
        payment.resting_state,
        now,
        facts={"reason": FreeText(reason), "operation_id": payment.operation_id},
        **OPERATION_CLOSED,
    )


def client_payable_settled(payment: Payment, amount: int, reason: str, now: datetime) -> Transition:
    """An operator paid ``amount`` of the client payable outside Stripe."""
    return move(
        payment,
        EventKind.CLIENT_PAYABLE_SETTLED,
        payment.state,
        now,
        facts={"amount": amount, "reason": FreeText(reason)},
        postings=payment.book.client_payable_settled(amount),
        client_payable=payment.client_payable - amount,
    )


def client_repaid(
    payment: Payment, refund_id: str, amount: int, settled: StripeAmount, now: datetime
) -> Transition:
    """A repayment paid ``amount`` of the client payable."""
    return move(
        payment,
        EventKind.CLIENT_REPAID,
        payment.resting_state,
        now,
        facts={"refund_id": refund_id, "amount": amount},
        postings=payment.book.client_repaid(amount, settled),
        client_payable=payment.client_payable - amount,
        **OPERATION_CLOSED,
    )
