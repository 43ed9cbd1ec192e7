"""DisputeService: reads disputes and answers them."""

from __future__ import annotations

from marketplace.payments.v1 import disputes_pb2, disputes_pb2_grpc
from payment_service.application.answer_dispute import (
    AcceptDispute,
    SubmitEvidence,
    accept_dispute,
    acceptance_preview,
    submit_evidence,
)
from payment_service.application.app import App
from payment_service.domain.disputes import check_evidence_fields, dispute_not_found
from payment_service.domain.ports.records import DisputeFilter
from payment_service.rpc import pagination
from payment_service.rpc.call_context import CallRegistry, Context, acting_for, cause_of
from payment_service.rpc.fields import RequestFields, fingerprint
from payment_service.rpc.messages.disputes import dispute_message, evidence_of
from payment_service.rpc.messages.payments import preview_message


class DisputeServicer(disputes_pb2_grpc.DisputeServiceServicer):
    """Answers with the stored bytes, as PaymentServicer does."""

    def __init__(self, app: App, calls: CallRegistry) -> None:
        self._app = app
        self._calls = calls

    async def ListDisputes(
        self, request: disputes_pb2.ListDisputesRequest, context: Context
    ) -> disputes_pb2.ListDisputesResponse:
        fields = RequestFields()
        payment_id, expert_id = request.payment_id, request.expert_id
        if payment_id:
            fields.our_id("payment_id", payment_id)
        if expert_id:
            fields.identifier("expert_id", expert_id)
        page_size = fields.page_size(request.page_size)
        fields.check()
        of_user = acting_for()
        filters = repr((payment_id, expert_id, request.open_only, of_user))
        keyset = pagination.read_page_token("disputes", filters, request.page_token, 2)
        which = DisputeFilter(
            payment_id=payment_id,
            expert_id=expert_id,
            of_user=of_user,
            open_only=request.open_only,
            before=(pagination.token_time(keyset[0]), keyset[1]) if keyset else None,
        )
        found = await self._app.database.read(lambda reader: reader.disputes(which, page_size + 1))
        page, token = pagination.page_of(
            found,
            page_size,
            "disputes",
            filters,
            lambda dispute: [dispute.create_time.isoformat(), dispute.dispute_id],
        )
        return disputes_pb2.ListDisputesResponse(
            disputes=[dispute_message(dispute) for dispute in page], next_page_token=token
        )

    async def GetDispute(
        self, request: disputes_pb2.GetDisputeRequest, context: Context
    ) -> disputes_pb2.GetDisputeResponse:
        fields = RequestFields()
        dispute_id = fields.our_id("dispute_id", request.dispute_id)
        fields.check()
        of_user = acting_for()
        dispute = await self._app.database.read(lambda reader: reader.dispute(dispute_id, of_user))
        if dispute is None:
            raise dispute_not_found(dispute_id)
        return disputes_pb2.GetDisputeResponse(dispute=dispute_message(dispute))

    async def SubmitEvidence(
        self, request: disputes_pb2.SubmitEvidenceRequest, context: Context
    ) -> disputes_pb2.SubmitEvidenceResponse:
        fields = RequestFields()
        command = SubmitEvidence(
            cause=cause_of(context, "SubmitEvidence"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request),
            dispute_id=fields.our_id("dispute_id", request.dispute_id),
            evidence=evidence_of(request.evidence),
            submit=request.submit,
        )
        fields.check()
        check_evidence_fields(command.evidence)
        answer = await self._calls.run(submit_evidence(self._app, command))
        return answer.body  # type: ignore[return-value]  # the interceptor sends bytes as they are

    async def AcceptDispute(
        self, request: disputes_pb2.AcceptDisputeRequest, context: Context
    ) -> disputes_pb2.AcceptDisputeResponse:
        fields = RequestFields()
        command = AcceptDispute(
            cause=cause_of(context, "AcceptDispute"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request),
            dispute_id=fields.our_id("dispute_id", request.dispute_id),
        )
        fields.check()
        if request.validate_only:
            dispute, preview = await self._app.database.transact(
                acceptance_preview, self._app.policy, command
            )
            return disputes_pb2.AcceptDisputeResponse(
                dispute=dispute_message(dispute),
                preview=preview_message(preview),
            )
        answer = await self._calls.run(accept_dispute(self._app, command))
        return answer.body  # type: ignore[return-value]  # the interceptor sends bytes as they are
