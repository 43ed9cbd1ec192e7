"""Applies a snapshot of a payment: one transaction for RPCs, webhooks and background jobs.

Locks are taken in one order: the payment, then its operation, then the idempotency key or the
expert.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from payment_service.application.operations.out_of_band import record_out_of_band
from payment_service.application.operations.outcomes import answer, refuse
from payment_service.application.operations.start import (
    park_repayment,
    start_operation,
    with_current_destination,
)
from payment_service.application.sync.disputes import apply_disputes, save_disputes
from payment_service.domain.operation_payloads import TransferPayload
from payment_service.domain.operations import Operation, OperationPurpose, OperationState
from payment_service.domain.payment import Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers, Cause, StoredAnswers
from payment_service.domain.snapshot import PaymentSnapshot
from payment_service.domain.sync.changes import Discrepancy
from payment_service.domain.sync.derive_changes import derive_changes


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What writing down an observation came to."""

    #: The payment had changed since it was observed: observe again.
    stale: bool = False
    changed: bool = False
    #: Stripe does not show every balance transaction yet: observe again later.
    deferred: bool = False
    #: Among them one that ends the open operation.
    operation_deferred: bool = False
    #: Why the open operation must not be sent, if it must not.
    blocked_by: str = ""
    payment: Payment | None = None
    #: The operation that these transitions brought forth, leased to us.
    next_operation: Operation | None = None
    #: An operation that was parked for an operator by this.
    parked: Operation | None = None
    discrepancies: tuple[Discrepancy, ...] = ()
    #: The answers that this transaction has stored for callers, by their claims.
    answers: StoredAnswers = field(default_factory=dict)
    #: On its way to the caller; never stored, never logged.
    client_secret: str = field(default="", repr=False)


def apply_snapshot(
    tx: Transaction,
    answers: Answers,
    policy: Policy,
    payment_id: str,
    snapshot: PaymentSnapshot,
    version: int,
    cause: Cause,
) -> SyncResult:
    """Follow what Stripe showed of a payment when it had ``version``."""
    payment = tx.lock_payment(payment_id)
    if payment is None:
        return SyncResult()
    if payment.version != version:
        return SyncResult(stale=True, payment=payment)
    operation = tx.operation(payment.operation_id) if payment.operation_id else None
    booked_ids = tx.booked_movement_ids(payment_id)
    changes = derive_changes(
        payment,
        snapshot,
        operation=operation,
        booked_ids=booked_ids,
        out_of_band=tuple(tx.out_of_band_since(operation).values()) if operation else (),
        next_operation_id=tx.new_id("op"),
        holding=timedelta(seconds=policy.holding_limit),
        now=tx.now,
    )
    disputes = apply_disputes(tx, policy, changes, snapshot, operation, booked_ids)
    for transition in changes.transitions:
        tx.record(transition, cause)
    for movement in changes.movements:
        tx.add_movement(payment_id, movement)
    stored = save_disputes(tx, answers, disputes, changes, snapshot)
    for discrepancy in changes.discrepancies:
        tx.report(discrepancy)
    if operation is not None and changes.settled:
        refused = changes.refusal is not None
        state = OperationState.REFUSED if refused else OperationState.SUCCEEDED
        tx.settle_operation(operation.operation_id, state)
    parked = record_out_of_band(tx, payment, changes, operation)
    next_operation: Operation | None = None
    if changes.next_operation is not None:
        coming = changes.next_operation
        goes_on = operation is not None and coming.purpose is not OperationPurpose.LOSS
        next_operation = start_operation(
            tx,
            policy,
            kind=coming.kind,
            payment_id=payment_id,
            minor_units=coming.minor_units,
            purpose=coming.purpose,
            payload=(
                with_current_destination(tx, changes.payment, coming.payload)
                if isinstance(coming.payload, TransferPayload)
                else coming.payload
            ),
            # The caller is answered when the second leg is settled, not before.
            claim_id=operation.claim_id if operation is not None and goes_on else "",
            operation_id=next(
                transition.after.operation_id
                for transition in reversed(changes.transitions)
                if transition.after.operation_id
            ),
            parked=bool(coming.parked),
            last_error=coming.parked,
        )
        if next_operation.claim_id:
            tx.bind_claim(next_operation.claim_id, payment_id, next_operation.operation_id)
    payment = park_repayment(tx, policy, changes.payment, cause)
    # What a lost dispute takes back from the expert answers nobody.
    ends = next_operation is None or not next_operation.claim_id
    if ends and operation is not None and changes.settled:
        if changes.refusal is not None:
            stored |= refuse(tx, answers, operation.claim_id, changes.refusal)
        else:
            stored |= answer(tx, answers, operation.claim_id, payment)
    if next_operation is not None and next_operation.state is OperationState.PARKED:
        parked, next_operation = next_operation, None
    return SyncResult(
        changed=bool(changes.transitions),
        deferred=changes.deferred,
        operation_deferred=changes.operation_deferred,
        blocked_by=changes.blocked_by,
        payment=payment,
        next_operation=next_operation,
        parked=parked,
        discrepancies=tuple(changes.discrepancies),
        answers=stored,
    )
