"""Pre-empts a parked repayment, so that it does not block other money."""

from __future__ import annotations

from payment_service.domain import transitions
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.payment import Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause
from payment_service.domain.state_machine import Transition


def plan_preemption(tx: Transaction, payment: Payment, why: str) -> Transition | None:
    """Returns the end of a parked repayment, so that other money of the payment can be moved.

    The client payable stays, and `start.park_repayment` parks another repayment afterwards. None if
    no repayment is parked, or if a request of it may still take effect. It cannot be resumed
    meanwhile: that needs the payment's lock, which is held here.
    """
    if not payment.client_payable or not (payment.held or payment.net):
        return None
    operation = open_repayment(tx, payment)
    if operation is None or not is_preemptible(operation):
        return None
    return transitions.repayment_abandoned(payment, why, tx.now)


def open_repayment(tx: Transaction, payment: Payment) -> Operation | None:
    """Returns the payment's open operation if it is a repayment, or None."""
    operation = tx.operation(payment.operation_id) if payment.operation_id else None
    return operation if operation is not None and operation.is_repayment else None


def is_preemptible(repayment: Operation) -> bool:
    """Returns whether it is parked and no request of it may still take effect."""
    return repayment.state is OperationState.PARKED and repayment.unsure_until is None


def preempt(
    tx: Transaction, payment: Payment, preempted: Transition | None, cause: Cause
) -> Payment:
    """Ends the parked repayment, if that is planned. Returns the payment as it stands then."""
    if preempted is None:
        return payment
    tx.settle_operation(payment.operation_id, OperationState.REFUSED, "preempted")
    tx.record(preempted, cause)
    return preempted.after
