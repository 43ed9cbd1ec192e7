"""WebhookService: verified here, since only the core holds Stripe's secrets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from marketplace.payments.v1 import webhooks_pb2, webhooks_pb2_grpc
from payment_service.application.app import App
from payment_service.application.ingest_event import WebhookSecrets, ingest_event
from payment_service.domain.errors import InvalidArgument, invalid_field
from payment_service.rpc.call_context import CallRegistry, Context
from payment_service.rpc.messages.operations import verdict_value

_ENDPOINTS = {
    webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM: "platform",
    webhooks_pb2.WEBHOOK_ENDPOINT_CONNECT: "connect",
}

#: The gateway's own bound of a header. Sixteen signatures have some 1,200 characters.
_MAX_SIGNATURE: Final = 4096


class Counts(Protocol):
    """Counts what comes, and logs what is not stored."""

    def webhook_received(self, list_name: str) -> None: ...
    def webhook_refused(self, endpoint: str, fault: str) -> None: ...
    def webhook_ignored(self, endpoint: str, verdict: str) -> None: ...


class WebhookServicer(webhooks_pb2_grpc.WebhookServiceServicer):
    def __init__(
        self,
        app: App,
        calls: CallRegistry,
        secrets_of: Callable[[str], WebhookSecrets],
        counts: Counts,
    ) -> None:
        self._app = app
        self._calls = calls
        self._secrets_of = secrets_of
        self._counts = counts

    async def IngestEvent(
        self, request: webhooks_pb2.IngestEventRequest, context: Context
    ) -> webhooks_pb2.IngestEventResponse:
        endpoint = _ENDPOINTS.get(request.endpoint)
        if endpoint is None:
            raise invalid_field("endpoint", "must be PLATFORM or CONNECT")
        if len(request.signature) > _MAX_SIGNATURE:
            raise invalid_field("signature", f"must be at most {_MAX_SIGNATURE} characters")
        try:
            ingested = await self._calls.run(
                ingest_event(
                    self._app,
                    endpoint,
                    request.payload,
                    request.signature,
                    self._secrets_of(endpoint),
                )
            )
        except InvalidArgument as refusal:
            self._counts.webhook_refused(endpoint, refusal.facts.get("fault", ""))
            raise
        if ingested.verdict:
            self._counts.webhook_ignored(endpoint, ingested.verdict)
        else:
            self._counts.webhook_received(ingested.list_name)
        return webhooks_pb2.IngestEventResponse(
            event_id=ingested.event_id,
            duplicate=ingested.duplicate,
            verdict=verdict_value(ingested.verdict),
        )
