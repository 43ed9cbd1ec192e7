"""The call of OperationsService that explains one payment."""

from __future__ import annotations

from marketplace.payments.v1 import explain_pb2
from payment_service.application.app import App
from payment_service.application.explain_payment import explain_payment
from payment_service.rpc import pagination
from payment_service.rpc.call_context import Context
from payment_service.rpc.fields import RequestFields
from payment_service.rpc.messages.explain import explained_message


class ExplainCalls:
    """Explains a payment to operators."""

    _app: App

    async def ExplainPayment(
        self, request: explain_pb2.ExplainPaymentRequest, context: Context
    ) -> explain_pb2.ExplainPaymentResponse:
        fields = RequestFields()
        given = fields.our_id("id", request.id)
        page_size = fields.page_size(request.page_size, default=100)
        fields.check()
        keyset = pagination.read_page_token("story", given, request.page_token, 1)
        after = pagination.token_number(keyset[0]) if keyset else 0
        explained = await explain_payment(self._app, given, after, page_size)
        story = explained.story
        token = ""
        if story is not None and story.next_after:
            token = pagination.page_token("story", given, str(story.next_after))
        return explained_message(explained, token)
