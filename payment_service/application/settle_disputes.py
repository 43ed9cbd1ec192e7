"""What an observation says about disputes, written down in the same transaction as the rest of it.

A dispute's row is locked by its payment's: whoever writes one holds the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from payment_service.domain import escrow
from payment_service.domain.disputes import Dispute, Outcome
from payment_service.domain.errors import Precondition, Refusal
from payment_service.domain.escrow import Frozen, Kind, Payment
from payment_service.domain.follow import refused_by_processor
from payment_service.domain.follow_disputes import Circumstances, follow_disputes
from payment_service.domain.followed import Followed
from payment_service.domain.observation import Observation, ShownDispute
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.ports import Answers, Cause, Policy, Refused, Transaction


def follow_disputes_phase(
    tx: Transaction,
    policy: Policy,
    followed: Followed,
    seen: Observation,
    operation: Operation | None,
    known: frozenset[str],
) -> Mapping[str, Dispute]:
    """Add to ``followed`` what the disputes in ``seen`` change; nothing is written yet.

    The payment's disputes as they were recorded, by their ids.
    """
    if not seen.disputes and seen.fraud_warnings is None:
        return {}
    payment_id = followed.payment.payment_id
    records = {record.dispute_id: record for record in tx.disputes_of(payment_id)}
    follow_disputes(
        followed,
        seen,
        Circumstances(
            records=records,
            operation=operation,
            known=known,
            next_operation_id=tx.new_id("op"),
            freezes_on_warning=policy.freeze_on_fraud_warning,
            now=tx.now,
        ),
    )
    return records


def save_disputes_phase(
    tx: Transaction,
    answers: Answers,
    before: Mapping[str, Dispute],
    followed: Followed,
    seen: Observation,
) -> None:
    """Write the rows, and settle the answers to disputes that Stripe shows to have arrived."""
    for changed in followed.disputes.values():
        tx.save_dispute(changed)
    records = {**before, **followed.disputes}
    for shown in seen.disputes:
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
            tx.settle_claim(operation.claim_id, answer)


def has_arrived(operation: Operation, shown: ShownDispute) -> bool:
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


def refuse_answer_phase(
    tx: Transaction, answers: Answers, operation: Operation, refused: Refused, cause: Cause
) -> None:
    """Stripe's final no to an answer, and reading the dispute showed no effect of it."""
    payment = tx.lock_payment(operation.text("payment_id"))
    current = tx.operation(operation.operation_id)
    record = tx.dispute(operation.dispute_id)
    if payment is None or record is None or current is None or not current.is_held_by(operation):
        return
    refusal = refused_by_processor(refused.code, refused.request_id, dispute_id=record.dispute_id)
    end_answer_in_vain(tx, answers, payment, current, refusal, refused.code, cause)


def end_answer_in_vain(
    tx: Transaction,
    answers: Answers,
    payment: Payment,
    operation: Operation,
    refusal: Refusal,
    code: str,
    cause: Cause,
    **more: str,
) -> None:
    """End an answer that nothing came of: the dispute may be answered anew. Of a locked payment."""
    record = tx.dispute(operation.dispute_id)
    assert record is not None
    tx.save_dispute(replace(record, operation_id="", update_time=tx.now))
    facts = {
        "dispute_id": record.dispute_id,
        "operation_id": operation.operation_id,
        "code": code,
        **more,
    }
    frozen = Frozen(payment.frozen, payment.frozen_by)
    tx.record(
        escrow.dispute_changed(payment, Kind.DISPUTE_ANSWER_REFUSED, facts, frozen, tx.now), cause
    )
    tx.settle_operation(operation.operation_id, OperationState.REFUSED, code)
    if operation.claim_id:
        tx.settle_claim(operation.claim_id, answers.refusal(refusal))
