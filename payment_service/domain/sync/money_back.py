"""Applies what goes back at Stripe: refunds, transfer reversals and fee refunds."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from payment_service.domain import plans, transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import Refusal
from payment_service.domain.ledger import LOSSES, RefundSplit, StripeAmount
from payment_service.domain.operation_payloads import RefundPayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import Failure, Payment, WaitingFor, WaitingReason
from payment_service.domain.processor_errors import refused_by_processor
from payment_service.domain.snapshot import FeeRefund, Refund
from payment_service.domain.state_machine import Transition
from payment_service.domain.sync.changes import (
    ChangeSet,
    Movement,
    NextOperation,
    SyncContext,
    amount_of,
)
from payment_service.domain.sync.reversals import (
    apply_collection,
    apply_out_of_band_reversal,
    apply_reversal,
    continue_reversals,
    next_reversal_id,
    reversal_legs,
)
from payment_service.domain.sync.superseded import (
    ended_out_of_band,
    may_be_in_flight,
    remainder_not_returned,
)


def sync_money_back(changes: ChangeSet, context: SyncContext) -> None:
    """Books the refunds, reversals and fee refunds that are not booked yet; ours first."""
    if not changes.payment.charged:
        return
    operation, snapshot = context.operation, context.snapshot
    ours_first = sorted(
        snapshot.refunds, key=lambda refund: not context.is_made_by_operation(refund.operation_id)
    )
    for refund in ours_first:
        if refund.refund_id in context.booked_ids:
            continue
        if operation is not None and context.is_made_by_operation(refund.operation_id):
            _apply_refund(changes, context, refund, operation)
        else:
            reserved = may_be_in_flight(changes, context)
            _apply_out_of_band_refund(changes, context, refund, reserved)
    for transfer in snapshot.transfers:
        for reversal in transfer.reversals:
            if reversal.reversal_id in context.booked_ids:
                continue
            if operation is not None and context.is_made_by_operation(reversal.operation_id):
                apply_reversal(changes, context, transfer, reversal, operation)
            elif reversal.operation_id in context.collections:
                apply_collection(changes, context, transfer, reversal)
            else:
                apply_out_of_band_reversal(changes, transfer, reversal, context.now)
    application_fee = snapshot.charge.application_fee if snapshot.charge else None
    for fee_refund in application_fee.refunds if application_fee else ():
        if fee_refund.fee_refund_id not in context.booked_ids:
            _apply_fee_refund(changes, fee_refund, context.now)


def _apply_fee_refund(changes: ChangeSet, fee_refund: FeeRefund, now: datetime) -> None:
    """Books an application fee's refund. This service makes none, so each is out of band."""
    amount = fee_refund.minor_units
    platform = amount_of(fee_refund.line, StripeAmount(amount, changes.payment.currency))
    connected = StripeAmount(platform.minor_units, platform.currency)
    changes.take(
        transitions.fee_refunded_out_of_band(
            changes.payment, fee_refund.fee_refund_id, amount, platform, connected, now
        )
    )
    changes.report(DiscrepancyKind.OUT_OF_BAND_FEE_REFUND, f"{fee_refund.fee_refund_id}")
    changes.movements.append(Movement(fee_refund.fee_refund_id, "fee_refund", amount))


def _apply_refund(
    changes: ChangeSet, context: SyncContext, refund: Refund, operation: Operation
) -> None:
    """Books the refund of our open operation, and plans the expert's reversals."""
    if refund.waits_for_funds:
        _accept_refund(changes, refund, operation, context.now)
        return
    if _waits(changes, context, refund, operation=True):
        return
    if operation.is_repayment:
        _apply_repayment(changes, context, refund)
        return
    changes.movements.append(_refunded(refund))
    if refund.failed:
        _apply_refused_refund(changes, refund, operation, context.now)
        return
    payment, now = changes.payment, context.now
    if payment.pending_refund:  # It was divided when it was accepted.
        split = RefundSplit(from_pending=refund.minor_units)
    else:
        # Split again: an out-of-band refund may have been booked since the plan was made.
        split = plans.refund_split_of(payment, refund.minor_units, payment.held)
    legs, debt = reversal_legs(changes, context, split.expert_amount)
    next_id = next_reversal_id(context.next_operation_id, legs, debt)
    settled = _settled(refund, payment)
    changes.take(
        transitions.client_refunded(payment, refund.refund_id, split, settled, next_id, now)
    )
    continue_reversals(changes, legs, debt, operation.purpose, now)
    changes.settle()


