"""Judges whether the expert still owes what a reversal would take back.

What a reversal takes back is on the books as debt before it is sent. The debt can be less only in a
restored database: there the reversal is planned again, or for the first time, and a later capture
or collection has taken the same debt. While such a database catches up with Stripe, the books may
not know of that yet.
"""

from __future__ import annotations

from payment_service.domain.operations import Operation
from payment_service.domain.payment import Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.sync.superseded import CATCHES_UP, RECOVERED_BESIDE


def is_in_doubt(tx: Transaction, payment: Payment, minor_units: int) -> bool:
    """Returns whether a reversal that is planned just now may take back what was paid."""
    return bool(_why_not(tx, payment, minor_units)) or tx.catches_up()


def why_not_reversed(tx: Transaction, operation: Operation) -> str:
    """Returns why a reversal would take back more than the expert owes, or "" if it would not.

    It is ``CATCHES_UP`` while the books cannot say that yet.
    """
    if tx.catches_up():
        return CATCHES_UP
    payment = tx.lock_payment(operation.payment_id)
    return _why_not(tx, payment, operation.minor_units) if payment is not None else ""


def _why_not(tx: Transaction, payment: Payment, minor_units: int) -> str:
    owed = tx.booked_debt(payment.expert_id, payment.currency)
    if owed >= minor_units:
        return ""
    return f"{RECOVERED_BESIDE}: of {minor_units} the expert owes {max(owed, 0)}"
