"""Applies what a snapshot shows of the authorization, the charge and the capture."""

from __future__ import annotations

from dataclasses import replace

from payment_service.domain import money, transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import Precondition
from payment_service.domain.ledger import CaptureSplit, CaptureTransactions, StripeAmount
from payment_service.domain.operation_payloads import CapturePayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import EscrowMode, Payment, State
from payment_service.domain.processor_errors import failure_of
from payment_service.domain.snapshot import Charge
from payment_service.domain.sync.changes import (
    ChangeSet,
    Movement,
    NextOperation,
    SyncContext,
    amount_of,
    report_state,
)
from payment_service.domain.sync.superseded import ended_out_of_band


def sync_authorization(changes: ChangeSet, context: SyncContext) -> None:
    """Applies an authorized card: the payment is in escrow as a card hold."""
    state, charge = changes.payment.state, context.snapshot.charge
    if state in (State.PENDING, State.FAILED):
        # A hold without an end would lapse without a warning and without its deadline's action.
        expire_time = (charge.capture_before or charge.assumed_expire_time) if charge else None
        charge_id = charge.charge_id if charge else ""
        changes.take(transitions.authorized(changes.payment, charge_id, expire_time, context.now))
    elif state is State.IN_ESCROW and charge and _was_assumed(changes.payment, charge):
        known = transitions.expire_time_known(changes.payment, charge.capture_before, context.now)
        changes.take(known)
    elif changes.payment.charged or state not in (
        State.IN_ESCROW,
        State.CAPTURING,
        State.PROMOTING,
        State.CANCELING,
    ):
        report_state(changes, context.snapshot)


def _was_assumed(payment: Payment, charge: Charge) -> bool:
    """Returns whether Stripe shows by now when the authorization expires, and did not before."""
    shown, assumed = charge.capture_before, charge.assumed_expire_time
    uncharged = not payment.charged and shown not in (None, assumed)
    return uncharged and payment.escrow_expire_time in (None, assumed)


def sync_attempt(changes: ChangeSet, context: SyncContext) -> None:
    """Applies the client's attempts to pay, each failure once."""
    payment, decline = changes.payment, context.snapshot.decline
    if decline is None:
        if payment.state is State.FAILED:
            changes.take(transitions.attempt_restarted(payment, context.now))
        return
    failure = failure_of(decline, context.now)
    before = payment.failure
    same = before and (before.code, before.decline_code) == (failure.code, failure.decline_code)
    if payment.state is State.PENDING or not same:
        changes.take(transitions.attempt_failed(payment, failure))


def sync_capture(changes: ChangeSet, context: SyncContext) -> None:
    """Applies the capture of a DESTINATION charge: Stripe has paid the expert with it."""
    charge = context.snapshot.charge
    if charge is None:
        changes.report(DiscrepancyKind.CHARGE_MISSING, "the intent succeeded but shows no charge")
        return
    if changes.payment.state not in (State.CAPTURED, State.REFUNDING, State.REFUNDED):
        _apply_capture(changes, context, charge)
    _sync_processor_fee(changes, context, charge)


def _sync_processor_fee(changes: ChangeSet, context: SyncContext, charge: Charge) -> None:
    """Books Stripe's own fee once, as soon as its balance transaction is there."""
    payment = changes.payment
    if payment.charged and payment.processor_fee is None and charge.line is not None:
        fee = charge.line.fee_settled
        changes.take(transitions.processor_fee_recorded(payment, fee, context.now))


def _apply_capture(changes: ChangeSet, context: SyncContext, charge: Charge) -> None:
    awaited, complete = f"{charge.charge_id}:capture", _has_balance_transactions(charge)
    # Also out of band: the capture ends any open operation.
    if not complete and changes.await_line(awaited, context, operation=True):
        return
    payment, operation = changes.payment, context.operation
    amount = context.snapshot.amount_received
    ours = payment.state is State.CAPTURING
    # The fee itself may never be shown. Stripe has taken it from the expert all the same.
    fee = charge.application_fee
    collected = fee.minor_units if fee else charge.application_fee_amount
    commission_due = money.split_capture(
        payment.net, amount, payment.commission_basis_points, payment.currency
    ).commission
    # Stripe collects the debt offset with the application fee, on top of the commission. If the
    # capture was made out of band meanwhile, only what Stripe really collected counts.
    requested_offset = 0
    if ours and operation is not None and operation.kind is OperationKind.CAPTURE:
        requested_offset = operation.payload_as(CapturePayload).debt_offset
    debt_offset = max(min(requested_offset, collected - commission_due), 0)
    split = CaptureSplit(amount, collected - debt_offset, debt_offset)
    transfer_id = charge.transfer.transfer_id if charge.transfer else ""
    changes.take(
        transitions.captured(
            payment,
            split,
            _capture_transactions(charge, amount, collected, payment.currency),
            charge_id=charge.charge_id,
            transfer_id=transfer_id,
            now=context.now,
        )
    )
    if transfer_id:
        changes.movements.append(Movement(transfer_id, "transfer", amount))
    if split.commission != commission_due:
        changes.report(
            DiscrepancyKind.COMMISSION_MISMATCH,
            f"Stripe collected {collected}, due was {commission_due}",
        )
    if not ours:
        _report_out_of_band_capture(changes, payment.state)
    if operation is None:
        return
    if operation.kind is not OperationKind.CAPTURE:
        changes.settle(ended_out_of_band(payment, "captured"))
    elif operation.minor_units != amount:
        changes.settle(_other_amount(changes, amount, operation))
    else:
        changes.settle()