def _accept_refund(changes: ChangeSet, refund: Refund, operation: Operation, now: datetime) -> None:
    """Records that our refund waits for the platform's balance. Nothing is moved yet.

    The expert owes his amount from now on. It is collected beside this operation, so that it can
    pay for the refund.
    """
    payment = changes.payment
    changes.accept()
    if payment.waiting_reason is WaitingReason.REFUND_PENDING_FUNDS:
        return
    why = "Stripe waits for the platform's balance"
    if operation.is_repayment or payment.pending_refund:
        reason = WaitingReason.REFUND_PENDING_FUNDS
        changes.take(transitions.waiting_changed(payment, WaitingFor.PROCESSOR, why, now, reason))
        return
    split = plans.refund_split_of(payment, refund.minor_units, payment.held)
    changes.take(transitions.refund_accepted(payment, refund.refund_id, split, why, now))


def _refunded(refund: Refund) -> Movement:
    return Movement(refund.refund_id, "refund", refund.minor_units, refund.operation_id)


def _settled(refund: Refund, payment: Payment) -> StripeAmount:
    """Returns what the refund took from the platform; nothing if its line never came."""
    return amount_of(refund.line, StripeAmount(0, payment.currency))


def _apply_repayment(changes: ChangeSet, context: SyncContext, refund: Refund) -> None:
    """Books the refund that pays the client again."""
    payment, now = changes.payment, context.now
    if refund.minor_units > payment.client_payable:
        # Somebody else paid the client meanwhile: this one is booked as an out-of-band refund.
        changes.take(transitions.repayment_abandoned(payment, "paid out of band as well", now))
        changes.settle(ended_out_of_band(payment, "refunded"))
        _apply_out_of_band_refund(changes, context, refund, 0)
        return
    changes.movements.append(_refunded(refund))
    if refund.failed and refund.line is None:  # Nothing was ever moved.
        changes.movements.append(Movement(failure_id(refund), "refund_failure", refund.minor_units))
        why = "Stripe never paid it"
        changes.take(transitions.repayment_abandoned(payment, why, now))
        changes.report(
            DiscrepancyKind.REFUND_FAILED, f"{refund.refund_id} of {refund.minor_units} not paid"
        )
        changes.settle(_refused_refund(payment))
        return
    amount, settled = refund.minor_units, _settled(refund, payment)
    changes.take(transitions.client_repaid(payment, refund.refund_id, amount, settled, now))
    changes.settle(_refused_refund(payment) if refund.failed else None)
    if refund.failed:  # It failed once more: still payable, by a new operation for the operator.
        _apply_failed_refund(changes, refund, now)


def _refused_refund(payment: Payment) -> Refusal:
    return refused_by_processor("refund_failed", "", payment_id=payment.payment_id)


def _apply_refused_refund(
    changes: ChangeSet, refund: Refund, operation: Operation, now: datetime
) -> None:
    """Books our refund that failed before it was booked: nothing has changed for the client."""
    payment = changes.payment
    changes.movements.append(Movement(failure_id(refund), "refund_failure", refund.minor_units))
    _book_refund_and_failure(changes, refund, now)
    failure = Failure("refund_failed", "", "Stripe could not refund the client", now)
    changes.take(transitions.refund_refused(changes.payment, failure))
    if payment.pending_refund:
        # The caller's answer said that the client gets it, and the expert has paid for it.
        changes.report(
            DiscrepancyKind.REFUND_FAILED, f"{refund.refund_id} of {refund.minor_units} not paid"
        )
        changes.settle(_refused_refund(payment))
    elif operation.returns_remainder:
        changes.discrepancies.append(remainder_not_returned(payment, operation, "refund_failed"))
        changes.settle()
    else:
        changes.settle(_refused_refund(payment))


