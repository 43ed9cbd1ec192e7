"""SubmitEvidence and AcceptDispute: the platform's answers to the client's bank.

Durable operations under stored keys like the money RPCs, with one difference: they belong to the
dispute and not to the payment, whose one open operation they neither occupy nor wait for. Evidence
moves no money; what an acceptance moves is derived by ``derive_dispute_changes`` when the
payment is idle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from payment_service.application.app import App
from payment_service.application.idempotency import (
    CallResult,
    IdempotentCommand,
    Started,
    run_idempotent,
)
from payment_service.application.operations.start import start_operation
from payment_service.domain import disputes, transitions
from payment_service.domain.disputes import Dispute
from payment_service.domain.operation_payloads import AcceptancePayload, EvidencePayload
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.payment import FreezeReason, Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause
from payment_service.domain.preview import Preview, preview_loss
from payment_service.domain.state_machine import EventKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitEvidence(IdempotentCommand):
    dispute_id: str
    #: By Stripe's names: texts, lines and ids of files.
    evidence: Mapping[str, str]
    #: Submit it to the bank, which is final; otherwise it is only staged at Stripe.
    submit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptDispute(IdempotentCommand):
    dispute_id: str


async def submit_evidence(app: App, command: SubmitEvidence) -> CallResult:
    """Stages evidence at Stripe or, with ``submit``, submits it to the bank, which is final."""
    return await run_idempotent(app, command, begin_evidence)


async def accept_dispute(app: App, command: AcceptDispute) -> CallResult:
    """Accepts a chargeback as lost, which is final."""
    return await run_idempotent(app, command, begin_acceptance)


def begin_evidence(
    tx: Transaction, policy: Policy, command: SubmitEvidence, claim_id: str
) -> Started:
    payment, dispute = lock_dispute(tx, command.dispute_id)
    disputes.check_evidence(dispute, command.evidence, submit=command.submit, now=tx.now)
    payload = EvidencePayload(
        payment_id=dispute.payment_id, evidence=dict(command.evidence), submit=command.submit
    )
    operation = _start_answer(tx, policy, OperationKind.SUBMIT_EVIDENCE, dispute, claim_id, payload)
    # The evidence speaks of people, so its content does not belong into the audit trail.
    facts = {"evidence": sorted(command.evidence), "submit": command.submit}
    return _record_start(tx, operation, payment, dispute, facts, command.cause)


def begin_acceptance(
    tx: Transaction, policy: Policy, command: AcceptDispute, claim_id: str
) -> Started:
    payment, dispute = lock_dispute(tx, command.dispute_id)
    disputes.check_acceptance(dispute)
    payload = AcceptancePayload(payment_id=dispute.payment_id)
    operation = _start_answer(tx, policy, OperationKind.ACCEPT_DISPUTE, dispute, claim_id, payload)
    return _record_start(tx, operation, payment, dispute, {}, command.cause)


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
        review_id=payment.review_id,
    )
    transfers = tx.reversible_transfers(payment.payment_id)
    # Stripe's balance transaction may be missing yet: it takes the disputed amount.
    part = dispute.taken or dispute.amount
    return dispute, preview_loss(payment, part, transfers, frozen)


def lock_dispute(tx: Transaction, dispute_id: str) -> tuple[Payment, Dispute]:
    """Locks the payment, whose lock protects the dispute too, and reads the dispute under it."""
    unlocked = tx.dispute(dispute_id)
    payment = tx.lock_payment(unlocked.payment_id) if unlocked else None
    dispute = tx.dispute(dispute_id)
    if payment is None or dispute is None:
        raise disputes.dispute_not_found(dispute_id)
    return payment, dispute


def _start_answer(
    tx: Transaction,
    policy: Policy,
    kind: OperationKind,
    dispute: Dispute,
    claim_id: str,
    payload: EvidencePayload | AcceptancePayload,
) -> Operation:
    return start_operation(
        tx,
        policy,
        kind=kind,
        dispute_id=dispute.dispute_id,
        claim_id=claim_id,
        payload=payload,
    )


def _record_start(
    tx: Transaction,
    operation: Operation,
    payment: Payment,
    dispute: Dispute,
    facts: Mapping[str, object],
    cause: Cause,
) -> Started:
    tx.save_dispute(replace(dispute, operation_id=operation.operation_id, update_time=tx.now))
    recorded = {
        "dispute_id": dispute.dispute_id,
        "operation_id": operation.operation_id,
        "answer": operation.kind.value,
        **facts,
    }
    frozen = FreezeReason(payment.frozen, payment.frozen_by)
    transition = transitions.dispute_changed(
        payment, EventKind.DISPUTE_ANSWER_STARTED, recorded, frozen, tx.now
    )
    tx.record(transition, cause)
    return Started(operation, transition.after)
