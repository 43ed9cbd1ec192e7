"""Applies what a snapshot shows of the authorization, the charge and the capture."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from payment_service.domain import money, transitions
from payment_service.domain.errors import Precondition
from payment_service.domain.ledger import CaptureSplit, CaptureTransactions, StripeAmount
from payment_service.domain.operation_payloads import CapturePayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import EscrowMode, State
from payment_service.domain.processor_errors import failure_of
from payment_service.domain.snapshot import Charge, PaymentSnapshot
from payment_service.domain.sync.changes import (
    ChangeSet,
    Movement,
    NextOperation,
    amount_of,
    report_state,
)
from payment_service.domain.sync.superseded import ended_out_of_band


def sync_authorization(changes: ChangeSet, snapshot: PaymentSnapshot, now: datetime) -> None:
    state, charge = changes.payment.state, snapshot.charge
    if state in (State.PENDING, State.FAILED):
        expire_time = charge.capture_before if charge else None
        charge_id = charge.charge_id if charge else ""
        changes.take(transitions.authorized(changes.payment, charge_id, expire_time, now))
    elif changes.payment.charged or state not in (
        State.IN_ESCROW,
        State.CAPTURING,
        State.PROMOTING,
        State.CANCELING,
    ):
        report_state(changes, snapshot)


def sync_attempt(changes: ChangeSet, snapshot: PaymentSnapshot, now: datetime) -> None:
    payment, decline = changes.payment, snapshot.decline
    if decline is None:
        if payment.state is State.FAILED:
            changes.take(transitions.attempt_restarted(payment, now))
        return
    failure = failure_of(decline, now)
    before = payment.failure
    same = before and (before.code, before.decline_code) == (failure.code, failure.decline_code)
    if payment.state is State.PENDING or not same:
        changes.take(transitions.attempt_failed(payment, failure))


def sync_capture(
    changes: ChangeSet, snapshot: PaymentSnapshot, operation: Operation | None, now: datetime
) -> None:
    charge = snapshot.charge
    if charge is None:
        changes.report("charge_missing", "the intent succeeded but shows no charge")
        return
    if changes.payment.state not in (State.CAPTURED, State.REFUNDING, State.REFUNDED):
        _apply_capture(changes, snapshot, charge, operation, now)
    _sync_processor_fee(changes, charge, now)


def _sync_processor_fee(changes: ChangeSet, charge: Charge, now: datetime) -> None:
    if (
        changes.payment.charged
        and changes.payment.processor_fee is None
        and charge.line is not None
    ):
        changes.take(
            transitions.processor_fee_recorded(changes.payment, charge.line.fee_settled, now)
        )


def _apply_capture(
    changes: ChangeSet,
    snapshot: PaymentSnapshot,
    charge: Charge,
    operation: Operation | None,
    now: datetime,
) -> None:
    payment, part = changes.payment, snapshot.amount_received
    ours = payment.state is State.CAPTURING
    collected = charge.application_fee.minor_units if charge.application_fee else 0
    fee_due = money.split_capture(
        payment.net, part, payment.commission_basis_points, payment.currency
    ).commission
    if not _has_balance_transactions(charge):
        changes.defer(operation=True)  # Whoever captured it: that ends what is under way.
        return
    # What is kept back of the expert's debt comes in with the fee, on top of the commission: where
    # somebody else captured meanwhile, only as far as Stripe really collected it.
    asked = 0
    if ours and operation is not None and operation.kind is OperationKind.CAPTURE:
        asked = operation.payload_as(CapturePayload).debt_offset
    netted = max(min(asked, collected - fee_due), 0)
    share = CaptureSplit(part, collected - netted, netted)
    transfer_id = charge.transfer.transfer_id if charge.transfer else ""
    changes.take(
        transitions.captured(
            payment,
            share,
            _capture_transactions(charge, part, collected, payment.currency),
            charge_id=charge.charge_id,
            transfer_id=transfer_id,
            now=now,
        )
    )
    if transfer_id:
        changes.movements.append(Movement(transfer_id, "transfer", part))
    if share.commission != fee_due:
        changes.report("commission_mismatch", f"Stripe collected {collected}, due was {fee_due}")
    if not ours:
        changes.report(
            "captured_out_of_band", f"captured from {payment.state}, not by this service"
        )
    if operation is None:
        return
    if operation.kind is not OperationKind.CAPTURE:
        changes.settle(ended_out_of_band(payment, "captured"))
    elif operation.minor_units != part:
        changes.settle(_other_amount(changes, part, operation))
    else:
        changes.settle()


def _other_amount(changes: ChangeSet, part: int, operation: Operation) -> Precondition:
    changes.report("amount_mismatch", f"captured {part}, asked for {operation.minor_units}")
    return Precondition(
        "DISCREPANCY",
        "Stripe captured another amount than was asked; an operator is told",
        {"payment_id": changes.payment.payment_id, "requested": operation.minor_units},
    )


def _has_balance_transactions(charge: Charge) -> bool:
    """Whether Stripe shows the balance transactions yet; it may make them a moment later."""
    transfer, fee = charge.transfer, charge.application_fee
    return (
        charge.line is not None
        and transfer is not None
        and transfer.line is not None
        and (fee is not None or not charge.application_fee_amount)
    )


def _capture_transactions(
    charge: Charge, part: int, commission: int, currency: str
) -> CaptureTransactions:
    """The balance transactions; where Stripe shows none yet, what they must be."""
    plain_part, plain_fee = StripeAmount(part, currency), StripeAmount(commission, currency)
    transfer, fee = charge.transfer, charge.application_fee
    connected = transfer.connected_line if transfer else None
    transferred = amount_of(transfer.line if transfer else None, plain_part)
    received = amount_of(connected, transferred)
    fee_line = amount_of(fee.line if fee else None, plain_fee)
    # On the connected account the fee is taken out of the very transaction that brought the money.
    fee_paid = connected.fee_settled if connected and connected.fee else fee_line
    return CaptureTransactions(
        charge=amount_of(charge.line, plain_part),
        transferred=transferred,
        received=received,
        fee=fee_line,
        fee_paid=fee_paid,
    )


def sync_charge(
    changes: ChangeSet,
    snapshot: PaymentSnapshot,
    operation: Operation | None,
    next_operation_id: str,
    holding: timedelta,
    now: datetime,
) -> None:
    """The card was charged onto the platform: once, whoever did it."""
    charge, payment = snapshot.charge, changes.payment
    if charge is None:
        changes.report("charge_missing", "the intent succeeded but shows no charge")
        return
    if payment.charged:
        _sync_processor_fee(changes, charge, now)
        return
    if charge.line is None:
        changes.defer(operation=True)  # As of a capture.
        return
    part = snapshot.amount_received
    by_us = payment.state in (State.CAPTURING, State.PROMOTING)
    ended = payment.state in (State.CANCELED, State.EXPIRED)
    elsewhere = not by_us and (payment.escrow_mode is EscrowMode.CARD_HOLD or ended)
    goes_on = (
        operation is not None
        and operation.kind is OperationKind.CAPTURE
        and operation.minor_units == part
    )
    changes.take(
        transitions.charged(
            payment,
            part,
            charge.line.settled,
            charge_id=charge.charge_id,
            expire_time=now + holding,
            elsewhere=elsewhere,
            next_operation_id=next_operation_id if goes_on else None,
            now=now,
        )
    )
    _sync_processor_fee(changes, charge, now)
    if elsewhere:
        changes.report(
            "captured_out_of_band", f"captured from {payment.state}, not by this service"
        )
    if charge.line.currency != payment.currency:
        changes.report("settled_in_other_currency", f"Stripe settled in {charge.line.currency}")
    if operation is None:
        return
    if operation.kind is OperationKind.CAPTURE and goes_on:
        capture = operation.payload_as(CapturePayload)
        assert capture.transfer is not None
        changes.next_operation = NextOperation(
            OperationKind.TRANSFER,
            capture.transfer_amount,
            replace(capture.transfer, charge_id=charge.charge_id),
            operation.purpose,
        )
        changes.settle()
    elif operation.kind is OperationKind.CAPTURE:
        changes.settle(_other_amount(changes, part, operation))
    elif operation.kind is OperationKind.PROMOTE:
        changes.settle(
            _other_amount(changes, part, operation) if part != operation.minor_units else None
        )
    else:
        changes.settle(ended_out_of_band(payment, "charged"))


def sync_cancellation(
    changes: ChangeSet, snapshot: PaymentSnapshot, operation: Operation | None, now: datetime
) -> None:
    payment = changes.payment
    if payment.state in (State.CANCELED, State.EXPIRED):
        return
    if payment.charged:
        report_state(changes, snapshot)
        return
    by_deadline = (
        operation is not None
        and operation.kind is OperationKind.CANCEL
        and operation.purpose is OperationPurpose.DEADLINE
    )
    expired = snapshot.expired or by_deadline
    reason = snapshot.cancellation_reason or ("deadline" if by_deadline else "")
    changes.take(transitions.ended_unpaid(payment, expired=expired, reason=reason, now=now))
    if operation is None:
        return
    if operation.kind is OperationKind.CANCEL:
        changes.settle()
    else:
        changes.settle(ended_out_of_band(payment, changes.payment.state.lower()))
