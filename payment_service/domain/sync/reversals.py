"""Applies transfer reversals, and plans the reversals that take an amount back from the expert."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from payment_service.domain import money, plans, transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.ledger import StripeAmount
from payment_service.domain.operation_payloads import ReversalLeg, ReversalPayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import Payment
from payment_service.domain.snapshot import Reversal, Transfer
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
    if reversal.failed:
        owed = amount + payload.unrecovered
        changes.take(
            transitions.expert_debt_recorded(changes.payment, owed, "reversal_failed", context.now)
        )
        changes.settle()
        return
    if not reversal.is_done:
        changes.accept()
        return
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


def apply_collection(
    changes: ChangeSet, context: SyncContext, transfer: Transfer, reversal: Reversal
) -> None:
    """Books a reversal that collects the expert's debt, beside the payment's own operation."""
    operation = context.collections[reversal.operation_id]
    if not reversal.is_done:
        if reversal.failed:
            changes.collected[operation.operation_id] = False
        else:
            changes.collecting.add(operation.operation_id)
        return
    amount = operation.minor_units
    platform, connected = _amounts_of(reversal, transfer)
    changes.take(
        transitions.debt_collected(
            changes.payment,
            reversal.reversal_id,
            amount,
            platform=platform,
            connected=connected,
            operation_id=operation.operation_id,
            now=context.now,
        )
    )
    changes.movements.append(_reversed(amount, transfer, reversal))
    changes.collected[operation.operation_id] = True


def apply_out_of_band_reversal(
    changes: ChangeSet, transfer: Transfer, reversal: Reversal, now: datetime
) -> None:
    """Books a reversal that the platform keeps until an operator settles with the expert."""
    if not reversal.is_done:
        return
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
    changes: ChangeSet, context: SyncContext, expert_amount: int
) -> tuple[list[ReversalLeg], int]:
    """Returns the reversals that take back ``expert_amount``, and the debt that they leave.

    All in minor units. The debt is what no transfer covers.
    """
    payment, snapshot = changes.payment, context.snapshot
    transfers = {transfer.transfer_id: transfer for transfer in snapshot.transfers}
    reversible = [
        plans.ReversibleTransfer(
            transfer.transfer_id, _in_payment_currency(transfer.left, transfer, payment)
        )
        for transfer in snapshot.transfers
    ]
    legs = []
    for leg in plans.plan_reversals(expert_amount, reversible):
        transfer = transfers[leg.transfer_id]
        before = context.reversed_amounts.get(leg.transfer_id, 0)
        amount = in_transfer_currency(leg.minor_units, transfer, payment, before)
        if amount:  # Stripe reverses no part of a unit. It is debt until the next reversal.
            legs.append(
                ReversalLeg(
                    transfer_id=leg.transfer_id,
                    minor_units=leg.minor_units,
                    transfer_minor_units=amount,
                )
            )
    return legs, expert_amount - sum(leg.minor_units for leg in legs)


def _in_payment_currency(minor_units: int, transfer: Transfer, payment: Payment) -> int:
    """Converts an amount of a transfer into the payment's currency; exact if it is the same."""
    if transfer.currency == payment.currency:
        return minor_units
    # Stripe converts only destination charges: their one transfer has all that was captured.
    return minor_units * payment.captured // transfer.minor_units


def in_transfer_currency(
    minor_units: int, transfer: Transfer, payment: Payment, reversed_before: int
) -> int:
    """Converts a reversal's amount from the payment's currency into the transfer's.

    The sum of all reversals is rounded down, not each: so that parts take back as much as the
    whole. ``reversed_before`` is what is reversed in the books, in the payment's currency.
    """
    if transfer.currency == payment.currency:
        return minor_units
    total, captured = transfer.minor_units, payment.captured
    reached = (reversed_before + minor_units) * total // captured
    return max(min(reached - reversed_before * total // captured, transfer.left), 0)


def collectible(
    most: int, available: int, transfer: Transfer, payment: Payment, reversed_before: int
) -> tuple[int, int]:
    """Returns what a reversal of this transfer can collect of a debt of ``most``.

    In the payment's currency and in the transfer's. ``available`` is what the expert's account has
    in the transfer's currency. (0, 0) if nothing can be taken.
    """
    bearable = min(transfer.left, available)
    amount = min(most, _in_payment_currency(max(bearable, 0), transfer, payment))
    amount -= amount % money.step(payment.currency)
    taken = in_transfer_currency(amount, transfer, payment, reversed_before)
    if taken > bearable:  # The conversion may round up by one unit of the transfer.
        amount -= -(-payment.captured // transfer.minor_units)
        amount -= amount % money.step(payment.currency)
        taken = in_transfer_currency(max(amount, 0), transfer, payment, reversed_before)
    return (amount, taken) if amount > 0 and taken > 0 else (0, 0)
