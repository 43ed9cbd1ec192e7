"""PaymentService: converts requests to commands, and results to responses."""

from __future__ import annotations

from marketplace.payments.v1 import money_pb2, payments_pb2, payments_pb2_grpc
from payment_service.application.app import App
from payment_service.application.capture_payment import (
    CapturePayment,
    capture_payment,
    capture_preview,
)
from payment_service.application.initiate_payment import (
    InitiatePayment,
    initiate_payment,
    preview_of_initiation,
)
from payment_service.application.refund_payment import (
    RefundPayment,
    preview_refund_payment,
    refund_payment,
)
from payment_service.domain.errors import payment_not_found
from payment_service.domain.payment import Payment, State
from payment_service.domain.ports.records import PaymentFilter
from payment_service.rpc import pagination
from payment_service.rpc.access import check_client
from payment_service.rpc.call_context import CallRegistry, Context, acting_for, cause_of
from payment_service.rpc.fields import RequestFields, fingerprint
from payment_service.rpc.messages.common import time_message
from payment_service.rpc.messages.payments import (
    escrow_mode_of,
    initiated_message,
    on_deadline_of,
    payment_message,
    preview_message,
    state_of,
    state_value,
)


class PaymentServicer(payments_pb2_grpc.PaymentServiceServicer):
    """Answers money RPCs with the stored bytes, so that a repeated key gets the same ones."""

    def __init__(self, app: App, calls: CallRegistry) -> None:
        self._app = app
        self._calls = calls

    async def InitiatePayment(
        self, request: payments_pb2.InitiatePaymentRequest, context: Context
    ) -> payments_pb2.InitiatePaymentResponse:
        fields = RequestFields()
        command = InitiatePayment(
            cause=cause_of(context, "InitiatePayment"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request),
            client_id=fields.identifier("client_id", request.client_id),
            expert_id=fields.identifier("expert_id", request.expert_id),
            gig_id=fields.identifier("gig_id", request.gig_id),
            amount=fields.amount(_amount_of(request), self._app.policy),
            description=fields.text("description", request.description),
            escrow_mode=escrow_mode_of(
                fields.enum("escrow_mode", request.escrow_mode, payments_pb2.EscrowMode)
            ),
            on_deadline=on_deadline_of(
                fields.enum("on_deadline", request.on_deadline, payments_pb2.OnDeadline)
            ),
            expected_completion_time=fields.time("expected_completion_time", request),
        )
        if request.expert_id and request.client_id == request.expert_id:
            fields.fault("expert_id", "must be another than the client")
        fields.check()
        check_client(command.client_id)
        if request.validate_only:
            payment = await preview_of_initiation(self._app, command)
            return initiated_message(payment, self._app.policy.publishable_key)
        answer = await self._calls.run(initiate_payment(self._app, command))
        response = payments_pb2.InitiatePaymentResponse.FromString(answer.body)
        response.client_secret = answer.client_secret
        return response

    async def CapturePayment(
        self, request: payments_pb2.CapturePaymentRequest, context: Context
    ) -> payments_pb2.CapturePaymentResponse:
        fields = RequestFields()
        command = CapturePayment(
            cause=cause_of(context, "CapturePayment"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request),
            payment_id=fields.our_id("payment_id", request.payment_id),
            part=fields.part(_amount_of(request), self._app.policy),
            final=request.final,
            notes=fields.text("notes", request.notes),
            expected_version=fields.version("expected_version", request.expected_version),
        )
        fields.check()
        if request.validate_only:
            preview = await self._app.database.transact(capture_preview, self._app.policy, command)
            return payments_pb2.CapturePaymentResponse(
                payment=payment_message(preview.before),
                preview=preview_message(preview),
            )
        answer = await self._calls.run(capture_payment(self._app, command))
        return answer.body  # type: ignore[return-value]  # the interceptor sends bytes as they are

    async def RefundPayment(
        self, request: payments_pb2.RefundPaymentRequest, context: Context
    ) -> payments_pb2.RefundPaymentResponse:
        fields = RequestFields()
        command = RefundPayment(
            cause=cause_of(context, "RefundPayment"),
            key=fields.key(request.idempotency_key),
            fields=fingerprint(request),
            payment_id=fields.our_id("payment_id", request.payment_id),
            part=fields.part(_amount_of(request), self._app.policy),
            reason=fields.text("reason", request.reason),
            expected_version=fields.version("expected_version", request.expected_version),
        )
        fields.check()
        if request.validate_only:
            preview = await preview_refund_payment(self._app, command)
            return payments_pb2.RefundPaymentResponse(
                payment=payment_message(preview.before),
                preview=preview_message(preview),
            )
        answer = await self._calls.run(refund_payment(self._app, command))
        return answer.body  # type: ignore[return-value]  # the interceptor sends bytes as they are

    async def GetPayment(
        self, request: payments_pb2.GetPaymentRequest, context: Context
    ) -> payments_pb2.GetPaymentResponse:
        payment = await self._payment(request.payment_id)
        return payments_pb2.GetPaymentResponse(payment=payment_message(payment))

    async def GetPaymentStatus(
        self, request: payments_pb2.GetPaymentStatusRequest, context: Context
    ) -> payments_pb2.GetPaymentStatusResponse:
        payment = await self._payment(request.payment_id)
        return payments_pb2.GetPaymentStatusResponse(
            payment_id=payment.payment_id,
            state=state_value(payment.state),
            update_time=time_message(payment.update_time),
        )

    async def ListPayments(
        self, request: payments_pb2.ListPaymentsRequest, context: Context
    ) -> payments_pb2.ListPaymentsResponse:
        fields = RequestFields()
        of_user = acting_for()
        user_id = fields.identifier("user_id", request.user_id or of_user)
        page_size = fields.page_size(request.page_size)
        fields.enum("role", request.role, payments_pb2.PaymentRole)
        states = [_state(fields, value) for value in fields.listed("states", request.states)]
        gig_id = fields.identifier("gig_id", request.gig_id) if request.gig_id else ""
        from_time = fields.time("min_create_time", request)
        until_time = fields.time("max_create_time", request)
        max_deadline_time = fields.time("max_deadline_time", request)
        fields.check()
        left_out = frozenset({"page_size", "page_token"})
        filters = repr((of_user, sorted(fingerprint(request, without=left_out).items())))
        keyset = pagination.read_page_token("payments", filters, request.page_token, 2)
        which = PaymentFilter(
            user_id=user_id,
            of_user=of_user,
            as_client=request.role != payments_pb2.PAYMENT_ROLE_EXPERT,
            as_expert=request.role != payments_pb2.PAYMENT_ROLE_CLIENT,
            states=tuple(state for state in states if state is not None),
            gig_id=gig_id,
            min_create_time=from_time,
            max_create_time=until_time,
            max_deadline_time=max_deadline_time,
            before=(pagination.token_time(keyset[0]), keyset[1]) if keyset else None,
        )
        found = await self._app.database.read(lambda reader: reader.payments(which, page_size + 1))
        page, token = pagination.page_of(
            found,
            page_size,
            "payments",
            filters,
            lambda payment: [payment.create_time.isoformat(), payment.payment_id],
        )
        return payments_pb2.ListPaymentsResponse(
            payments=[payment_message(payment) for payment in page], next_page_token=token
        )

    async def _payment(self, payment_id: str) -> Payment:
        fields = RequestFields()
        fields.our_id("payment_id", payment_id)
        fields.check()
        of_user = acting_for()
        payment = await self._app.database.read(lambda reader: reader.payment(payment_id, of_user))
        if payment is None:
            raise payment_not_found(payment_id)
        return payment


def _amount_of(
    request: payments_pb2.InitiatePaymentRequest
    | payments_pb2.CapturePaymentRequest
    | payments_pb2.RefundPaymentRequest,
) -> money_pb2.Money | None:
    """Returns the amount, if the caller named one."""
    return request.amount if request.HasField("amount") else None


def _state(fields: RequestFields, value: int) -> State | None:
    fields.enum("states", value, payments_pb2.PaymentState)
    if value not in payments_pb2.PaymentState.values():
        return None
    if value == payments_pb2.PAYMENT_STATE_UNSPECIFIED:
        fields.fault("states", "must not hold UNSPECIFIED")
        return None
    return state_of(value)
