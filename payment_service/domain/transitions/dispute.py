"""Transitions caused by disputes and early fraud warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from payment_service.domain.ledger import Posting, RefundSplit
from payment_service.domain.payment import Freeze, FreezeReason, Payment, State
from payment_service.domain.state_machine import EventKind, Transition, move
from payment_service.domain.texts import FreeText
from payment_service.domain.transitions.fields import freeze_fields, with_next_operation
from payment_service.domain.transitions.refund import split_facts


def dispute_changed(
    payment: Payment,
    kind: EventKind,
    facts: Mapping[str, object],
    frozen: FreezeReason,
    now: datetime,
) -> Transition:
    """A dispute changed, or is being answered, without moving money."""
    return move(payment, kind, payment.state, now, facts=facts, **freeze_fields(frozen))


def dispute_funds_moved(
    payment: Payment,
    facts: Mapping[str, object],
    postings: list[Posting],
    frozen: FreezeReason,
    now: datetime,
    *,
    taken: bool,
) -> Transition:
    """Stripe withdrew the disputed money (``taken``), or reinstated it."""
    return move(
        payment,
        EventKind.DISPUTE_FUNDS_WITHDRAWN if taken else EventKind.DISPUTE_FUNDS_REINSTATED,
        payment.state,
        now,
        facts=facts,
        postings=postings,
        **freeze_fields(frozen),
    )


def dispute_lost(
    payment: Payment,
    split: RefundSplit,
    beyond: int,
    *,
    facts: Mapping[str, object],
    frozen: FreezeReason,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """The client's bank keeps the money, and ``split`` says who pays for it.

    ``beyond`` is the platform's loss: the client had it by a refund already. The expert's amount is
    debt until it is reversed. ``next_operation_id`` None means that nothing is to be reversed.
    """
    after = after_loss(payment, split)
    names = ("held", "lost_held", "lost", "net_commission", "client_payable")
    return move(
        payment,
        EventKind.DISPUTE_LOST,
        after.resting_state if next_operation_id is None else State.REFUNDING,
        now,
        facts={
            **facts,
            **split_facts(split),
            "amount": split.whole + beyond,
            "beyond": beyond,
        },
        postings=payment.book.dispute_lost(split, beyond),
        **{name: getattr(after, name) for name in names},
        **freeze_fields(frozen),
        **with_next_operation(next_operation_id),
    )


def after_loss(payment: Payment, split: RefundSplit) -> Payment:
    """Returns the payment with the amounts after the loss."""
    return replace(
        payment,
        held=payment.held - split.from_escrow,
        lost_held=payment.lost_held + split.from_escrow,
        lost=payment.lost + split.from_captured,
        net_commission=payment.net_commission - split.commission,
        client_payable=payment.client_payable - split.from_payable,
    )


def fraud_warned(
    payment: Payment,
    kind: EventKind,
    facts: Mapping[str, object],
    fraud_warning_id: str,
    frozen: FreezeReason,
    now: datetime,
) -> Transition:
    """The issuer reported the charge as fraud, or that warning is over."""
    return move(
        payment,
        kind,
        payment.state,
        now,
        facts=facts,
        fraud_warning_id=fraud_warning_id,
        **freeze_fields(frozen),
    )


def fraud_warning_dismissed(payment: Payment, reason: str, now: datetime) -> Transition:
    """An operator dismissed the warning that froze the payment: it may be captured."""
    return move(
        payment,
        EventKind.FRAUD_WARNING_DISMISSED,
        payment.state,
        now,
        facts={"warning_id": payment.fraud_warning_id, "reason": FreeText(reason)},
        **freeze_fields(reviewed(payment.review_id)),
    )


def reviewed(review_id: str) -> FreezeReason:
    """Returns the freeze by a manual review alone; none for an empty id."""
    return FreezeReason(Freeze.REVIEW, review_id) if review_id else FreezeReason()


def review_changed(
    payment: Payment, review_id: str, frozen: FreezeReason, now: datetime
) -> Transition:
    """Radar put the charge into manual review, or with an empty id that review is closed."""
    return move(
        payment,
        EventKind.REVIEW_OPENED if review_id else EventKind.REVIEW_CLOSED,
        payment.state,
        now,
        facts={"review_id": review_id or payment.review_id},
        review_id=review_id,
        **freeze_fields(frozen),
    )
