"""WebhookService: verified here, since only the core holds Stripe's secrets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from marketplace.payments.v1 import webhooks_pb2, webhooks_pb2_grpc
from payment_service.application.app import App
from payment_service.application.ingest_event import WebhookSecrets, ingest_event
from payment_service.domain.errors import InvalidArgument, invalid_field
from payment_service.rpc.call_context import CallRegistry, Context

_ENDPOINTS = {
    webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM: "platform",
    webhooks_pb2.WEBHOOK_ENDPOINT_CONNECT: "connect",
}


class WebhookServicer(webhooks_pb2_grpc.WebhookServiceServicer):
    def __init__(
        self,
        app: App,
        calls: CallRegistry,
        secrets: Mapping[str, WebhookSecrets],
        refused: Callable[[str, str], None],
    ) -> None:
        self._app = app
        self._calls = calls
        self._secrets = secrets
        self._refused = refused

    async def IngestEvent(
        self, request: webhooks_pb2.IngestEventRequest, context: Context
    ) -> webhooks_pb2.IngestEventResponse:
        endpoint = _ENDPOINTS.get(request.endpoint)
        if endpoint is None:
            raise invalid_field("endpoint", "must be PLATFORM or CONNECT")
        try:
            event_id, duplicate = await self._calls.run(
                ingest_event(
                    self._app,
                    endpoint,
                    request.payload,
                    request.signature,
                    self._secrets[endpoint],
                )
            )
        except InvalidArgument as refusal:
            self._refused(endpoint, refusal.facts.get("fault", ""))
            raise
        return webhooks_pb2.IngestEventResponse(event_id=event_id, duplicate=duplicate)
