"""Applies the transfers of a SEPARATE charge."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from payment_service.domain import transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.ledger import StripeAmount
from payment_service.domain.operation_payloads import RefundPayload, TransferPayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import Payment
from payment_service.domain.snapshot import PaymentSnapshot, Transfer
from payment_service.domain.sync.changes import (
    ChangeSet,
    Discrepancy,
    Movement,
    NextOperation,
    SyncContext,
    amount_of,
)
from payment_service.domain.sync.superseded import ended_out_of_band, out_of_band_refunds


def without_foreign_transfers(
    snapshot: PaymentSnapshot,
    payment: Payment,
    account_ids: Collection[str],
    known: Collection[str],
) -> tuple[PaymentSnapshot, list[Discrepancy]]:
    """Returns the snapshot with the payment's own transfers only, and what to report of others.

    Anybody can send a transfer under the payment's label. It is the payment's if it went to an
    account of its expert, in its currency. ``known`` are the ids of booked transfers and of the
    open operation. No other transfer may be counted, or be reversed for a refund.
    """
    own, foreign = [], []
    for transfer in snapshot.separate_transfers:
        to_expert = transfer.destination_account_id in account_ids
        fits = to_expert and transfer.currency == payment.currency
        if fits or transfer.transfer_id in known or transfer.operation_id in known:
            own.append(transfer)
        else:
            foreign.append(_foreign(payment, transfer, to_expert=to_expert))
    return replace(snapshot, separate_transfers=tuple(own)), foreign


def _foreign(payment: Payment, transfer: Transfer, *, to_expert: bool) -> Discrepancy:
    why = "not in the payment's currency" if to_expert else "not to the payment's expert"
    return Discrepancy(
        payment.payment_id,
        DiscrepancyKind.FOREIGN_TRANSFER,
        f"{transfer.transfer_id} to {transfer.destination_account_id}: {why}",
        found=transfer.minor_units,
        currency=transfer.currency,
        remediation="it is not booked and never reversed for a refund: decide what it was",
    )


def sync_transfers(changes: ChangeSet, context: SyncContext) -> None:
    """Books what was sent to the expert, by our operation or out of band."""
    operation = context.operation
    for transfer in context.snapshot.separate_transfers:
        if transfer.transfer_id in context.booked_ids or not changes.payment.charged:
            continue
        ours = context.is_made_by_operation(transfer.operation_id)
        complete = transfer.line is not None and transfer.connected_line is not None
        if not complete and changes.await_line(transfer.transfer_id, context, operation=ours):
            continue
        if operation is not None and ours and operation.minor_units <= changes.payment.held:
            _apply_transfer(changes, context, transfer, operation)
        else:
            if ours:
                # It arrived after its money was taken for a refund: the platform bears the loss.
                why = "what it was to send was refunded out of band"
                changes.take(transitions.capture_abandoned(changes.payment, why, context.now))
                changes.settle(ended_out_of_band(changes.payment, "refunded"))
            changes.take(
                transitions.transferred_out_of_band(
                    changes.payment,
                    transfer.transfer_id,
                    transfer.minor_units,
                    *_amounts_of(transfer),
                    context.now,
                )
            )
            changes.report(
                DiscrepancyKind.OUT_OF_BAND_TRANSFER,
                f"{transfer.transfer_id} of {transfer.minor_units}",
            )
        changes.movements.append(
            Movement(transfer.transfer_id, "transfer", transfer.minor_units, transfer.operation_id)
        )
    if operation is None or context.snapshot.empty_transfer != operation.operation_id:
        return
    if not changes.settled and operation.minor_units <= changes.payment.held:
        _apply_transfer(changes, context, None, operation)


def _amounts_of(transfer: Transfer) -> tuple[StripeAmount, StripeAmount]:
    """Returns what left the platform, and what arrived; nothing where a line never came."""
    nothing = StripeAmount(0, transfer.currency)
    return amount_of(transfer.line, nothing), amount_of(transfer.connected_line, nothing)


def _apply_transfer(
    changes: ChangeSet, context: SyncContext, transfer: Transfer | None, operation: Operation
) -> None:
    """Books the transfer of our open operation. A final one is followed by the remainder's refund.

    ``transfer`` None means that it was empty. Refunds that are in the same snapshot and not booked
    yet are booked next: they reduce the remainder.
    """
    payment, split = changes.payment, operation.capture_split
    nothing = StripeAmount(0, payment.currency)
    payload = operation.payload_as(TransferPayload)
    refunds = out_of_band_refunds(context)
    # An out-of-band refund pays what is payable to the client first, and only then what is held.
    refunded = max(sum(one.minor_units for one in refunds) - payment.client_payable, 0)
    remainder = max(payment.held - split.amount - refunded, 0) if payload.final else 0
    changes.take(
        transitions.transferred(
            payment,
            split,
            *(_amounts_of(transfer) if transfer else (nothing, nothing)),
            transfer_id=transfer.transfer_id if transfer else "",
            next_operation_id=context.next_operation_id if remainder else None,
            now=context.now,
        )
    )
    if transfer is not None and transfer.minor_units != split.sent:
        changes.report(
            DiscrepancyKind.AMOUNT_MISMATCH,
            f"transferred {transfer.minor_units}, requested {split.sent}",
        )
    if remainder:
        changes.next_operation = NextOperation(
            OperationKind.REFUND,
            remainder,
            RefundPayload(payment_intent_id=payment.payment_intent_id, reason=payload.notes),
            OperationPurpose.REMAINDER,
        )
    changes.settle()
