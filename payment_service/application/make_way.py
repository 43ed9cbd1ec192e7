"""What is parked gives way: a repayment that waits for an operator locks no other money."""

from __future__ import annotations

from payment_service.domain import escrow
from payment_service.domain.escrow import Payment, Transition
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.ports import Cause, Transaction


def repayment_making_way(tx: Transaction, payment: Payment, why: str) -> Transition | None:
    """The giving up of a parked repayment, so that money that is not owed can be moved.

    What is owed stays owed, and `settle.park_repayment` parks another one when that is over. None
    where no repayment is parked, or where it may be on its way: that is looked for, not given up.
    It cannot be resumed meanwhile, since the payment's lock is ours.
    """
    if not payment.client_owed or not (payment.held or payment.net):
        return None
    operation = open_repayment(tx, payment)
    if operation is None or not may_be_given_up(operation):
        return None
    return escrow.repayment_given_up(payment, why, tx.now)


def open_repayment(tx: Transaction, payment: Payment) -> Operation | None:
    """What is under way on the payment, if that is to pay the client again."""
    operation = tx.operation(payment.operation_id) if payment.operation_id else None
    return operation if operation is not None and operation.params.get("owed") else None


def may_be_given_up(repayment: Operation) -> bool:
    """Whether it is parked and nothing of it is on its way."""
    return repayment.state is OperationState.PARKED and repayment.unsure_until is None


def make_way(
    tx: Transaction, payment: Payment, given_up: Transition | None, cause: Cause
) -> Payment:
    """Give up what is parked on the payment, if that is planned. The payment as it then stands."""
    if given_up is None:
        return payment
    tx.settle_operation(payment.operation_id, OperationState.REFUSED, "given up")
    tx.record(given_up, cause)
    return given_up.after
