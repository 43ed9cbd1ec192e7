"""What is parked gives way: a repayment that waits for an operator locks no other money."""

from __future__ import annotations

from payment_service.domain import escrow
from payment_service.domain.escrow import Payment, Transition
from payment_service.domain.operations import OperationState
from payment_service.domain.ports import Cause, Transaction


def repayment_making_way(tx: Transaction, payment: Payment, why: str) -> Transition | None:
    """The giving up of a parked repayment, so that money that is not owed can be moved.

    What is owed stays owed, and `settle.park_repayment` parks another one when that is over. None
    where no repayment is parked, or where it may be on its way: that is looked for, not given up.
    It cannot be resumed meanwhile, since the payment's lock is ours.
    """
    if not (payment.held or payment.net) or not repayment_parked(tx, payment):
        return None
    return escrow.repayment_given_up(payment, why, tx.now)


def repayment_parked(tx: Transaction, payment: Payment) -> bool:
    """Whether a repayment is parked of which nothing is on its way."""
    if not payment.client_owed or not payment.operation_id:
        return False
    operation = tx.operation(payment.operation_id)
    if operation is None or not operation.params.get("owed"):
        return False
    return operation.state is OperationState.PARKED and operation.unsure_until is None


def make_way(
    tx: Transaction, payment: Payment, given_up: Transition | None, cause: Cause
) -> Payment:
    """Give up what is parked on the payment, if that is planned. The payment as it then stands."""
    if given_up is None:
        return payment
    tx.settle_operation(payment.operation_id, OperationState.REFUSED, "given up")
    tx.record(given_up, cause)
    return given_up.after
