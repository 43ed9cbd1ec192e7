"""Records operations again that the database has lost, from their marks at Stripe.

A restored backup, or a replica that was behind when it took over, is older than Stripe. What this
installation did meanwhile carries its marks at Stripe. Such an operation is recorded again as it
was, and the snapshot then ends it like any other. So it is neither done twice nor taken for
somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from payment_service.application.operations.preempt_repayment import plan_preemption, preempt
from payment_service.application.operations.recovered import sent_operation
from payment_service.domain import plans, transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.ledger import CaptureSplit
from payment_service.domain.marks import MarkedOperation, marked_operation, unbooked_operations
from payment_service.domain.operation_payloads import (
    CapturePayload,
    RefundPayload,
    TransferPayload,
)
from payment_service.domain.operations import (
    Operation,
    OperationKind,
    OperationPurpose,
    OperationState,
)
from payment_service.domain.payment import Payment, State
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause
from payment_service.domain.snapshot import PaymentSnapshot, Reversal
from payment_service.domain.state_machine import Transition
from payment_service.domain.sync.changes import Discrepancy
from payment_service.domain.sync.superseded import described

_PAYS_EXPERT = (OperationKind.CAPTURE, OperationKind.TRANSFER)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a snapshot showed of operations that the database has lost."""

    payment: Payment
    booked_ids: frozenset[str]
    #: The open operation by now: the one before, or the first lost one.
    operation: Operation | None
    #: The operations that are still lost, oldest first.
    lost: Sequence[MarkedOperation] = ()
    #: Whether one was recorded again.
    has_recorded: bool = False
    #: The open operation has asked Stripe for another amount than the books say.
    discrepancies: Sequence[Discrepancy] = ()

    def moved_beside(self, next_operation_id: str) -> Sequence[str]:
        """Describes what forbids to send the open operation, or the one that follows from it.

        If Stripe shows the one that follows, nothing is sent: it ends with the next snapshot.
        """
        if any(one.operation_id == next_operation_id for one in self.lost):
            return ()
        return [described(one.kind.value, one.object_id, one.minor_units) for one in self.lost]

    def visible(self, snapshot: PaymentSnapshot) -> PaymentSnapshot:
        """Returns the snapshot without what the lost operations have made at Stripe."""
        if any(isinstance(one.payload, CapturePayload) for one in self.lost):
            return snapshot.before_capture()
        return snapshot.without([one.object_id for one in self.lost])


def recover_lost(
    tx: Transaction,
    payment: Payment,
    operation: Operation | None,
    snapshot: PaymentSnapshot,
    cause: Cause,
) -> Recovery:
    """Records the oldest lost operation again, if none is open and the payment allows it.

    The operations are recorded one by one, each with a snapshot of its own, in the order in which
    they were made. Requires the payment's lock.
    """
    booked = tx.booked_movement_ids(payment.payment_id)
    marked = unbooked_operations(payment, snapshot, booked, tx.installation_id)
    if not marked:
        return Recovery(payment, booked, operation)
    own = next((one for one in marked if _is(one, operation)), None)
    found: Sequence[Discrepancy] = ()
    if operation is not None and own is not None:
        operation, found = _as_at_stripe(tx, operation, own)
    others = [one for one in marked if not _is(one, operation)]
    known = tx.known_operations([one.operation_id for one in others])
    lost = [one for one in others if one.operation_id not in known]
    if not lost:
        return Recovery(payment, booked, operation, discrepancies=found)
    first = lost[0]
    preempted = plan_preemption(tx, payment, "the restored books follow Stripe")
    resting = preempted.after if preempted else payment
    if resting.operation_id or not _is_possible(resting, first):
        return Recovery(payment, booked, operation, lost, discrepancies=found)
    payment = preempt(tx, payment, preempted, cause)
    recorded = _record(tx, payment, first)
    transition = _start(tx, payment, first)
    tx.record(transition, cause)
    return Recovery(transition.after, booked, recorded, lost[1:], has_recorded=True)


@dataclass(frozen=True, slots=True)
class Collections:
    """The collections of the expert's debt that a snapshot shows and that are not booked yet."""

    #: As Stripe made them, by the operation's id.
    found: dict[str, Operation]
    #: Describes those that were recorded again.
    recorded: Sequence[str]
    #: The reversals of those that are recorded later, after the payment's own lost operations.
    postponed: Sequence[str]


def find_collections(
    tx: Transaction, payment: Payment, snapshot: PaymentSnapshot, recovery: Recovery
) -> Collections:
    """Returns the collections that are not booked yet.

    A lost one is recorded again once it is done, after the payment's own lost operations. Those
    recorded are described: what follows from a recovered refund must not take the same debt once
    more.
    """
    found: dict[str, Operation] = {}
    recorded = []
    postponed = []
    for transfer in snapshot.transfers:
        for reversal in transfer.reversals:
            if not reversal.operation_id or reversal.reversal_id in recovery.booked_ids:
                continue
            marked = _marked_collection(tx, reversal)
            operation = tx.operation(reversal.operation_id)
            if operation is None and marked and recovery.lost:
                postponed.append(reversal.reversal_id)
            elif operation is None and marked and reversal.is_done:
                operation = _collection(tx, payment, marked)
                tx.add_operation(operation)
                recorded.append(described("reversal", reversal.reversal_id, reversal.minor_units))
            if operation is None or operation.kind is not OperationKind.COLLECT_DEBT:
                continue
            if marked is not None:
                # The restored books may have asked for another amount under the same id.
                tx.correct_operation(
                    marked.operation_id, marked.kind, marked.minor_units, marked.payload
                )
                operation = replace(
                    operation, minor_units=marked.minor_units, payload=marked.payload
                )
            found[operation.operation_id] = operation
    return Collections(found, recorded, postponed)


