"""A core that keeps the contract, over real gRPC: it verifies signatures and stores events once.

Only Stripe and PostgreSQL are missing behind it. Faults are set by attribute.
"""

import asyncio
import hashlib
import hmac
import json
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from marketplace.payments.v1 import (
    experts_pb2,
    onboarding_pb2,
    onboarding_pb2_grpc,
    operations_pb2,
    webhooks_pb2,
    webhooks_pb2_grpc,
)

PLATFORM_SECRET = "whsec_platform"
SECRETS = {
    webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM: PLATFORM_SECRET,
    webhooks_pb2.WEBHOOK_ENDPOINT_CONNECT: "whsec_connect",
}
SERVING = health_pb2.HealthCheckResponse.SERVING


def sign(payload: bytes, secret: str = PLATFORM_SECRET, age: float = 0) -> str:
    """Stripe's scheme, written down anew: HMAC-SHA256 over time, dot and raw body."""
    moment = int(time.time() - age)
    digest = hmac.new(secret.encode(), f"{moment}.".encode() + payload, hashlib.sha256)
    return f"t={moment},v1={digest.hexdigest()}"


def event(event_id: str = "evt_1", padding: int = 0) -> bytes:
    return json.dumps({"id": event_id, "object": "event", "padding": "x" * padding}).encode()


@dataclass
class FakeCore(
    webhooks_pb2_grpc.WebhookServiceServicer,
    onboarding_pb2_grpc.OnboardingServiceServicer,
    health_pb2_grpc.HealthServicer,
):
    """Everything that the gateway calls."""

    port: int = 0
    webhook_events: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    failure: grpc.StatusCode | None = None
    ignores: bool = False
    delay: float = 0
    health: int = SERVING
    standings: dict[str, onboarding_pb2.GetOnboardingStatusResponse] = field(default_factory=dict)
    onboarding_url: str = "https://connect.stripe.com/setup/e/acct_1/abc"
    server: aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listens; after a stop, on the same port again."""
        size = ("grpc.max_receive_message_length", 5 * 1024 * 1024)
        server = aio.server(options=[("grpc.so_reuseport", 0), size])
        webhooks_pb2_grpc.add_WebhookServiceServicer_to_server(self, server)
        onboarding_pb2_grpc.add_OnboardingServiceServicer_to_server(self, server)
        health_pb2_grpc.add_HealthServicer_to_server(self, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self.server = server

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(grace=0)
            self.server = None

    async def _called(self, name: str, context: aio.ServicerContext) -> None:  # type: ignore[type-arg]
        self.calls.append(name)
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.failure is not None:
            await context.abort(self.failure, "a text from inside that nobody outside may read")

    async def IngestEvent(self, request, context):  # type: ignore[no-untyped-def] # noqa: N802
        await self._called("IngestEvent", context)
        if not self._verifies(request):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no signature matches")
        if self.ignores:
            verdict = operations_pb2.WEBHOOK_EVENT_VERDICT_ODD
            return webhooks_pb2.IngestEventResponse(verdict=verdict)
        event_id = json.loads(request.payload)["id"]
        duplicate = event_id in self.webhook_events
        self.webhook_events.setdefault(event_id, request.payload)
        return webhooks_pb2.IngestEventResponse(event_id=event_id, duplicate=duplicate)

    def _verifies(self, request: webhooks_pb2.IngestEventRequest) -> bool:
        items = [item.partition("=") for item in request.signature.split(",")]
        moment = next(value for name, _, value in items if name == "t")
        signed = f"{moment}.".encode() + request.payload
        right = hmac.new(SECRETS[request.endpoint].encode(), signed, hashlib.sha256).hexdigest()
        return any(value == right for name, _, value in items if name == "v1")

    async def GetOnboardingStatus(self, request, context):  # type: ignore[no-untyped-def] # noqa: N802
        await self._called("GetOnboardingStatus", context)
        if request.onboarding_token not in self.standings:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such token")
        return self.standings[request.onboarding_token]

    async def CreateOnboardingLink(self, request, context):  # type: ignore[no-untyped-def] # noqa: N802
        await self._called("CreateOnboardingLink", context)
        if request.onboarding_token not in self.standings:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such token")
        return onboarding_pb2.CreateOnboardingLinkResponse(onboarding_url=self.onboarding_url)

    async def Check(self, request, context):  # type: ignore[no-untyped-def] # noqa: N802
        await self._called("Check", context)
        return health_pb2.HealthCheckResponse(status=self.health)

    async def Watch(self, request, context):  # type: ignore[no-untyped-def] # noqa: N802
        """New calls are always wanted here."""
        yield health_pb2.HealthCheckResponse(status=SERVING)
        await asyncio.Event().wait()

    def set_status(
        self,
        status: experts_pb2.ExpertStatus.ValueType,
        *,
        token: str,
        due: int = 0,
        continue_url: str = "",
        **more: Any,
    ) -> None:
        """Sets the status of the expert behind `token`."""
        self.standings[token] = onboarding_pb2.GetOnboardingStatusResponse(
            status=status, requirements_due_count=due, continue_url=continue_url, **more
        )
