"""Transitions until the money is held: creation, the client's attempts, the hold, its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from payment_service.domain.errors import Precondition
from payment_service.domain.ledger import StripeAmount
from payment_service.domain.payment import (
    EscrowMode,
    Failure,
    FreezeReason,
    Payment,
    State,
    WaitingFor,
    WaitingReason,
)
from payment_service.domain.state_machine import EventKind, Transition, move
from payment_service.domain.transitions.fields import freeze_fields, reverted, with_next_operation

#: What every transition says that ends the operation at Stripe.
_NOTHING_UNDER_WAY: Final[Mapping[str, Any]] = {
    "operation_id": "",
    "waiting_for": WaitingFor.NOTHING,
    "waiting_reason": WaitingReason.NOTHING,
    "debt_offset": 0,
}


def initiate(payment: Payment) -> Transition:
    """The payment exists; its intent at Stripe does not yet."""
    if payment.commission >= payment.amount:
        raise Precondition(
            "COMMISSION_TOO_LARGE",
            "the commission would be the whole amount; the expert must be left something",
            {"amount": payment.amount, "commission": payment.commission},
        )
    return Transition(None, replace(payment, version=1), EventKind.INITIATED)


def intent_created(payment: Payment, payment_intent_id: str, now: datetime) -> Transition:
    return move(
        payment,
        EventKind.INTENT_CREATED,
        State.PENDING,
        now,
        facts={"payment_intent_id": payment_intent_id},
        payment_intent_id=payment_intent_id,
        **_NOTHING_UNDER_WAY,
    )


def creation_refused(payment: Payment, failure: Failure) -> Transition:
    """Stripe will not have this payment; nobody was or can be charged."""
    return move(
        payment,
        EventKind.CREATION_REFUSED,
        State.CANCELED,
        failure.time,
        facts={"code": failure.code},
        failure=failure,
        **_NOTHING_UNDER_WAY,
    )


def attempt_failed(payment: Payment, failure: Failure) -> Transition:
    return move(
        payment,
        EventKind.ATTEMPT_FAILED,
        State.FAILED,
        failure.time,
        facts={"code": failure.code, "decline_code": failure.decline_code},
        failure=failure,
    )


def attempt_restarted(payment: Payment, now: datetime) -> Transition:
    return move(payment, EventKind.ATTEMPT_RESTARTED, State.PENDING, now)


def authorized(
    payment: Payment, charge_id: str, expire_time: datetime | None, now: datetime
) -> Transition:
    """The card's authorization stands: the money is secured and belongs to nobody yet."""
    return move(
        payment,
        EventKind.AUTHORIZED,
        State.IN_ESCROW,
        now,
        facts={"charge_id": charge_id},
        postings=payment.book.authorized(payment.amount),
        held=payment.amount,
        charge_id=charge_id,
        escrow_time=now,
        escrow_expire_time=expire_time,
        failure=None,
        **_NOTHING_UNDER_WAY,
    )


def charged(
    payment: Payment,
    part: int,
    settled: StripeAmount,
    *,
    charge_id: str,
    expire_time: datetime,
    elsewhere: bool,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """The card was charged onto the platform: the money stays in escrow, held by us now.

    By the client's confirmation, by a promotion, as the first leg of a capture (which goes on with
    ``next_operation_id``), or ``elsewhere``: by a hand at Stripe's dashboard.
    """
    book = payment.book
    goes_on = with_next_operation(next_operation_id)
    if next_operation_id is not None:
        goes_on["debt_offset"] = payment.debt_offset
    return move(
        payment,
        EventKind.CHARGED_OUT_OF_BAND if elsewhere else EventKind.CHARGED,
        State.IN_ESCROW if next_operation_id is None else State.CAPTURING,
        now,
        facts={
            "amount": part,
            "released": max(payment.held - part, 0),
            "charge_id": charge_id,
        },
        postings=[*book.hold_released(payment.held), *book.charged(part, settled)],
        held=part,
        charged=part,
        escrow_mode=EscrowMode.PLATFORM_HOLD,
        charge_id=charge_id,
        escrow_time=payment.escrow_time or now,
        escrow_expire_time=expire_time,
        warn_time=None,
        failure=None,
        **goes_on,
    )


def start_promotion(payment: Payment, operation_id: str, now: datetime) -> Transition:
    """The authorization is about to lapse: charge it onto the platform."""
    return move(
        payment,
        EventKind.PROMOTE_STARTED,
        State.PROMOTING,
        now,
        facts={"amount": payment.held, "operation_id": operation_id},
        operation_id=operation_id,
        deadline_time=now,
        failure=None,
    )


def promotion_refused(payment: Payment, failure: Failure) -> Transition:
    return reverted(payment, EventKind.PROMOTE_REFUSED, State.IN_ESCROW, failure)


def processor_fee_recorded(payment: Payment, fee: StripeAmount, now: datetime) -> Transition:
    """Stripe's own fee appeared; no transition waits for it."""
    return move(
        payment,
        EventKind.PROCESSOR_FEE,
        payment.state,
        now,
        facts={"fee": fee.minor_units, "currency": fee.currency},
        postings=payment.book.processor_fee(fee) if fee.minor_units else [],
        processor_fee=fee.minor_units,
    )


def start_cancel(
    payment: Payment, operation_id: str, reason: str, now: datetime, *, by_deadline: bool = False
) -> Transition:
    return move(
        payment,
        EventKind.CANCEL_STARTED,
        State.CANCELING,
        now,
        facts={"reason": reason, "operation_id": operation_id},
        operation_id=operation_id,
        deadline_time=now if by_deadline else payment.deadline_time,
    )


def cancel_refused(payment: Payment, failure: Failure) -> Transition:
    state = State.IN_ESCROW if payment.held else State.PENDING
    return reverted(payment, EventKind.CANCEL_REFUSED, state, failure)


def ended_unpaid(payment: Payment, *, expired: bool, reason: str, now: datetime) -> Transition:
    """The intent is cancelled at Stripe; all the money is the client's, who was never charged."""
    return move(
        payment,
        EventKind.EXPIRED if expired else EventKind.CANCELED,
        State.EXPIRED if expired else State.CANCELED,
        now,
        facts={"reason": reason, "released": payment.held},
        postings=payment.book.hold_released(payment.held),
        held=0,
        # Whatever the issuer warned of, there is nothing left to keep from being captured.
        fraud_warning_id="",
        **freeze_fields(FreezeReason()),
        **_NOTHING_UNDER_WAY,
    )