def _marked_collection(tx: Transaction, reversal: Reversal) -> MarkedOperation | None:
    marked = marked_operation(
        reversal.metadata, tx.installation_id, reversal.reversal_id, reversal.create_time
    )
    return marked if marked and marked.kind is OperationKind.COLLECT_DEBT else None


def _collection(tx: Transaction, payment: Payment, marked: MarkedOperation) -> Operation:
    """Returns the collection as one that is over: its reversal is booked in this transaction."""
    return Operation(
        operation_id=marked.operation_id,
        kind=marked.kind,
        purpose=marked.purpose,
        expert_id=payment.expert_id,
        payload=marked.payload,
        minor_units=marked.minor_units,
        state=OperationState.SUCCEEDED,
        last_error="recovered from Stripe",
        create_time=tx.now,
        attempt_time=marked.create_time,
    )


def _is(marked: MarkedOperation, operation: Operation | None) -> bool:
    return operation is not None and marked.operation_id == operation.operation_id


def _as_at_stripe(
    tx: Transaction, operation: Operation, marked: MarkedOperation
) -> tuple[Operation, Sequence[Discrepancy]]:
    """Returns the operation as Stripe has executed it.

    A repeated call is planned on the restored books, and Stripe knows what the first one asked for.
    """
    same_state = operation.kind is marked.kind or {operation.kind, marked.kind} == {*_PAYS_EXPERT}
    asked = (operation.kind, operation.minor_units, operation.payload)
    done = (marked.kind, marked.minor_units, marked.payload)
    if asked == done or not same_state:
        return operation, ()
    tx.correct_operation(operation.operation_id, marked.kind, marked.minor_units, marked.payload)
    corrected = replace(
        operation, kind=marked.kind, minor_units=marked.minor_units, payload=marked.payload
    )
    if operation.minor_units == marked.minor_units:
        return corrected, ()
    mismatch = Discrepancy(
        operation.payment_id,
        DiscrepancyKind.AMOUNT_MISMATCH,
        f"{operation.operation_id}: Stripe did it with {marked.minor_units} before the restore, "
        f"requested {operation.minor_units}",
        expected=operation.minor_units,
        found=marked.minor_units,
    )
    return corrected, (mismatch,)


def _is_possible(payment: Payment, marked: MarkedOperation) -> bool:
    """Whether the payment could begin this operation now. What is not, is left for an operator."""
    if isinstance(marked.payload, CapturePayload):
        authorized = payment.state is State.IN_ESCROW and not payment.charged
        return authorized and marked.minor_units <= payment.held
    if isinstance(marked.payload, TransferPayload):
        return payment.state is State.IN_ESCROW and marked.minor_units <= payment.held
    if not isinstance(marked.payload, RefundPayload):
        return False  # A reversal follows from the refund or the dispute that is booked first.
    if marked.purpose is OperationPurpose.REPAYMENT:
        return marked.minor_units <= payment.client_payable
    rests = payment.state in (State.IN_ESCROW, State.CAPTURED)
    return rests and marked.minor_units <= payment.held + payment.net


def _record(tx: Transaction, payment: Payment, marked: MarkedOperation) -> Operation:
    """Records the operation on its payment. What moved before now is in the books already."""
    operation = replace(
        sent_operation(tx, marked), payment_id=payment.payment_id, create_time=tx.now
    )
    tx.add_operation(operation)
    return operation


def _start(tx: Transaction, payment: Payment, marked: MarkedOperation) -> Transition:
    """Returns the transition with which the operation was recorded when it was new."""
    by_deadline = marked.purpose is OperationPurpose.DEADLINE
    payload, operation_id, now = marked.payload, marked.operation_id, tx.now
    if marked.kind is OperationKind.PROMOTE:
        return transitions.start_promotion(payment, operation_id, now)
    if isinstance(payload, CapturePayload | TransferPayload):
        split = _split(marked.minor_units, payload)
        return transitions.start_capture(
            payment, split, operation_id, payload.notes, now, by_deadline=by_deadline
        )
    assert isinstance(payload, RefundPayload)
    if marked.purpose is OperationPurpose.REPAYMENT:
        return transitions.repayment_due(payment, operation_id, now)
    refund = plans.refund_split_of(payment, marked.minor_units, payment.held)
    return transitions.start_refund(
        payment, refund, operation_id, payload.reason, now, by_deadline=by_deadline
    )


def _split(minor_units: int, payload: CapturePayload | TransferPayload) -> CaptureSplit:
    if isinstance(payload, TransferPayload):
        return CaptureSplit(minor_units, payload.commission, payload.debt_offset)
    if payload.transfer is not None:
        return _split(payload.transfer_amount, payload.transfer)
    commission = (payload.application_fee or 0) - payload.debt_offset
    return CaptureSplit(minor_units, commission, payload.debt_offset)
