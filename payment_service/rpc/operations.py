"""OperationsService: shows operators what waits, and takes their decisions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from marketplace.payments.v1 import operations_pb2, operations_pb2_grpc
from payment_service.application.abandon_operation import abandon_operation
from payment_service.application.app import App
from payment_service.application.dismiss_fraud_warning import (
    DismissFraudWarning,
    dismiss_fraud_warning,
)
from payment_service.application.erase_user import EraseUser, erase_user
from payment_service.application.reconciliation.run import reconcile, reconcile_payment
from payment_service.application.resolve_discrepancy import resolve_discrepancy
from payment_service.application.resume_operation import resume_operation
from payment_service.application.retry_webhook_event import retry_webhook_event
from payment_service.application.settle_client_payable import (
    SettleClientPayable,
    settle_client_payable,
)
from payment_service.application.write_off_expert_debt import (
    WriteOffExpertDebt,
    write_off_expert_debt,
    write_off_preview,
)
from payment_service.domain.ports.records import ListedOperation, WebhookEvent
from payment_service.rpc import pagination
from payment_service.rpc.adjustments import AdjustmentCalls, ProofCalls
from payment_service.rpc.call_context import CallRegistry, Context, cause_of
from payment_service.rpc.fields import RequestFields, fingerprint
from payment_service.rpc.messages.common import time_message
from payment_service.rpc.messages.operations import (
    discrepancy_message,
    operation_message,
    operation_state_of,
    report_message,
    user_kind_of,
    webhook_event_message,
    webhook_event_state_of,
)


class OperationsServicer(
    AdjustmentCalls, ProofCalls, operations_pb2_grpc.OperationsServiceServicer
):
    def __init__(self, app: App, calls: CallRegistry) -> None:
        self._app = app
        self._calls = calls

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        fields = RequestFields()
        payment_id = request.payment_id
        if payment_id:
            fields.our_id("payment_id", payment_id)
        fields.enum("state", request.state, operations_pb2.OperationState)
        page_size = fields.page_size(request.page_size)
        fields.check()
        filters = f"{payment_id} {request.state}"
        after = _after("operations", filters, request.page_token)
        state = operation_state_of(request.state)
        found = await self._app.database.read(
            lambda reader: reader.operations(payment_id, state, after, page_size + 1)
        )
        page, token = pagination.page_of(
            found,
            page_size,
            "operations",
            filters,
            _operation_keyset,
        )
        return operations_pb2.ListOperationsResponse(
            operations=[operation_message(listed) for listed in page],
            next_page_token=token,
        )

    async def ResumeOperation(
        self, request: operations_pb2.ResumeOperationRequest, context: Context
    ) -> operations_pb2.ResumeOperationResponse:
        fields = RequestFields()
        operation_id = fields.our_id("operation_id", request.operation_id)
        fields.check()
        cause = cause_of(context, "ResumeOperation")
        operation = await self._calls.run(resume_operation(self._app, operation_id, cause))
        return operations_pb2.ResumeOperationResponse(
            operation=operation_message(ListedOperation(operation))
        )

    async def AbandonOperation(
        self, request: operations_pb2.AbandonOperationRequest, context: Context
    ) -> operations_pb2.AbandonOperationResponse:
        fields = RequestFields()
        operation_id = fields.our_id("operation_id", request.operation_id)
        reason = fields.text("reason", request.reason, required=True)
        fields.check()
        cause = cause_of(context, "AbandonOperation")
        operation = await self._calls.run(abandon_operation(self._app, operation_id, reason, cause))
        return operations_pb2.AbandonOperationResponse(
            operation=operation_message(ListedOperation(operation))
        )

    async def WriteOffExpertDebt(
        self, request: operations_pb2.WriteOffExpertDebtRequest, context: Context
    ) -> operations_pb2.WriteOffExpertDebtResponse:
        fields = RequestFields()
        currency = fields.currency("currency_code", request.currency_code)
        amount = fields.part(
            request.amount if request.HasField("amount") else None, self._app.policy
        )
        named = amount.currency.upper() if amount else ""
        if named and request.currency_code and named != currency:
            fields.fault("amount.currency_code", "must be the same as currency_code, or empty")
        command = WriteOffExpertDebt(
            cause=cause_of(context, "WriteOffExpertDebt"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request),
            expert_id=fields.identifier("expert_id", request.expert_id),
            minor_units=amount.minor_units if amount else None,
            currency=currency,
            reason=fields.text("reason", request.reason, required=True),
        )
        fields.check()
        if request.validate_only:
            answer = await self._app.database.transact(
                write_off_preview, self._app.answers, self._app.policy, command
            )
            return operations_pb2.WriteOffExpertDebtResponse.FromString(answer.body)
        # The interceptor sends bytes as they are.
        return await self._calls.run(
            write_off_expert_debt(self._app, command)  # type: ignore[arg-type]
        )

    async def DismissFraudWarning(
        self, request: operations_pb2.DismissFraudWarningRequest, context: Context
    ) -> operations_pb2.DismissFraudWarningResponse:
        fields = RequestFields()
        command = DismissFraudWarning(
            cause=cause_of(context, "DismissFraudWarning"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request),
            payment_id=fields.our_id("payment_id", request.payment_id),
            warning_id=fields.text("warning_id", request.warning_id, most=255),
            reason=fields.text("reason", request.reason, required=True),
        )
        fields.check()
        # The interceptor sends bytes as they are.
        return await self._calls.run(
            dismiss_fraud_warning(self._app, command)  # type: ignore[arg-type]
        )

    async def SettleClientPayable(
        self, request: operations_pb2.SettleClientPayableRequest, context: Context
    ) -> operations_pb2.SettleClientPayableResponse:
        fields = RequestFields()
        amount = request.amount if request.HasField("amount") else None
        command = SettleClientPayable(
            cause=cause_of(context, "SettleClientPayable"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request),
            payment_id=fields.our_id("payment_id", request.payment_id),
            part=fields.part(amount, self._app.policy),
            reason=fields.text("reason", request.reason, required=True),
        )
        fields.check()
        # The interceptor sends bytes as they are.
        return await self._calls.run(
            settle_client_payable(self._app, command)  # type: ignore[arg-type]
        )

    async def ListWebhookEvents(
        self, request: operations_pb2.ListWebhookEventsRequest, context: Context
    ) -> operations_pb2.ListWebhookEventsResponse:
        fields = RequestFields()
        fields.enum("state", request.state, operations_pb2.WebhookEventState)
        page_size = fields.page_size(request.page_size)
        fields.check()
        filters = str(request.state)
        after = _after("webhook_events", filters, request.page_token)
        state = webhook_event_state_of(request.state)
        found = await self._app.database.read(
            lambda reader: reader.webhook_events(state, after, page_size + 1)
        )
        page, token = pagination.page_of(
            found, page_size, "webhook_events", filters, _webhook_event_keyset
        )
        return operations_pb2.ListWebhookEventsResponse(
            events=[webhook_event_message(event) for event in page],
            next_page_token=token,
        )

    async def RetryWebhookEvent(
        self, request: operations_pb2.RetryWebhookEventRequest, context: Context
    ) -> operations_pb2.RetryWebhookEventResponse:
        fields = RequestFields()
        event_id = fields.our_id("event_id", request.event_id)
        fields.check()
        event = await self._calls.run(retry_webhook_event(self._app, event_id))
        return operations_pb2.RetryWebhookEventResponse(event=webhook_event_message(event))

    async def RunReconciliation(
        self, request: operations_pb2.RunReconciliationRequest, context: Context
    ) -> operations_pb2.RunReconciliationResponse:
        fields = RequestFields()
        payment_id = fields.our_id("payment_id", request.payment_id) if request.payment_id else ""
        min_update_time = fields.time("min_update_time", request)
        fields.check()
        cause = cause_of(context, "RunReconciliation")
        report = await self._calls.run(
            reconcile_payment(self._app, payment_id, cause)
            if payment_id
            else reconcile(self._app, min_update_time, cause)
        )
        return report_message(report)

    async def ListDiscrepancies(
        self, request: operations_pb2.ListDiscrepanciesRequest, context: Context
    ) -> operations_pb2.ListDiscrepanciesResponse:
        fields = RequestFields()
        payment_id = ""
        if request.payment_id:
            payment_id = fields.our_id("payment_id", request.payment_id)
        page_size = fields.page_size(request.page_size)
        fields.check()
        filters = f"{payment_id} {request.open_only}"
        keyset = pagination.read_page_token("discrepancies", filters, request.page_token, 1)
        before = pagination.token_id(keyset[0]) if keyset else None
        found = await self._app.database.read(
            lambda reader: reader.discrepancies(
                payment_id, before, page_size + 1, open_only=request.open_only
            )
        )
        page, token = pagination.page_of(
            found, page_size, "discrepancies", filters, lambda stored: [stored.discrepancy_id]
        )
        return operations_pb2.ListDiscrepanciesResponse(
            discrepancies=[discrepancy_message(stored.discrepancy, stored) for stored in page],
            next_page_token=token,
        )

    async def ResolveDiscrepancy(
        self, request: operations_pb2.ResolveDiscrepancyRequest, context: Context
    ) -> operations_pb2.ResolveDiscrepancyResponse:
        fields = RequestFields()
        discrepancy_id = fields.our_id("discrepancy_id", request.discrepancy_id)
        reason = fields.text("reason", request.reason, required=True)
        fields.check()
        cause = cause_of(context, "ResolveDiscrepancy")
        stored = await self._calls.run(
            resolve_discrepancy(self._app, discrepancy_id, reason, cause)
        )
        return operations_pb2.ResolveDiscrepancyResponse(
            discrepancy=discrepancy_message(stored.discrepancy, stored)
        )

    async def EraseUser(
        self, request: operations_pb2.EraseUserRequest, context: Context
    ) -> operations_pb2.EraseUserResponse:
        fields = RequestFields()
        kind = fields.enum("kind", request.kind, operations_pb2.UserKind)
        if not kind:
            fields.fault("kind", "is required")
        user_id = fields.identifier("user_id", request.user_id)
        reason = fields.text("reason", request.reason, required=True)
        fields.check()
        command = EraseUser(
            cause=cause_of(context, "EraseUser"),
            kind=user_kind_of(kind),
            user_id=user_id,
            reason=reason,
        )
        erased = await self._calls.run(erase_user(self._app, command))
        return operations_pb2.EraseUserResponse(
            erase_time=time_message(erased.time),
            payment_count=erased.payments,
            erased_text_count=erased.texts,
        )


def _operation_keyset(listed: ListedOperation) -> list[str]:
    operation = listed.operation
    return [operation.create_time.isoformat(), operation.operation_id]


def _webhook_event_keyset(event: WebhookEvent) -> list[str]:
    return [event.receive_time.isoformat() if event.receive_time else "", event.event_id]


def _after(kind: str, filters: str, token: str) -> tuple[datetime, str] | None:
    keyset: Sequence[str] | None = pagination.read_page_token(kind, filters, token, 2)
    return (pagination.token_time(keyset[0]), keyset[1]) if keyset else None
