"""Converts disputes and evidence (disputes.proto)."""

from __future__ import annotations

from marketplace.payments.v1 import disputes_pb2, money_pb2
from payment_service.domain.disputes import Dispute
from payment_service.rpc.messages.common import money_message, time_message


def dispute_message(dispute: Dispute) -> disputes_pb2.Dispute:
    def amount(minor_units: int) -> money_pb2.Money:
        return money_message(minor_units, dispute.currency)

    return disputes_pb2.Dispute(
        dispute_id=dispute.dispute_id,
        payment_id=dispute.payment_id,
        expert_id=dispute.expert_id,
        charge_id=dispute.charge_id,
        stage=disputes_pb2.DisputeStage.Value(f"DISPUTE_STAGE_{dispute.stage}"),
        status=dispute.status,
        outcome=disputes_pb2.DisputeOutcome.Value(f"DISPUTE_OUTCOME_{dispute.outcome}"),
        reason=dispute.reason,
        amount=amount(dispute.amount),
        withdrawn_amount=amount(dispute.withdrawn),
        reinstated_amount=amount(dispute.reinstated),
        lost_amount=amount(dispute.lost),
        fee=money_message(dispute.fee, dispute.fee_currency or dispute.currency),
        evidence_due_time=time_message(dispute.evidence_due_time),
        has_evidence=dispute.has_evidence,
        submission_count=dispute.submission_count,
        operation_id=dispute.operation_id,
        create_time=time_message(dispute.create_time),
        update_time=time_message(dispute.update_time),
        close_time=time_message(dispute.close_time),
    )


def evidence_of(evidence: disputes_pb2.Evidence) -> dict[str, str]:
    """Returns what is given, by Stripe's names, which are the fields' own."""
    return {field.name: str(value) for field, value in evidence.ListFields()}
