"""Converts operations, webhook events, discrepancies and reports (operations.proto)."""

from __future__ import annotations

from typing import Final

from marketplace.payments.v1 import money_pb2, operations_pb2
from payment_service.application.reconciliation.report import Report
from payment_service.domain.operations import OperationState
from payment_service.domain.ports.records import (
    ListedOperation,
    StoredDiscrepancy,
    UserKind,
    WebhookEvent,
)
from payment_service.domain.sync.changes import Discrepancy
from payment_service.rpc.messages.common import money_message, time_message
from payment_service.rpc.messages.payments import waiting_for_value, waiting_reason_value

_INVARIANT: Final = "invariant_"


def operation_message(listed: ListedOperation) -> operations_pb2.Operation:
    operation = listed.operation
    return operations_pb2.Operation(
        operation_id=operation.operation_id,
        kind=operations_pb2.OperationKind.Value(f"OPERATION_KIND_{operation.kind.name}"),
        payment_id=operation.related_payment_id,
        expert_id=operation.expert_id,
        dispute_id=operation.dispute_id,
        state=operations_pb2.OperationState.Value(f"OPERATION_STATE_{operation.state}"),
        waiting_for=waiting_for_value(listed.waiting_for),
        waiting_reason=waiting_reason_value(listed.waiting_reason),
        attempts=operation.tries,
        last_error=operation.last_error,
        create_time=time_message(operation.create_time),
        next_try_time=time_message(operation.next_try_time),
    )


def operation_state_of(value: int) -> OperationState | None:
    """Returns the state, or None for unspecified: all that are not settled."""
    if not value:
        return None
    name = operations_pb2.OperationState.Name(operations_pb2.OperationState.ValueType(value))
    return OperationState(name.removeprefix("OPERATION_STATE_"))


def user_kind_of(value: int) -> UserKind:
    name = operations_pb2.UserKind.Name(operations_pb2.UserKind.ValueType(value))
    return UserKind(name.removeprefix("USER_KIND_"))


def webhook_event_message(event: WebhookEvent) -> operations_pb2.WebhookEvent:
    return operations_pb2.WebhookEvent(
        event_id=event.event_id,
        type=event.type,
        object_id=event.object_id,
        account_id=event.account_id,
        state=operations_pb2.WebhookEventState.Value(f"WEBHOOK_EVENT_STATE_{event.state}"),
        verdict=verdict_value(event.verdict),
        attempts=event.attempts,
        last_error=event.last_error,
        receive_time=time_message(event.receive_time),
        next_try_time=time_message(event.next_try_time),
    )


def verdict_value(verdict: str) -> operations_pb2.WebhookEventVerdict.ValueType:
    """Returns the verdict; of an event that a newer release applied it can be unspecified."""
    names = operations_pb2.WebhookEventVerdict
    name = f"WEBHOOK_EVENT_VERDICT_{verdict.upper()}"
    known = name in names.DESCRIPTOR.values_by_name
    return names.Value(name) if known else operations_pb2.WEBHOOK_EVENT_VERDICT_UNSPECIFIED


def webhook_event_state_of(value: int) -> str | None:
    """Returns the state, or None for unspecified: waiting and parked."""
    if not value:
        return None
    name = operations_pb2.WebhookEventState.Name(operations_pb2.WebhookEventState.ValueType(value))
    return name.removeprefix("WEBHOOK_EVENT_STATE_")


def discrepancy_message(
    discrepancy: Discrepancy, stored: StoredDiscrepancy | None = None
) -> operations_pb2.Discrepancy:
    """Returns a discrepancy. Without ``stored`` it is one of a report, which has no id."""

    def amount(minor_units: int | None) -> money_pb2.Money | None:
        return None if minor_units is None else money_message(minor_units, discrepancy.currency)

    is_invariant = discrepancy.kind.startswith(_INVARIANT)
    return operations_pb2.Discrepancy(
        discrepancy_id=stored.discrepancy_id if stored else "",
        payment_id=discrepancy.payment_id,
        kind=discrepancy_kind_value(discrepancy.kind),
        invariant=discrepancy.kind.removeprefix(_INVARIANT) if is_invariant else "",
        detail=discrepancy.detail,
        expected=amount(discrepancy.expected),
        found=amount(discrepancy.found),
        remediation=discrepancy.remediation,
        first_seen_time=time_message(stored.time) if stored else None,
        last_seen_time=time_message(stored.last_seen_time) if stored else None,
        resolve_time=time_message(stored.resolve_time) if stored else None,
        resolved_by=stored.resolved_by if stored else "",
        resolve_reason=stored.reason if stored else "",
    )


def discrepancy_kind_value(kind: str) -> operations_pb2.DiscrepancyKind.ValueType:
    """Returns the kind; of a discrepancy that a newer release stored it can be unspecified."""
    if kind.startswith(_INVARIANT):
        return operations_pb2.DISCREPANCY_KIND_INVARIANT_VIOLATED
    names, name = operations_pb2.DiscrepancyKind, f"DISCREPANCY_KIND_{kind.upper()}"
    known = name in names.DESCRIPTOR.values_by_name
    return names.Value(name) if known else operations_pb2.DISCREPANCY_KIND_UNSPECIFIED


def report_message(report: Report) -> operations_pb2.RunReconciliationResponse:
    return operations_pb2.RunReconciliationResponse(
        checked_payments=report.checked_payments,
        corrected_payments=report.corrected_payments,
        checked_lines=report.checked_lines,
        invariants=[
            operations_pb2.Invariant(name=kind.invariant_name, violations=len(payment_ids))
            for kind, payment_ids in report.violations.items()
        ],
        discrepancies=[discrepancy_message(found) for found in report.discrepancies],
        unread_accounts=report.unread,
    )
