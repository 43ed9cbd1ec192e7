"""Applies the transfers of a SEPARATE charge."""

from __future__ import annotations

from datetime import datetime

from payment_service.domain import transitions
from payment_service.domain.operation_payloads import RefundPayload, TransferPayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.snapshot import PaymentSnapshot, Transfer
from payment_service.domain.sync.changes import ChangeSet, Movement, NextOperation
from payment_service.domain.sync.superseded import ended_out_of_band, out_of_band_refunds


def sync_transfers(
    changes: ChangeSet,
    snapshot: PaymentSnapshot,
    operation: Operation | None,
    booked_ids: frozenset[str],
    next_operation_id: str,
    now: datetime,
) -> None:
    """What went to the expert of a SEPARATE charge, by our operations or by hand."""
    for transfer in snapshot.separate_transfers:
        if transfer.transfer_id in booked_ids or not changes.payment.charged:
            continue
        ours = operation is not None and transfer.operation_id == operation.operation_id
        if transfer.line is None or transfer.connected_line is None:
            changes.defer(operation=ours)
            continue
        sent, received = transfer.line.settled, transfer.connected_line.settled
        part = transfer.minor_units
        covered = operation is not None and operation.minor_units <= changes.payment.held
        if operation is not None and ours and covered:
            out_of_band = sum(
                refund.minor_units for refund in out_of_band_refunds(snapshot, booked_ids)
            )
            _apply_transfer(changes, transfer, operation, out_of_band, next_operation_id, now)
        else:
            if operation is not None and ours:
                # It arrived after its money was taken to be given back: the platform's loss.
                why = "what it was to send was refunded out of band"
                changes.take(transitions.capture_abandoned(changes.payment, why, now))
                changes.settle(ended_out_of_band(changes.payment, "refunded"))
            changes.take(
                transitions.transferred_out_of_band(
                    changes.payment, transfer.transfer_id, part, sent, received, now
                )
            )
            changes.report("out_of_band_transfer", f"{transfer.transfer_id} of {part}")
        changes.movements.append(
            Movement(transfer.transfer_id, "transfer", transfer.minor_units, transfer.operation_id)
        )


def _apply_transfer(
    changes: ChangeSet,
    transfer: Transfer,
    operation: Operation,
    out_of_band: int,
    next_operation_id: str,
    now: datetime,
) -> None:
    """The transfer that our open operation asked for; the rest may have to go back.

    ``by_hand`` has gone back already, is seen together with it, and is followed next.
    """
    assert transfer.line is not None
    assert transfer.connected_line is not None
    payment, share = changes.payment, operation.capture_split
    payload = operation.payload_as(TransferPayload)
    # By hand what is owed to the client is paid first, and only then what is held.
    back = max(out_of_band - payment.client_payable, 0)
    rest = max(payment.held - share.part - back, 0) if payload.final else 0
    changes.take(
        transitions.transferred(
            payment,
            share,
            transfer.line.settled,
            transfer.connected_line.settled,
            transfer_id=transfer.transfer_id,
            next_operation_id=next_operation_id if rest else None,
            now=now,
        )
    )
    if transfer.minor_units != share.sent:
        changes.report(
            "amount_mismatch", f"transferred {transfer.minor_units}, asked for {share.sent}"
        )
    if rest:
        changes.next_operation = NextOperation(
            OperationKind.REFUND,
            rest,
            RefundPayload(payment_intent_id=payment.payment_intent_id, reason=payload.notes),
            OperationPurpose.REMAINDER,
        )
    changes.settle()
