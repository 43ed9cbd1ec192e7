"""Converts domain values to the messages of the contract, and back."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from marketplace.payments.v1 import (
    disputes_pb2,
    events_pb2,
    experts_pb2,
    ledger_pb2,
    money_pb2,
    operations_pb2,
    payments_pb2,
)
from payment_service.application.get_expert_balance import ExpertBalance
from payment_service.application.reconciliation.run import Report
from payment_service.domain.deadlines import deadlines_of
from payment_service.domain.disputes import Dispute
from payment_service.domain.experts import BusinessType, Expert, ExpertStatus
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.payment import EscrowMode, Failure, OnDeadline, Payment, State
from payment_service.domain.payouts import Payout
from payment_service.domain.ports.records import (
    StoredDiscrepancy,
    StoredEvent,
    StoredPosting,
    WebhookEvent,
)
from payment_service.domain.preview import Preview
from payment_service.domain.sync.changes import Discrepancy


def money_message(minor_units: int, currency: str) -> money_pb2.Money:
    return money_pb2.Money(minor_units=minor_units, currency_code=currency)


def time_message(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment.astimezone(UTC))
    return message


def payment_message(payment: Payment) -> payments_pb2.Payment:
    def amount(minor_units: int) -> money_pb2.Money:
        return money_message(minor_units, payment.currency)

    return payments_pb2.Payment(
        payment_id=payment.payment_id,
        client_id=payment.client_id,
        expert_id=payment.expert_id,
        gig_id=payment.gig_id,
        description=payment.description,
        state=state_value(payment.state),
        escrow_mode=payments_pb2.EscrowMode.Value(f"ESCROW_MODE_{payment.escrow_mode}"),
        charge_model=payments_pb2.ChargeModel.Value(f"CHARGE_MODEL_{payment.charge_model}"),
        amount=amount(payment.amount),
        commission=amount(payment.commission),
        expert_amount=amount(payment.expert_amount),
        held_amount=amount(payment.held),
        captured_amount=amount(payment.captured),
        refunded_amount=amount(payment.refunded_after_capture),
        net_amount=amount(payment.net),
        net_commission=amount(payment.net_commission),
        net_expert_amount=amount(payment.net_expert),
        commission_basis_points=payment.commission_basis_points,
        payment_intent_id=payment.payment_intent_id,
        charge_id=payment.charge_id,
        version=payment.version,
        create_time=time_message(payment.create_time),
        update_time=time_message(payment.update_time),
        escrow_time=time_message(payment.escrow_time),
        capture_time=time_message(payment.capture_time),
        escrow_expire_time=time_message(payment.escrow_expire_time),
        last_failure=failure_message(payment.failure),
        waiting_for=payment.waiting_for.value,
        waiting_reason=payments_pb2.WaitingReason.Value(
            f"WAITING_REASON_{payment.waiting_reason or 'UNSPECIFIED'}"
        ),
        payment_expire_time=time_message(payment.payment_expire_time),
        returned_amount=amount(payment.refunded_from_escrow),
        mode_reason=payments_pb2.ModeReason.Value(f"MODE_REASON_{payment.mode_reason}"),
        on_deadline=on_deadline_value(payment.on_deadline),
        expected_completion_time=time_message(payment.release_due_time),
        deadlines=[
            payments_pb2.Deadline(
                kind=payments_pb2.DeadlineKind.Value(f"DEADLINE_KIND_{deadline.kind}"),
                time=time_message(deadline.time),
                action=on_deadline_value(deadline.action),
            )
            for deadline in deadlines_of(payment)
        ],
        freeze=payments_pb2.PaymentFreeze.Value(f"PAYMENT_FREEZE_{payment.frozen}"),
        lost_amount=amount(payment.lost + payment.lost_held),
        lost_held_amount=amount(payment.lost_held),
    )


def on_deadline_value(on_deadline: OnDeadline) -> payments_pb2.OnDeadline.ValueType:
    return payments_pb2.OnDeadline.Value(f"ON_DEADLINE_{on_deadline}")


def on_deadline_of(value: int) -> OnDeadline:
    """Unspecified means ALERT."""
    name = payments_pb2.OnDeadline.Name(payments_pb2.OnDeadline.ValueType(value))
    return OnDeadline(name.removeprefix("ON_DEADLINE_")) if value else OnDeadline.ALERT


def escrow_mode_of(value: int) -> EscrowMode | None:
    """None lets the service choose."""
    name = payments_pb2.EscrowMode.Name(payments_pb2.EscrowMode.ValueType(value))
    return EscrowMode(name.removeprefix("ESCROW_MODE_")) if value else None


def preview_message(preview: Preview) -> payments_pb2.Preview:
    return payments_pb2.Preview(
        legs=[
            payments_pb2.Leg(
                kind=payments_pb2.LegKind.Value(f"LEG_KIND_{leg.kind}"),
                amount=money_message(leg.minor_units, preview.after.currency),
                transfer_id=leg.transfer_id,
            )
            for leg in preview.legs
        ],
        payment=payment_message(preview.after),
    )


def state_value(state: State) -> payments_pb2.PaymentState.ValueType:
    return payments_pb2.PaymentState.Value(f"PAYMENT_STATE_{state}")


def failure_message(failure: Failure | None) -> payments_pb2.Failure | None:
    if failure is None:
        return None
    return payments_pb2.Failure(
        code=failure.code,
        decline_code=failure.decline_code,
        message=failure.message,
        time=time_message(failure.time),
    )


def expert_message(expert: Expert) -> experts_pb2.Expert:
    account = expert.account
    return experts_pb2.Expert(
        expert_id=expert.expert_id,
        name=expert.name,
        email=expert.email,
        country=expert.country,
        business_type=business_type_value(expert.business_type),
        stripe_account_id=account.stripe_account_id,
        status=expert_status_value(expert.status),
        charges_enabled=account.charges_enabled,
        payouts_enabled=account.payouts_enabled,
        transfers_active=account.transfers_active,
        details_submitted=account.details_submitted,
        requirements_due=account.requirements_due,
        disabled_reason=account.disabled_reason,
        commission_basis_points=expert.commission_basis_points,
        create_time=time_message(expert.create_time),
        update_time=time_message(expert.update_time),
        version=expert.version,
    )


def payout_message(payout: Payout) -> experts_pb2.Payout:
    return experts_pb2.Payout(
        payout_id=payout.payout_id,
        expert_id=payout.expert_id,
        stripe_account_id=payout.stripe_account_id,
        amount=money_message(payout.minor_units, payout.currency),
        state=experts_pb2.PayoutState.Value(f"PAYOUT_STATE_{payout.state}"),
        automatic=payout.automatic,
        arrival_time=time_message(payout.arrival_time),
        failure_code=payout.failure_code,
        create_time=time_message(payout.create_time),
        update_time=time_message(payout.update_time),
        version=payout.version,
    )


def expert_balance_message(balance: ExpertBalance) -> experts_pb2.ExpertBalance:
    return experts_pb2.ExpertBalance(
        available=money_message(balance.available, balance.currency),
        pending=money_message(balance.pending, balance.currency),
        funds=money_message(balance.funds, balance.currency),
        debt=money_message(balance.debt, balance.currency),
    )


def expert_status_value(status: ExpertStatus) -> experts_pb2.ExpertStatus.ValueType:
    return experts_pb2.ExpertStatus.Value(f"EXPERT_STATUS_{status}")


def business_type_value(business_type: BusinessType) -> experts_pb2.BusinessType.ValueType:
    return experts_pb2.BusinessType.Value(f"BUSINESS_TYPE_{business_type.name}")


def business_type_of(value: int) -> BusinessType:
    """Unspecified means individual."""
    if not value:
        return BusinessType.INDIVIDUAL
    name = experts_pb2.BusinessType.Name(experts_pb2.BusinessType.ValueType(value))
    return BusinessType[name.removeprefix("BUSINESS_TYPE_")]


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
    """By Stripe's names, which are the fields' own; what is empty was not given."""
    return {field.name: str(value) for field, value in evidence.ListFields()}


def event_message(event: StoredEvent) -> events_pb2.PaymentEvent:
    return events_pb2.PaymentEvent(
        payment_id=event.payment_id,
        sequence=event.sequence,
        kind=event.kind,
        time=time_message(event.time),
        body_json=event.body,
        hash=event.hash,
    )


def posting_message(stored: StoredPosting) -> ledger_pb2.Posting:
    posting = stored.posting
    return ledger_pb2.Posting(
        posting_id=stored.posting_id,
        transaction_id=stored.transaction_id,
        payment_id=stored.payment_id,
        account=posting.account,
        amount=money_message(posting.minor_units, posting.currency),
        kind=posting.kind,
        balance_transaction_id=posting.balance_transaction_id,
        time=time_message(stored.time),
    )


def operation_message(operation: Operation) -> operations_pb2.Operation:
    return operations_pb2.Operation(
        operation_id=operation.operation_id,
        kind=operation.kind.value,
        payment_id=operation.related_payment_id,
        expert_id=operation.expert_id,
        state=operations_pb2.OperationState.Value(f"OPERATION_STATE_{operation.state}"),
        attempts=operation.tries,
        last_error=operation.last_error,
        create_time=time_message(operation.create_time),
        next_try_time=time_message(operation.next_try_time),
        dispute_id=operation.dispute_id,
    )


def operation_state_of(value: int) -> OperationState | None:
    if not value:
        return None
    name = operations_pb2.OperationState.Name(operations_pb2.OperationState.ValueType(value))
    return OperationState(name.removeprefix("OPERATION_STATE_"))


def webhook_event_message(event: WebhookEvent) -> operations_pb2.WebhookEvent:
    return operations_pb2.WebhookEvent(
        event_id=event.event_id,
        type=event.type,
        object_id=event.object_id,
        account_id=event.account_id,
        state=operations_pb2.WebhookEventState.Value(f"INBOX_STATE_{event.state}"),
        verdict=event.verdict,
        attempts=event.attempts,
        last_error=event.last_error,
        receive_time=time_message(event.receive_time),
        next_try_time=time_message(event.next_try_time),
    )


def webhook_event_state_of(value: int) -> str | None:
    if not value:
        return None
    name = operations_pb2.WebhookEventState.Name(operations_pb2.WebhookEventState.ValueType(value))
    return name.removeprefix("INBOX_STATE_")


def discrepancy_message(
    discrepancy: Discrepancy, stored: StoredDiscrepancy | None = None
) -> operations_pb2.Discrepancy:
    def amount(minor_units: int | None) -> money_pb2.Money | None:
        return None if minor_units is None else money_message(minor_units, discrepancy.currency)

    return operations_pb2.Discrepancy(
        discrepancy_id=stored.discrepancy_id if stored else 0,
        payment_id=discrepancy.payment_id,
        kind=discrepancy.kind,
        detail=discrepancy.detail,
        expected=amount(discrepancy.expected),
        found=amount(discrepancy.found),
        cure=discrepancy.cure,
        time=time_message(stored.time) if stored else None,
        last_seen_time=time_message(stored.last_seen_time) if stored else None,
        resolve_time=time_message(stored.resolve_time) if stored else None,
        resolved_by=stored.resolved_by if stored else "",
        note=stored.note if stored else "",
    )


def report_message(report: Report) -> operations_pb2.RunReconciliationResponse:
    return operations_pb2.RunReconciliationResponse(
        checked_payments=report.checked_payments,
        corrected_payments=report.corrected_payments,
        checked_lines=report.checked_lines,
        invariants=[
            operations_pb2.Invariant(name=name, violations=len(payment_ids))
            for name, payment_ids in report.violations.items()
        ],
        discrepancies=[discrepancy_message(found) for found in report.discrepancies],
    )


def initiated_message(
    payment: Payment, publishable_key: str
) -> payments_pb2.InitiatePaymentResponse:
    return payments_pb2.InitiatePaymentResponse(
        payment=payment_message(payment),
        publishable_key=publishable_key,
        application_fee=money_message(payment.commission, payment.currency),
    )