def _apply_out_of_band_refund(
    changes: ChangeSet, context: SyncContext, refund: Refund, reserved: int
) -> None:
    """Books a refund that pays the client payable first, then out of escrow, then what was paid.

    ``reserved`` minor units of the escrow may be in flight to the expert. A refund that does not
    fit beside them is deferred: what it was paid from is known only afterwards.
    """
    payment, now = changes.payment, context.now
    if _waits(changes, context, refund, operation=False):
        return
    if refund.failed:  # It failed before a snapshot showed it; at Stripe both cancel out.
        changes.movements += [
            Movement(refund.refund_id, "refund", refund.minor_units),
            Movement(failure_id(refund), "refund_failure", refund.minor_units),
        ]
        _book_refund_and_failure(changes, refund, now)
        changes.report(DiscrepancyKind.OUT_OF_BAND_REFUND, f"{refund.refund_id} bounced")
        return
    payable = min(refund.minor_units, payment.client_payable)
    remainder = refund.minor_units - payable
    if reserved and remainder > payment.held - reserved:
        changes.defer(operation=False)
        return
    from_escrow = min(remainder, payment.held)
    if remainder - from_escrow > payment.net:
        available = payable + from_escrow + payment.net
        changes.report(
            DiscrepancyKind.REFUND_EXCEEDS_NET,
            f"{refund.refund_id}: {refund.minor_units} > {available}",
        )
        return
    split = replace(plans.refund_split_of(payment, remainder, from_escrow), from_payable=payable)
    settled = _settled(refund, payment)
    changes.take(
        transitions.refunded_out_of_band(payment, refund.refund_id, split, settled, LOSSES, now)
    )
    changes.movements.append(_refunded(refund))
    of_payable = f", {payable} of it as owed" if payable else ""
    changes.report(
        DiscrepancyKind.OUT_OF_BAND_REFUND,
        f"{refund.refund_id} of {refund.minor_units}{of_payable}",
    )


def sync_failed_refunds(changes: ChangeSet, context: SyncContext) -> None:
    """Books the failures of refunds that are on the books.

    This comes before all other refunds, so that those pay the client payable that it leaves.
    """
    for refund in context.snapshot.refunds:
        failed_since = (
            refund.failed
            and refund.refund_id in context.booked_ids
            and failure_id(refund) not in context.booked_ids
        )
        if not failed_since or not changes.payment.charged:
            continue
        # Booked under the refund's own transaction, the failure's could never be explained.
        if not _waits(changes, context, refund, operation=False):
            _apply_failed_refund(changes, refund, context.now)


def _apply_failed_refund(changes: ChangeSet, refund: Refund, now: datetime) -> None:
    settled = amount_of(refund.failure_line, StripeAmount(0, changes.payment.currency))
    changes.take(
        transitions.refund_failed(
            changes.payment, refund.refund_id, refund.minor_units, settled, now
        )
    )
    changes.movements.append(Movement(failure_id(refund), "refund_failure", refund.minor_units))
    changes.report(
        DiscrepancyKind.REFUND_FAILED, f"{refund.refund_id} of {refund.minor_units} bounced"
    )


def repayment(
    payment: Payment, operation_id: str, now: datetime
) -> tuple[Transition, NextOperation] | None:
    """Returns the refund that pays the client again after failed refunds, to be recorded parked.

    None while another operation is open: the transaction that ends that one plans it again.
    """
    if not payment.client_payable or payment.operation_id:
        return None
    operation = NextOperation(
        OperationKind.REFUND,
        payment.client_payable,
        RefundPayload(payment_intent_id=payment.payment_intent_id),
        OperationPurpose.REPAYMENT,
    )
    return transitions.repayment_due(payment, operation_id, now), operation


def _book_refund_and_failure(changes: ChangeSet, refund: Refund, now: datetime) -> None:
    """Books a refund that failed before it was booked. Without transactions it moved nothing."""
    if refund.line is not None and refund.failure_line is not None:
        changes.take(
            transitions.refund_failed_unbooked(
                changes.payment,
                refund.refund_id,
                refund.minor_units,
                refund.line.settled,
                refund.failure_line.settled,
                now,
            )
        )


def _waits(changes: ChangeSet, context: SyncContext, refund: Refund, *, operation: bool) -> bool:
    """Waits until Stripe shows the refund's balance transaction, or has none for too long.

    A refund that Stripe itself calls pending is not final: that can take days.
    """
    if not _lacks_balance_transaction(refund):
        return False
    if refund.failed:
        return changes.await_line(failure_id(refund), context, operation=operation)
    if refund.status == "succeeded":
        return changes.await_line(refund.refund_id, context, operation=operation)
    changes.defer(operation=operation)
    return True


def _lacks_balance_transaction(refund: Refund) -> bool:
    """Whether Stripe has not moved the money yet, or not moved it back after a failure."""
    if refund.failed:
        return refund.line is not None and refund.failure_line is None
    return refund.line is None


def failure_id(refund: Refund) -> str:
    """The id of the movement that books a refund's later failure."""
    return f"{refund.refund_id}:failed"
