"""SubmitEvidence and AcceptDispute: what the platform says to the client's bank.

Durable operations under stored keys like the money RPCs, with one difference: they hang on the
dispute and not on the payment, whose one open operation they neither occupy nor wait for. Evidence
moves no money; what an acceptance moves is derived by ``derive_dispute_changes`` when the
payment is idle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from payment_service.application.app import App
from payment_service.application.execution.disputes import execute_answer
from payment_service.application.idempotency import (
    CallResult,
    IdempotentCommand,
    Started,
    replay_or_take_over,
    run_idempotent,
    store_refusal,
)
from payment_service.application.operations.start import start_operation
from payment_service.domain import disputes, transitions
from payment_service.domain.disputes import Dispute
from payment_service.domain.errors import Precondition
from payment_service.domain.operation_payloads import AcceptancePayload, EvidencePayload
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.payment import FreezeReason, Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers, Cause, Claim
from payment_service.domain.preview import Preview, preview_loss
from payment_service.domain.state_machine import EventKind


def acceptance_preview(
    tx: Transaction, policy: Policy, command: AcceptDispute
) -> tuple[Dispute, Preview]:
    payment, dispute = lock_dispute(tx, command.dispute_id)
    disputes.check_acceptance(dispute)
    others = (one for one in tx.disputes_of(payment.payment_id) if one != dispute)
    frozen = disputes.freeze_of(
        others,
        payment.fraud_warning_id,
        tx.booked_movement_ids(payment.payment_id),
        freezes_on_warning=policy.freeze_on_fraud_warning,
    )
    transfers = tx.reversible_transfers(payment.payment_id)
    # Stripe's line may not be there yet: it takes what is contested.
    part = dispute.taken or dispute.amount
    return dispute, preview_loss(payment, part, transfers, frozen)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitEvidence(IdempotentCommand):
    dispute_id: str
    #: By Stripe's names: texts, lines and ids of files.
    evidence: Mapping[str, str]
    #: Hand it to the bank, for good; else it is only staged at Stripe.
    submit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptDispute(IdempotentCommand):
    dispute_id: str


async def submit_evidence(app: App, command: SubmitEvidence) -> CallResult:
    """Stage evidence at Stripe or, with ``submit``, hand it to the bank, which is final."""
    return await run_idempotent(app, begin_evidence, command, execute_answer)


async def accept_dispute(app: App, command: AcceptDispute) -> CallResult:
    """Give a chargeback up as lost, which is final."""
    return await run_idempotent(app, begin_acceptance, command, execute_answer)


def begin_evidence(
    tx: Transaction, answers: Answers, policy: Policy, command: SubmitEvidence
) -> Started:
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return replay_or_take_over(tx, policy, claim)
    payment, dispute = lock_dispute(tx, command.dispute_id)
    try:
        disputes.check_evidence(dispute, command.evidence, submit=command.submit, now=tx.now)
    except Precondition as refusal:
        return store_refusal(tx, answers, claim, refusal)
    payload = EvidencePayload(
        payment_id=dispute.payment_id, evidence=dict(command.evidence), submit=command.submit
    )
    operation = _leased(tx, policy, OperationKind.SUBMIT_EVIDENCE, dispute, claim, payload)
    # What is in the evidence is not for the audit trail: it speaks of people.
    facts = {"evidence": sorted(command.evidence), "submit": command.submit}
    return _begun(tx, claim, operation, payment, dispute, facts, command.cause)


def begin_acceptance(
    tx: Transaction, answers: Answers, policy: Policy, command: AcceptDispute
) -> Started:
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return replay_or_take_over(tx, policy, claim)
    payment, dispute = lock_dispute(tx, command.dispute_id)
    try:
        disputes.check_acceptance(dispute)
    except Precondition as refusal:
        return store_refusal(tx, answers, claim, refusal)
    payload = AcceptancePayload(payment_id=dispute.payment_id)
    operation = _leased(tx, policy, OperationKind.ACCEPT_DISPUTE, dispute, claim, payload)
    return _begun(tx, claim, operation, payment, dispute, {}, command.cause)


def lock_dispute(tx: Transaction, dispute_id: str) -> tuple[Payment, Dispute]:
    """The payment's lock is the dispute's too, so the row is read again under it."""
    known = tx.dispute(dispute_id)
    payment = tx.lock_payment(known.payment_id) if known else None
    dispute = tx.dispute(dispute_id)
    if payment is None or dispute is None:
        raise disputes.dispute_not_found(dispute_id)
    return payment, dispute


def _leased(
    tx: Transaction,
    policy: Policy,
    kind: OperationKind,
    dispute: Dispute,
    claim: Claim,
    payload: EvidencePayload | AcceptancePayload,
) -> Operation:
    return start_operation(
        tx,
        policy,
        kind=kind,
        dispute_id=dispute.dispute_id,
        claim_id=claim.claim_id,
        payload=payload,
    )


def _begun(
    tx: Transaction,
    claim: Claim,
    operation: Operation,
    payment: Payment,
    dispute: Dispute,
    facts: Mapping[str, object],
    cause: Cause,
) -> Started:
    tx.save_dispute(replace(dispute, operation_id=operation.operation_id, update_time=tx.now))
    told = {
        "dispute_id": dispute.dispute_id,
        "operation_id": operation.operation_id,
        "answer": operation.kind.value,
        **facts,
    }
    frozen = FreezeReason(payment.frozen, payment.frozen_by)
    transition = transitions.dispute_changed(
        payment, EventKind.DISPUTE_ANSWER_STARTED, told, frozen, tx.now
    )
    tx.record(transition, cause)
    tx.bind_claim(claim.claim_id, payment.payment_id, operation.operation_id)
    return Started(claim, operation, transition.after.version)
