"""Transitions that return money to the client, and take the expert's amount back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from payment_service.domain.ledger import RefundSplit, StripeAmount, expert_debt
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


def start_refund(
    payment: Payment,
    split: RefundSplit,
    operation_id: str,
    reason: str,
    now: datetime,
    *,
    by_deadline: bool = False,
) -> Transition:
    return move(
        payment,
        EventKind.REFUND_STARTED,
        State.REFUNDING,
        now,
        facts={**split_facts(split), "reason": reason, "operation_id": operation_id},
        operation_id=operation_id,
        deadline_time=now if by_deadline else payment.deadline_time,
        failure=None,
    )


def refund_refused(payment: Payment, failure: Failure) -> Transition:
    return reverted(payment, EventKind.REFUND_REFUSED, payment.resting_state, failure)


def client_refunded(
    payment: Payment,
    refund_id: str,
    split: RefundSplit,
    settled: StripeAmount,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """The first leg: the client has the money. The expert's part is owed until it is reversed.

    ``next_operation_id`` None means that this was the last leg.
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
    part: int,
    platform: StripeAmount,
    connected: StripeAmount,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """A further leg: the expert's part came back by the reversal of one transfer."""
    return move(
        payment,
        EventKind.TRANSFER_REVERSED,
        payment.resting_state if next_operation_id is None else State.REFUNDING,
        now,
        facts={"reversal_id": reversal_id, "amount": part},
        postings=payment.book.transfer_reversed(
            part, platform, connected, pays=expert_debt(payment.expert_id)
        ),
        **with_next_operation(next_operation_id),
    )


def expert_debt_recorded(payment: Payment, part: int, code: str, now: datetime) -> Transition:
    """What Stripe does not give back of the expert's part stays on the books as debt."""
    return move(
        payment,
        EventKind.EXPERT_DEBT_RECORDED,
        payment.resting_state,
        now,
        facts={"amount": part, "code": code},
        **_NOTHING_UNDER_WAY,
    )


def after_refund(payment: Payment, split: RefundSplit) -> Payment:
    """The payment's amounts once the client has it."""
    return replace(
        payment,
        held=payment.held - split.from_escrow,
        refunded_from_escrow=payment.refunded_from_escrow + split.from_escrow,
        refunded_after_capture=payment.refunded_after_capture + split.from_captured,
        net_commission=payment.net_commission - split.commission,
        client_payable=payment.client_payable - split.from_owed,
    )


def amounts(after: Payment) -> dict[str, int]:
    names = (
        *("held", "refunded_from_escrow", "refunded_after_capture"),
        *("net_commission", "client_payable"),
    )
    return {name: getattr(after, name) for name in names}


def split_facts(split: RefundSplit) -> dict[str, int]:
    return {
        "amount": split.whole,
        "from_owed": split.from_owed,
        "from_escrow": split.from_escrow,
        "commission": split.commission,
        "expert_part": split.expert_part,
    }


def refund_failed(
    payment: Payment, refund_id: str, part: int, settled: StripeAmount, now: datetime
) -> Transition:
    """A refund bounced later: we owe the client, whatever else is under way on the payment."""
    return move(
        payment,
        EventKind.REFUND_FAILED,
        payment.state,
        now,
        facts={"refund_id": refund_id, "amount": part},
        postings=payment.book.refund_failed(part, settled),
        client_payable=payment.client_payable + part,
    )


def refund_failed_unbooked(
    payment: Payment,
    refund_id: str,
    part: int,
    sent: StripeAmount,
    refunded_from_escrow: StripeAmount,
    now: datetime,
) -> Transition:
    """A refund came back before it was on the books: nobody has it, and nobody is owed it."""
    return move(
        payment,
        EventKind.REFUND_FAILED_UNBOOKED,
        payment.state,
        now,
        facts={"refund_id": refund_id, "amount": part},
        postings=payment.book.refund_failed_unbooked(part, sent, refunded_from_escrow),
    )


def repayment_due(payment: Payment, operation_id: str, now: datetime) -> Transition:
    """Nothing is under way any more, and the client is owed: an operator decides how to pay."""
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
    """The open operation is not to pay what is owed: it was paid otherwise, or something else
    comes first.
    """
    return move(
        payment,
        EventKind.REPAYMENT_ABANDONED,
        payment.resting_state,
        now,
        facts={"reason": reason, "operation_id": payment.operation_id},
        **_NOTHING_UNDER_WAY,
    )


def client_payable_settled(payment: Payment, part: int, note: str, now: datetime) -> Transition:
    """An operator says that the client is not owed this any more; Stripe has no part in it."""
    return move(
        payment,
        EventKind.CLIENT_PAYABLE_SETTLED,
        payment.state,
        now,
        facts={"amount": part, "note": note},
        postings=payment.book.client_payable_settled(part),
        client_payable=payment.client_payable - part,
    )


def client_repaid(
    payment: Payment, refund_id: str, part: int, settled: StripeAmount, now: datetime
) -> Transition:
    return move(
        payment,
        EventKind.CLIENT_REPAID,
        payment.resting_state,
        now,
        facts={"refund_id": refund_id, "amount": part},
        postings=payment.book.client_repaid(part, settled),
        client_payable=payment.client_payable - part,
        **_NOTHING_UNDER_WAY,
    )
