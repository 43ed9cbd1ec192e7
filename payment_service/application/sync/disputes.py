"""Saves disputes, and ends the operations that answer them.

The payment's lock protects the rows of its disputes: each writer of a dispute holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from payment_service.application.operations.outcomes import refuse
from payment_service.domain import transitions
from payment_service.domain.disputes import Dispute, Outcome, check_acceptance, check_evidence
from payment_service.domain.errors import Precondition, Refusal
from payment_service.domain.operation_payloads import EvidencePayload
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.payment import FreezeReason, Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Answer, Answers, Cause, StoredAnswers
from payment_service.domain.ports.stripe import Refused
from payment_service.domain.processor_errors import refused_by_processor
from payment_service.domain.snapshot import DisputeSnapshot, PaymentSnapshot
from payment_service.domain.state_machine import EventKind
from payment_service.domain.sync.changes import ChangeSet


def save_disputes(
    tx: Transaction,
    answers: Answers,
    before: Mapping[str, Dispute],
    changes: ChangeSet,
    snapshot: PaymentSnapshot,
) -> dict[str, Answer]:
    """Saves the changed disputes, and ends the answers to disputes that Stripe has received.

    Returns what it has stored for their callers, by the claims.
    """
    stored: dict[str, Answer] = {}
    for changed in changes.disputes.values():
        tx.save_dispute(changed)
    records = {**before, **changes.disputes}
    for dispute in snapshot.disputes:
        record = records.get(dispute.dispute_id)
        if record is None or not record.operation_id:
            continue
        operation = tx.operation(record.operation_id)
        if operation is None or not operation.is_open:
            continue
        refusal = _ended_otherwise(operation, record)
        if refusal is None and not has_arrived(operation, dispute):
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


def has_arrived(operation: Operation, dispute: DisputeSnapshot) -> bool:
    """Whether Stripe shows the effect of this answer.

    Evidence leaves our operation's id in the dispute's metadata. Stripe records no such id for an
    acceptance: only the dispute's status shows it.
    """
    if operation.kind is OperationKind.ACCEPT_DISPUTE:
        return dispute.status == "lost"
    return dispute.operation_id == operation.operation_id


def _ended_otherwise(operation: Operation, record: Dispute) -> Refusal | None:
    """The refusal of an acceptance that came after the bank had decided for us; else None."""
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
    refusal = _refusal_as_it_is(replace(record, operation_id=""), current, tx.now)
    if refusal is None:
        facts = {"dispute_id": record.dispute_id}
        refusal = refused_by_processor(refused.code, refused.request_id, **facts)
    failed = FailedAnswer(payment, current, refusal, refused.code, refused.last_error)
    return fail_answer(tx, answers, failed, cause)


def _refusal_as_it_is(record: Dispute, operation: Operation, now: datetime) -> Refusal | None:
    """Returns what our own guards refuse the answer with now, or None if they would allow it."""
    try:
        if isinstance(operation.payload, EvidencePayload):
            answer = operation.payload
            check_evidence(record, answer.evidence, submit=answer.submit, now=now)
        else:
            check_acceptance(record)
    except Refusal as refusal:
        return refusal if isinstance(refusal, Precondition) else None
    return None


@dataclass(frozen=True, slots=True)
class FailedAnswer:
    """An answer without effect, its locked payment, the caller's error and its code."""

    payment: Payment
    operation: Operation
    refusal: Refusal
    code: str
    #: What the operation keeps for operators; empty means the code.
    last_error: str = ""


def fail_answer(
    tx: Transaction, answers: Answers, failed: FailedAnswer, cause: Cause, **more: object
) -> StoredAnswers:
    """Ends an answer without effect, so that the dispute can be answered again.

    Requires the payment's lock.
    """
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
    last_error = failed.last_error or code
    tx.settle_operation(operation.operation_id, OperationState.REFUSED, last_error)
    return refuse(tx, answers, operation.claim_id, failed.refusal)
