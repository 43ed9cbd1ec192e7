"""Pre-empts a parked repayment, so that it does not block other money."""

from __future__ import annotations

from payment_service.domain import transitions
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.payment import Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause
from payment_service.domain.state_machine import Transition


def plan_preemption(tx: Transaction, payment: Payment, why: str) -> Transition | None:
    """The giving up of a parked repayment, so that money that is not owed can be moved.

    What is owed stays owed, and `settle.park_repayment` parks another one when that is over. None
    where no repayment is parked, or where it may be on its way: that is looked for, not given up.
    It cannot be resumed meanwhile, since the payment's lock is ours.
    """
    if not payment.client_payable or not (payment.held or payment.net):
        return None
    operation = open_repayment(tx, payment)
    if operation is None or not is_preemptible(operation):
        return None
    return transitions.repayment_abandoned(payment, why, tx.now)


def open_repayment(tx: Transaction, payment: Payment) -> Operation | None:
    """What is under way on the payment, if that is to pay the client again."""
    operation = tx.operation(payment.operation_id) if payment.operation_id else None
    return operation if operation is not None and operation.is_repayment else None


def is_preemptible(repayment: Operation) -> bool:
    """Whether it is parked and nothing of it is on its way."""
    return repayment.state is OperationState.PARKED and repayment.unsure_until is None


def preempt(
    tx: Transaction, payment: Payment, given_up: Transition | None, cause: Cause
) -> Payment:
    """Give up what is parked on the payment, if that is planned. The payment as it then stands."""
    if given_up is None:
        return payment
    tx.settle_operation(payment.operation_id, OperationState.REFUSED, "given up")
    tx.record(given_up, cause)
    return given_up.after
