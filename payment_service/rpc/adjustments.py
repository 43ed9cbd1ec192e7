"""The calls of OperationsService that correct the books by two people."""

from __future__ import annotations

from datetime import datetime

from marketplace.payments.v1 import adjustments_pb2
from payment_service.application.adjustments import (
    ApproveAdjustment,
    ProposeAdjustment,
    RejectAdjustment,
    approve_adjustment,
    propose_adjustment,
    reject_adjustment,
)
from payment_service.application.app import App
from payment_service.application.export_payment_proof import export_payment_proof
from payment_service.domain.adjustments import Adjustment, AdjustmentLine
from payment_service.rpc import pagination
from payment_service.rpc.call_context import CallRegistry, Context, cause_of
from payment_service.rpc.fields import RequestFields, fingerprint
from payment_service.rpc.messages.adjustments import adjustment_message, adjustment_state_of
from payment_service.rpc.messages.common import time_message


class AdjustmentCalls:
    """Proposes, approves, rejects and lists adjustments."""

    _app: App
    _calls: CallRegistry

    async def ProposeAdjustment(
        self, request: adjustments_pb2.ProposeAdjustmentRequest, context: Context
    ) -> adjustments_pb2.ProposeAdjustmentResponse:
        fields = RequestFields()
        if request.payment_id:
            fields.our_id("payment_id", request.payment_id)
        if request.expert_id:
            fields.identifier("expert_id", request.expert_id)
            if request.payment_id:
                fields.fault("expert_id", "must be empty if there is a payment_id")
        command = ProposeAdjustment(
            cause=cause_of(context, "ProposeAdjustment"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request),
            payment_id=request.payment_id,
            expert_id=request.expert_id,
            lines=_lines(fields, request),
            ticket=fields.identifier("ticket", request.ticket),
            reason=fields.text("reason", request.reason, required=True),
        )
        fields.check()
        # The interceptor sends bytes as they are.
        return await self._calls.run(
            propose_adjustment(self._app, command)  # type: ignore[arg-type]
        )

    async def ApproveAdjustment(
        self, request: adjustments_pb2.ApproveAdjustmentRequest, context: Context
    ) -> adjustments_pb2.ApproveAdjustmentResponse:
        fields = RequestFields()
        command = ApproveAdjustment(
            cause=cause_of(context, "ApproveAdjustment"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request),
            adjustment_id=fields.our_id("adjustment_id", request.adjustment_id),
        )
        fields.check()
        # The interceptor sends bytes as they are.
        return await self._calls.run(
            approve_adjustment(self._app, command)  # type: ignore[arg-type]
        )

    async def RejectAdjustment(
        self, request: adjustments_pb2.RejectAdjustmentRequest, context: Context
    ) -> adjustments_pb2.RejectAdjustmentResponse:
        fields = RequestFields()
        command = RejectAdjustment(
            cause=cause_of(context, "RejectAdjustment"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request),
            adjustment_id=fields.our_id("adjustment_id", request.adjustment_id),
            reason=fields.text("reason", request.reason, required=True),
        )
        fields.check()
        # The interceptor sends bytes as they are.
        return await self._calls.run(
            reject_adjustment(self._app, command)  # type: ignore[arg-type]
        )

    async def ListAdjustments(
        self, request: adjustments_pb2.ListAdjustmentsRequest, context: Context
    ) -> adjustments_pb2.ListAdjustmentsResponse:
        fields = RequestFields()
        if request.payment_id:
            fields.our_id("payment_id", request.payment_id)
        if request.expert_id:
            fields.identifier("expert_id", request.expert_id)
        fields.enum("state", request.state, adjustments_pb2.AdjustmentState)
        page_size = fields.page_size(request.page_size)
        fields.check()
        which = (request.payment_id, request.expert_id)
        filters = f"{request.payment_id} {request.expert_id} {request.state}"
        keyset = pagination.read_page_token("adjustments", filters, request.page_token, 2)
        before = (pagination.token_time(keyset[0]), keyset[1]) if keyset else None
        state = adjustment_state_of(request.state)
        found = await self._app.database.read(
            lambda reader: reader.adjustments(which, state, before, page_size + 1)
        )
        page, token = pagination.page_of(found, page_size, "adjustments", filters, _keyset)
        return adjustments_pb2.ListAdjustmentsResponse(
            adjustments=[adjustment_message(adjustment, now) for adjustment, now in page],
            next_page_token=token,
        )


class ProofCalls:
    """Exports what proves a payment."""

    _app: App

    async def ExportPaymentProof(
        self, request: adjustments_pb2.ExportPaymentProofRequest, context: Context
    ) -> adjustments_pb2.ExportPaymentProofResponse:
        fields = RequestFields()
        payment_id = fields.our_id("payment_id", request.payment_id)
        fields.check()
        proof = await export_payment_proof(
            self._app.aside(), payment_id, with_texts=request.include_texts
        )
        return adjustments_pb2.ExportPaymentProofResponse(
            bundle=proof.bundle,
            event_count=proof.events,
            covered_sequence=proof.covered,
            heads_time=time_message(proof.heads.time) if proof.heads else None,
        )


def _lines(
    fields: RequestFields, request: adjustments_pb2.ProposeAdjustmentRequest
) -> list[AdjustmentLine]:
    """Checks that each line is complete. The use case checks what it means."""
    if not request.lines:
        fields.fault("lines", "is required")
    found = []
    for number, line in enumerate(request.lines):
        field = f"lines[{number}]"
        account = fields.text(f"{field}.account", line.account, most=200, required=True)
        currency = fields.currency(f"{field}.amount.currency_code", line.amount.currency_code)
        found.append(AdjustmentLine(account, currency, line.amount.minor_units))
    return found


def _keyset(read: tuple[Adjustment, datetime]) -> list[str]:
    adjustment, _ = read
    return [adjustment.create_time.isoformat(), adjustment.adjustment_id]
