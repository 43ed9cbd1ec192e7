"""LedgerService and OperationsService: what auditors and operators read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from marketplace.payments.v1 import (
    ledger_pb2,
    ledger_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from payment_service.application.core import Core
from payment_service.application.give_up_operation import give_up_operation
from payment_service.application.operate import (
    resolve_discrepancy,
    resume_operation,
    retry_inbox_event,
)
from payment_service.application.reconcile import reconcile, reconcile_payment
from payment_service.application.release_fraud_warning import (
    ReleaseFraudWarning,
    release_fraud_warning,
)
from payment_service.application.settle_owed import SettleOwed, settle_owed
from payment_service.application.write_off_debt import (
    WriteOffDebt,
    write_off_debt,
    write_off_preview,
)
from payment_service.domain.errors import payment_not_found
from payment_service.domain.ports import InboxEvent
from payment_service.rpc import convert
from payment_service.rpc.calls import Context, Operations, cause_of
from payment_service.rpc.convert import Fields


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    def __init__(self, core: Core) -> None:
        self._core = core

    async def ListBalances(
        self, request: ledger_pb2.ListBalancesRequest, context: Context
    ) -> ledger_pb2.ListBalancesResponse:
        fields = Fields()
        prefix = fields.text("account_prefix", request.account_prefix, most=200)
        page_size = fields.page_size(request.page_size, default=200, most=1000)
        fields.check()
        keyset = convert.read_page_token("balances", prefix, request.page_token, 2)
        after = (keyset[0], keyset[1]) if keyset else None
        found = await self._core.database.read(
            lambda reader: reader.balances(prefix, after, page_size + 1)
        )
        totals = await self._core.database.read(lambda reader: reader.totals())
        page, token = convert.page_of(
            found, page_size, "balances", prefix, lambda balance: balance[:2]
        )
        return ledger_pb2.ListBalancesResponse(
            balances=[
                ledger_pb2.LedgerBalance(
                    account=account, balance=convert.money_message(balance, currency)
                )
                for account, currency, balance in page
            ],
            next_page_token=token,
            totals=[convert.money_message(total, currency) for currency, total in totals],
        )

    async def ListPostings(
        self, request: ledger_pb2.ListPostingsRequest, context: Context
    ) -> ledger_pb2.ListPostingsResponse:
        fields = Fields()
        payment_id = fields.our_id("payment_id", request.payment_id)
        fields.check()
        payment = await self._core.database.read(lambda reader: reader.payment(payment_id))
        if payment is None:
            raise payment_not_found(payment_id)
        found = await self._core.database.read(lambda reader: reader.postings(payment_id))
        return ledger_pb2.ListPostingsResponse(
            postings=[convert.posting_message(posting) for posting in found]
        )


class OperationsServicer(operations_pb2_grpc.OperationsServiceServicer):
    def __init__(self, core: Core, operations: Operations) -> None:
        self._core = core
        self._operations = operations

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        fields = Fields()
        fields.enum("state", request.state, operations_pb2.OperationState)
        page_size = fields.page_size(request.page_size)
        fields.check()
        filters = str(request.state)
        after = _after("operations", filters, request.page_token)
        state = convert.operation_state_of(request.state)
        found = await self._core.database.read(
            lambda reader: reader.operations(state, after, page_size + 1)
        )
        page, token = convert.page_of(
            found,
            page_size,
            "operations",
            filters,
            lambda operation: [operation.create_time.isoformat(), operation.operation_id],
        )
        return operations_pb2.ListOperationsResponse(
            operations=[convert.operation_message(operation) for operation in page],
            next_page_token=token,
        )

    async def ResumeOperation(
        self, request: operations_pb2.ResumeOperationRequest, context: Context
    ) -> operations_pb2.ResumeOperationResponse:
        fields = Fields()
        operation_id = fields.our_id("operation_id", request.operation_id)
        fields.check()
        cause = cause_of(context, "ResumeOperation")
        operation = await self._operations.run(resume_operation(self._core, operation_id, cause))
        return operations_pb2.ResumeOperationResponse(
            operation=convert.operation_message(operation)
        )

    async def GiveUpOperation(
        self, request: operations_pb2.GiveUpOperationRequest, context: Context
    ) -> operations_pb2.GiveUpOperationResponse:
        fields = Fields()
        operation_id = fields.our_id("operation_id", request.operation_id)
        note = fields.text("note", request.note, required=True)
        fields.check()
        cause = cause_of(context, "GiveUpOperation")
        operation = await self._operations.run(
            give_up_operation(self._core, operation_id, note, cause)
        )
        return operations_pb2.GiveUpOperationResponse(
            operation=convert.operation_message(operation)
        )

    async def WriteOffDebt(
        self, request: operations_pb2.WriteOffDebtRequest, context: Context
    ) -> operations_pb2.WriteOffDebtResponse:
        fields = Fields()
        currency = fields.currency("amount.currency_code", request.amount.currency_code)
        if request.amount.minor_units < 0:
            fields.fault("amount.minor_units", "must not be negative; 0 means all of it")
        command = WriteOffDebt(
            cause=cause_of(context, "WriteOffDebt"),
            key=fields.key(request.idempotency_key),
            fields=convert.fields_of(request),
            expert_id=fields.identifier("expert_id", request.expert_id),
            minor_units=request.amount.minor_units or None,
            currency=currency,
            reason=fields.text("reason", request.reason, required=True),
        )
        fields.check()
        if request.validate_only:
            answer = await self._core.database.transact(
                write_off_preview, self._core.answers, command
            )
            return operations_pb2.WriteOffDebtResponse.FromString(answer.body)
        # The interceptor sends bytes as they are.
        return await self._operations.run(
            write_off_debt(self._core, command)  # type: ignore[arg-type]
        )

    async def ReleaseFraudWarning(
        self, request: operations_pb2.ReleaseFraudWarningRequest, context: Context
    ) -> operations_pb2.ReleaseFraudWarningResponse:
        fields = Fields()
        command = ReleaseFraudWarning(
            cause=cause_of(context, "ReleaseFraudWarning"),
            key=fields.key(request.idempotency_key),
            fields=convert.fields_of(request),
            payment_id=fields.our_id("payment_id", request.payment_id),
            warning_id=fields.text("warning_id", request.warning_id, most=255),
            note=fields.text("note", request.note, required=True),
        )
        fields.check()
        # The interceptor sends bytes as they are.
        return await self._operations.run(
            release_fraud_warning(self._core, command)  # type: ignore[arg-type]
        )

    async def SettleOwed(
        self, request: operations_pb2.SettleOwedRequest, context: Context
    ) -> operations_pb2.SettleOwedResponse:
        fields = Fields()
        amount = request.amount if request.HasField("amount") else None
        command = SettleOwed(
            cause=cause_of(context, "SettleOwed"),
            key=fields.key(request.idempotency_key),
            fields=convert.fields_of(request),
            payment_id=fields.our_id("payment_id", request.payment_id),
            part=fields.part(amount, self._core.policy),
            note=fields.text("note", request.note, required=True),
        )
        fields.check()
        # The interceptor sends bytes as they are.
        return await self._operations.run(
            settle_owed(self._core, command)  # type: ignore[arg-type]
        )

    async def ListInboxEvents(
        self, request: operations_pb2.ListInboxEventsRequest, context: Context
    ) -> operations_pb2.ListInboxEventsResponse:
        fields = Fields()
        fields.enum("state", request.state, operations_pb2.InboxState)
        page_size = fields.page_size(request.page_size)
        fields.check()
        filters = str(request.state)
        after = _after("inbox", filters, request.page_token)
        state = convert.inbox_state_of(request.state)
        found = await self._core.database.read(
            lambda reader: reader.inbox(state, after, page_size + 1)
        )
        page, token = convert.page_of(found, page_size, "inbox", filters, _inbox_keyset)
        return operations_pb2.ListInboxEventsResponse(
            events=[convert.inbox_event_message(event) for event in page],
            next_page_token=token,
        )

    async def RetryInboxEvent(
        self, request: operations_pb2.RetryInboxEventRequest, context: Context
    ) -> operations_pb2.RetryInboxEventResponse:
        fields = Fields()
        event_id = fields.our_id("event_id", request.event_id)
        fields.check()
        event = await self._operations.run(retry_inbox_event(self._core, event_id))
        return operations_pb2.RetryInboxEventResponse(event=convert.inbox_event_message(event))

    async def RunReconciliation(
        self, request: operations_pb2.RunReconciliationRequest, context: Context
    ) -> operations_pb2.RunReconciliationResponse:
        fields = Fields()
        payment_id = fields.our_id("payment_id", request.payment_id) if request.payment_id else ""
        since = fields.time("since", request)
        fields.check()
        cause = cause_of(context, "RunReconciliation")
        span = timedelta(seconds=self._core.policy.reconcile_span)
        report = await self._operations.run(
            reconcile_payment(self._core, payment_id, cause)
            if payment_id
            else reconcile(self._core, since or datetime.now(UTC) - span, cause)
        )
        return convert.report_message(report)

    async def ListDiscrepancies(
        self, request: operations_pb2.ListDiscrepanciesRequest, context: Context
    ) -> operations_pb2.ListDiscrepanciesResponse:
        fields = Fields()
        payment_id = ""
        if request.payment_id:
            payment_id = fields.our_id("payment_id", request.payment_id)
        page_size = fields.page_size(request.page_size)
        fields.check()
        filters = f"{payment_id} {request.open_only}"
        keyset = convert.read_page_token("discrepancies", filters, request.page_token, 1)
        before = convert.token_number(keyset[0]) if keyset else None
        found = await self._core.database.read(
            lambda reader: reader.discrepancies(
                payment_id, before, page_size + 1, open_only=request.open_only
            )
        )
        page, token = convert.page_of(
            found, page_size, "discrepancies", filters, lambda stored: [str(stored.discrepancy_id)]
        )
        return operations_pb2.ListDiscrepanciesResponse(
            discrepancies=[
                convert.discrepancy_message(stored.discrepancy, stored) for stored in page
            ],
            next_page_token=token,
        )

    async def ResolveDiscrepancy(
        self, request: operations_pb2.ResolveDiscrepancyRequest, context: Context
    ) -> operations_pb2.ResolveDiscrepancyResponse:
        fields = Fields()
        if request.discrepancy_id < 1:
            fields.fault("discrepancy_id", "is required")
        note = fields.text("note", request.note, required=True)
        fields.check()
        cause = cause_of(context, "ResolveDiscrepancy")
        stored = await self._operations.run(
            resolve_discrepancy(self._core, request.discrepancy_id, note, cause)
        )
        return operations_pb2.ResolveDiscrepancyResponse(
            discrepancy=convert.discrepancy_message(stored.discrepancy, stored)
        )


def _inbox_keyset(event: InboxEvent) -> list[str]:
    return [event.receive_time.isoformat() if event.receive_time else "", event.event_id]


def _after(kind: str, filters: str, token: str) -> tuple[datetime, str] | None:
    keyset: Sequence[str] | None = convert.read_page_token(kind, filters, token, 2)
    return (convert.token_time(keyset[0]), keyset[1]) if keyset else None