def _report_out_of_band_capture(changes: ChangeSet, state: State) -> None:
    changes.report(
        DiscrepancyKind.CAPTURED_OUT_OF_BAND, f"captured from {state}, not by this service"
    )


def _other_amount(changes: ChangeSet, captured: int, operation: Operation) -> Precondition:
    """Reports that Stripe captured another amount, and returns the operation's refusal."""
    changes.report(
        DiscrepancyKind.AMOUNT_MISMATCH, f"captured {captured}, requested {operation.minor_units}"
    )
    return Precondition(
        "DISCREPANCY",
        "Stripe captured another amount than was requested; an operator gets an alarm",
        {"payment_id": changes.payment.payment_id, "requested": operation.minor_units},
    )


def _has_balance_transactions(charge: Charge) -> bool:
    """Whether Stripe shows the balance transactions yet; they may appear a moment later."""
    transfer, fee = charge.transfer, charge.application_fee
    return (
        charge.line is not None
        and transfer is not None
        and transfer.line is not None
        and transfer.connected_line is not None
        and (fee is not None or not charge.application_fee_amount)
    )


def _capture_transactions(
    charge: Charge, amount: int, collected: int, currency: str
) -> CaptureTransactions:
    """Returns what each balance transaction moved; nothing where Stripe never showed one."""
    transfer, fee = charge.transfer, charge.application_fee
    connected = transfer.connected_line if transfer else None
    nothing = StripeAmount(0, currency)
    transferred = amount_of(transfer.line if transfer else None, nothing)
    fee_line = amount_of(fee.line, StripeAmount(collected, currency)) if fee else nothing
    # On the connected account the fee is a field of the transaction that brought the money.
    fee_paid = nothing
    if connected is not None:
        fee_paid = connected.fee_settled if connected.fee else fee_line
    return CaptureTransactions(
        charge=amount_of(charge.line, nothing),
        transferred=transferred,
        received=amount_of(connected, nothing),
        fee=fee_line,
        fee_paid=fee_paid,
    )


def sync_charge(changes: ChangeSet, context: SyncContext) -> None:
    """Applies the charge of a SEPARATE payment once: the money is on the platform's balance."""
    charge, payment, operation = context.snapshot.charge, changes.payment, context.operation
    if charge is None:
        changes.report(DiscrepancyKind.CHARGE_MISSING, "the intent succeeded but shows no charge")
        return
    if payment.charged:
        _sync_processor_fee(changes, context, charge)
        return
    awaited = f"{charge.charge_id}:charge"
    # Also out of band, as for a capture.
    if charge.line is None and changes.await_line(awaited, context, operation=True):
        return
    settled = amount_of(charge.line, StripeAmount(0, payment.currency))
    amount = context.snapshot.amount_received
    by_us = payment.state in (State.CAPTURING, State.PROMOTING)
    ended = payment.state in (State.CANCELED, State.EXPIRED)
    out_of_band = not by_us and (payment.escrow_mode is EscrowMode.CARD_HOLD or ended)
    transfer_follows = (
        operation is not None
        and operation.kind is OperationKind.CAPTURE
        and operation.minor_units == amount
    )
    changes.take(
        transitions.charged(
            payment,
            amount,
            settled,
            charge_id=charge.charge_id,
            expire_time=context.now + context.holding_limit,
            out_of_band=out_of_band,
            next_operation_id=context.next_operation_id if transfer_follows else None,
            now=context.now,
        )
    )
    _sync_processor_fee(changes, context, charge)
    if out_of_band:
        _report_out_of_band_capture(changes, payment.state)
    if settled.currency != payment.currency:
        changes.report(
            DiscrepancyKind.SETTLED_IN_OTHER_CURRENCY, f"Stripe settled in {settled.currency}"
        )
    if operation is None:
        return
    if transfer_follows:
        changes.next_operation = _transfer_after_charge(operation, charge)
        changes.settle()
    elif operation.kind is OperationKind.CAPTURE:
        changes.settle(_other_amount(changes, amount, operation))
    elif operation.kind is OperationKind.PROMOTE:
        same = amount == operation.minor_units
        changes.settle(None if same else _other_amount(changes, amount, operation))
    else:
        changes.settle(ended_out_of_band(payment, "charged"))


def _transfer_after_charge(operation: Operation, charge: Charge) -> NextOperation:
    capture = operation.payload_as(CapturePayload)
    assert capture.transfer is not None
    return NextOperation(
        OperationKind.TRANSFER,
        capture.transfer_amount,
        replace(capture.transfer, charge_id=charge.charge_id),
        operation.purpose,
    )


def sync_cancellation(changes: ChangeSet, context: SyncContext) -> None:
    """Applies a canceled intent: CANCELED, or EXPIRED if Stripe or a deadline ended it."""
    payment, snapshot, operation = changes.payment, context.snapshot, context.operation
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
    changes.take(transitions.ended_unpaid(payment, expired=expired, reason=reason, now=context.now))
    if operation is None:
        return
    if operation.kind is OperationKind.CANCEL:
        changes.settle()
    else:
        changes.settle(ended_out_of_band(payment, changes.payment.state.lower()))
