"""Applies the disputes of a snapshot, in the transaction that applies the rest of it.

The payment's lock protects the rows of its disputes: whoever writes one holds the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from payment_service.application.operations.outcomes import refuse
from payment_service.domain import transitions
from payment_service.domain.disputes import Dispute, Outcome
from payment_service.domain.errors import Precondition, Refusal
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.payment import FreezeReason, Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answer, Answers, Cause, StoredAnswers
from payment_service.domain.ports.stripe import Refused
from payment_service.domain.processor_errors import refused_by_processor
from payment_service.domain.snapshot import DisputeSnapshot, PaymentSnapshot
from payment_service.domain.state_machine import EventKind
from payment_service.domain.sync.changes import ChangeSet
from payment_service.domain.sync.derive_dispute_changes import (
    DisputeContext,
    derive_dispute_changes,
)


def apply_disputes(
    tx: Transaction,
    policy: Policy,
    changes: ChangeSet,
    snapshot: PaymentSnapshot,
    operation: Operation | None,
    booked_ids: frozenset[str],
) -> Mapping[str, Dispute]:
    """Add to ``updated`` what the disputes in ``seen`` change; nothing is written yet.

    The payment's disputes as they were recorded, by their ids.
    """
    if not snapshot.disputes and snapshot.fraud_warnings is None:
        return {}
    payment_id = changes.payment.payment_id
    records = {record.dispute_id: record for record in tx.disputes_of(payment_id)}
    derive_dispute_changes(
        changes,
        snapshot,
        DisputeContext(
            records=records,
            operation=operation,
            booked_ids=booked_ids,
            next_operation_id=tx.new_id("op"),
            freezes_on_warning=policy.freeze_on_fraud_warning,
            now=tx.now,
        ),
    )
    return records


def save_disputes(
    tx: Transaction,
    answers: Answers,
    before: Mapping[str, Dispute],
    changes: ChangeSet,
    snapshot: PaymentSnapshot,
) -> dict[str, Answer]:
    """Write the rows, and end the answers to disputes that Stripe shows to have arrived.

    Returns what their callers are answered, by the claims.
    """
    stored = {}
    for changed in changes.disputes.values():
        tx.save_dispute(changed)
    records = {**before, **changes.disputes}
    for shown in snapshot.disputes:
        record = records.get(shown.dispute_id)
        if record is None or not record.operation_id:
            continue
        operation = tx.operation(record.operation_id)
        if operation is None or not operation.is_open:
            continue
        refusal = _ended_otherwise(operation, record)
        if refusal is None and not has_arrived(operation, shown):
            continue
        record = replace(record, operation_id="", update_time=tx.now)
        tx.save_dispute(record)
        state = OperationState.SUCCEEDED if refusal is None else OperationState.REFUSED
        tx.settle_operation(operation.operation_id, state)
        if operation.claim_id:
            answer = (
                answers.dispute_response(tx.claim_rpc(operation.claim_id), record)
                if refusal is None
                else answers.refusal(refusal)
            )
            stored[operation.claim_id] = tx.settle_claim(operation.claim_id, answer)
    return stored


def has_arrived(operation: Operation, shown: DisputeSnapshot) -> bool:
    """Whether Stripe shows the effect of this answer.

    Evidence leaves our operation's id in the dispute's metadata; an acceptance can be told only by
    what it comes to.
    """
    if operation.kind is OperationKind.ACCEPT_DISPUTE:
        return shown.status == "lost"
    return shown.operation_id == operation.operation_id


def _ended_otherwise(operation: Operation, record: Dispute) -> Refusal | None:
    """Accepting a dispute that was decided meanwhile, otherwise than as lost, came too late."""
    accepts = operation.kind is OperationKind.ACCEPT_DISPUTE
    if not accepts or record.outcome in (Outcome.OPEN, Outcome.LOST):
        return None
    return Precondition(
        "DISPUTE_CLOSED",
        f"meanwhile the dispute was over: {record.outcome.lower()}",
        {
            "dispute_id": record.dispute_id,
            "payment_id": record.payment_id,
            "status": record.status,
        },
    )


def reject_answer(
    tx: Transaction, answers: Answers, operation: Operation, refused: Refused, cause: Cause
) -> StoredAnswers:
    """Records Stripe's final refusal of an answer, once a sync has shown no effect of it."""
    payment = tx.lock_payment(operation.related_payment_id)
    current = tx.operation(operation.operation_id)
    record = tx.dispute(operation.dispute_id)
    if payment is None or record is None or current is None or not current.is_held_by(operation):
        return {}
    refusal = refused_by_processor(refused.code, refused.request_id, dispute_id=record.dispute_id)
    failed = FailedAnswer(payment, current, refusal, refused.code)
    return fail_answer(tx, answers, failed, cause)


@dataclass(frozen=True, slots=True)
class FailedAnswer:
    """An answer without effect, its locked payment, the caller's error and its code."""

    payment: Payment
    operation: Operation
    refusal: Refusal
    code: str


def fail_answer(
    tx: Transaction, answers: Answers, failed: FailedAnswer, cause: Cause, **more: str
) -> StoredAnswers:
    """Ends an answer that had no effect: the dispute may be answered again."""
    payment, operation, code = failed.payment, failed.operation, failed.code
    record = tx.dispute(operation.dispute_id)
    assert record is not None
    tx.save_dispute(replace(record, operation_id="", update_time=tx.now))
    facts = {
        "dispute_id": record.dispute_id,
        "operation_id": operation.operation_id,
        "code": code,
        **more,
    }
    frozen = FreezeReason(payment.frozen, payment.frozen_by)
    tx.record(
        transitions.dispute_changed(
            payment, EventKind.DISPUTE_ANSWER_REFUSED, facts, frozen, tx.now
        ),
        cause,
    )
    tx.settle_operation(operation.operation_id, OperationState.REFUSED, code)
    return refuse(tx, answers, operation.claim_id, failed.refusal)
