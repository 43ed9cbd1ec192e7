"""Applies transfer reversals, and plans the reversals that take an amount back from the expert."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from payment_service.domain import plans, transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.ledger import StripeAmount
from payment_service.domain.operation_payloads import ReversalLeg, ReversalPayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import Payment
from payment_service.domain.snapshot import PaymentSnapshot, Reversal, Transfer
from payment_service.domain.sync.changes import (
    ChangeSet,
    Movement,
    NextOperation,
    SyncContext,
    amount_of,
)


def apply_reversal(
    changes: ChangeSet,
    context: SyncContext,
    transfer: Transfer,
    reversal: Reversal,
    operation: Operation,
) -> None:
    """Books the reversal of our open operation, and plans the remaining ones."""
    amount, payload = operation.minor_units, operation.payload_as(ReversalPayload)
    legs, debt = payload.remaining_legs, payload.debt_after
    platform, connected = _amounts_of(reversal, transfer)
    next_id = next_reversal_id(context.next_operation_id, legs, debt)
    changes.take(
        transitions.transfer_reversed(
            changes.payment,
            reversal.reversal_id,
            amount,
            platform=platform,
            connected=connected,
            next_operation_id=next_id,
            now=context.now,
        )
    )
    continue_reversals(changes, legs, debt, operation.purpose, context.now)
    changes.settle()
    changes.movements.append(_reversed(amount, transfer, reversal))


def apply_out_of_band_reversal(
    changes: ChangeSet, transfer: Transfer, reversal: Reversal, now: datetime
) -> None:
    """Books a reversal that the platform keeps until an operator settles with the expert."""
    amount = _in_payment_currency(reversal.minor_units, transfer, changes.payment)
    platform, connected = _amounts_of(reversal, transfer)
    changes.take(
        transitions.reversed_out_of_band(
            changes.payment, reversal.reversal_id, amount, platform, connected, now
        )
    )
    changes.report(DiscrepancyKind.OUT_OF_BAND_REVERSAL, f"{reversal.reversal_id} of {amount}")
    changes.movements.append(_reversed(amount, transfer, reversal))


def _amounts_of(reversal: Reversal, transfer: Transfer) -> tuple[StripeAmount, StripeAmount]:
    platform = amount_of(reversal.line, StripeAmount(reversal.minor_units, transfer.currency))
    return platform, amount_of(reversal.connected_line, platform)


def _reversed(amount: int, transfer: Transfer, reversal: Reversal) -> Movement:
    return Movement(
        reversal.reversal_id, "reversal", amount, reversal.operation_id, transfer.transfer_id
    )


def next_reversal_id(next_operation_id: str, legs: Sequence[ReversalLeg], debt: int) -> str | None:
    """Returns the id for the transition before ``continue_reversals``.

    None means that nothing follows it, and the empty id that the expert's debt follows.
    """
    if legs:
        return next_operation_id
    return "" if debt else None


def continue_reversals(
    changes: ChangeSet,
    legs: Sequence[ReversalLeg],
    debt: int,
    purpose: OperationPurpose,
    now: datetime,
) -> None:
    """Plans the next transfer's reversal or, after the last one, records the expert's debt.

    ``debt`` is what no transfer covers, in minor units.
    """
    if legs:
        first, *others = legs
        changes.next_operation = NextOperation(
            OperationKind.REVERSE_TRANSFER,
            first.minor_units,
            ReversalPayload(
                transfer_id=first.transfer_id,
                transfer_minor_units=first.transfer_minor_units,
                remaining_legs=tuple(others),
                debt_after=debt,
            ),
            purpose,
        )
    elif debt:
        changes.take(
            transitions.expert_debt_recorded(changes.payment, debt, "nothing_left_to_reverse", now)
        )


def reversal_legs(
    changes: ChangeSet, snapshot: PaymentSnapshot, expert_amount: int
) -> tuple[list[ReversalLeg], int]:
    """Returns the reversals that take back ``expert_amount``, and the debt that they leave.

    All in minor units. The debt is what no transfer covers.
    """
    payment = changes.payment
    transfers = {transfer.transfer_id: transfer for transfer in snapshot.transfers}
    reversible = [
        plans.ReversibleTransfer(
            transfer.transfer_id, _in_payment_currency(transfer.left, transfer, payment)
        )
        for transfer in snapshot.transfers
    ]
    legs = [
        ReversalLeg(
            transfer_id=leg.transfer_id,
            minor_units=leg.minor_units,
            transfer_minor_units=_in_transfer_currency(
                leg.minor_units, transfers[leg.transfer_id], payment
            ),
        )
        for leg in plans.plan_reversals(expert_amount, reversible)
    ]
    return legs, expert_amount - sum(leg.minor_units for leg in legs)


def _in_payment_currency(minor_units: int, transfer: Transfer, payment: Payment) -> int:
    """Converts an amount of a transfer into the payment's currency; exact if it is the same."""
    if transfer.currency == payment.currency:
        return minor_units
    # Stripe converts only destination charges: their one transfer has all that was captured.
    return minor_units * payment.captured // transfer.minor_units


def _in_transfer_currency(minor_units: int, transfer: Transfer, payment: Payment) -> int:
    """Converts an amount in the payment's currency into the transfer's, rounded down."""
    if transfer.currency == payment.currency:
        return minor_units
    return minor_units * transfer.minor_units // payment.captured
