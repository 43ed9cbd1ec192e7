"""Transitions until the money is held: creation, the client's attempts, the hold, its end."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from payment_service.domain.errors import Precondition
from payment_service.domain.ledger import StripeAmount
from payment_service.domain.payment import (
    EscrowMode,
    Failure,
    FreezeReason,
    Payment,
    State,
)
from payment_service.domain.state_machine import EventKind, Transition, move
from payment_service.domain.texts import FreeText
from payment_service.domain.transitions.fields import (
    OPERATION_CLOSED,
    freeze_fields,
    reverted,
    with_next_operation,
)


def initiate(payment: Payment) -> Transition:
    """Creates the payment. Its intent at Stripe does not exist yet. Raises Precondition."""
    if payment.commission >= payment.amount:
        raise Precondition(
            "COMMISSION_TOO_LARGE",
            "the commission would be the whole amount; the expert must be left something",
            {"amount": payment.amount, "commission": payment.commission},
        )
    facts = {"description": FreeText(payment.description)}
    return Transition(None, replace(payment, version=1), EventKind.INITIATED, facts)


def intent_created(payment: Payment, payment_intent_id: str, now: datetime) -> Transition:
    return move(
        payment,
        EventKind.INTENT_CREATED,
        State.PENDING,
        now,
        facts={"payment_intent_id": payment_intent_id},
        payment_intent_id=payment_intent_id,
        **OPERATION_CLOSED,
    )


def creation_refused(payment: Payment, failure: Failure) -> Transition:
    """Stripe refused to create the intent: nobody was or can be charged."""
    return move(
        payment,
        EventKind.CREATION_REFUSED,
        State.CANCELED,
        failure.time,
        facts={"code": failure.code},
        failure=failure,
        **OPERATION_CLOSED,
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
    """The card is authorized until ``expire_time``: the whole amount is held."""
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
        **OPERATION_CLOSED,
    )


def expire_time_known(payment: Payment, expire_time: datetime | None, now: datetime) -> Transition:
    """Stripe shows when the authorization expires; until now that was assumed."""
    return move(
        payment,
        EventKind.EXPIRE_TIME_KNOWN,
        payment.state,
        now,
        facts={"expire_time": expire_time.isoformat() if expire_time else ""},
        escrow_expire_time=expire_time,
    )


def charged(
    payment: Payment,
    amount: int,
    settled: StripeAmount,
    *,
    charge_id: str,
    expire_time: datetime,
    out_of_band: bool,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """SEPARATE: the card was charged onto the platform's balance, and the money stays in escrow.

    The client's confirmation, a promotion or a capture did that, or ``out_of_band`` somebody else.
    A capture continues with the transfer ``next_operation_id``.
    """
    book = payment.book
    closing = with_next_operation(next_operation_id)
    if next_operation_id is not None:
        closing["debt_offset"] = payment.debt_offset
    return move(
        payment,
        EventKind.CHARGED_OUT_OF_BAND if out_of_band else EventKind.CHARGED,
        State.IN_ESCROW if next_operation_id is None else State.CAPTURING,
        now,
        facts={
            "amount": amount,
            "released": max(payment.held - amount, 0),
            "charge_id": charge_id,
        },
        postings=[*book.hold_released(payment.held), *book.charged(amount, settled)],
        held=amount,
        charged=amount,
        escrow_mode=EscrowMode.PLATFORM_HOLD,
        charge_id=charge_id,
        escrow_time=payment.escrow_time or now,
        escrow_expire_time=expire_time,
        warn_time=None,
        failure=None,
        **closing,
    )


def start_promotion(payment: Payment, operation_id: str, now: datetime) -> Transition:
    """The authorization expires soon: it is to be charged onto the platform's balance."""
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
    """Stripe shows its own fee, in minor units of its settlement currency."""
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
        facts={"reason": FreeText(reason), "operation_id": operation_id},
        operation_id=operation_id,
        deadline_time=now if by_deadline else payment.deadline_time,
    )


def cancel_refused(payment: Payment, failure: Failure) -> Transition:
    state = State.IN_ESCROW if payment.held else State.PENDING
    return reverted(payment, EventKind.CANCEL_REFUSED, state, failure)


def ended_unpaid(payment: Payment, *, expired: bool, reason: str, now: datetime) -> Transition:
    """The intent is canceled at Stripe: the client was never charged."""
    return move(
        payment,
        EventKind.EXPIRED if expired else EventKind.CANCELED,
        State.EXPIRED if expired else State.CANCELED,
        now,
        facts={"reason": reason, "released": payment.held},
        postings=payment.book.hold_released(payment.held),
        held=0,
        # A fraud warning freezes captures, and nothing is left to capture.
        fraud_warning_id="",
        review_id="",
        **freeze_fields(FreezeReason()),
        **OPERATION_CLOSED,
    )
