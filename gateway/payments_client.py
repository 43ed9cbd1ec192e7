"""The core, as the gateway sees it: three calls and a question of health.

The only file here that knows gRPC. Whatever the core or the network answers becomes one of
three errors, since the gateway has three things to say: never, not found, and come again.
"""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2

from gateway.settings import Settings
from marketplace.payments.v1 import (
    onboarding_pb2,
    onboarding_pb2_grpc,
    webhooks_pb2,
    webhooks_pb2_grpc,
)

HEALTH_TIMEOUT_SECONDS = 1.0
HEALTH_CACHE_SECONDS = 1.0

_T = TypeVar("_T")


class CoreError(Exception):
    """The core did not do what it was asked; `code` is gRPC's name for why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class CoreRefused(CoreError):
    """The request can never be right (INVALID_ARGUMENT)."""


class CoreNotFound(CoreError):
    """There is no such thing, or not any more (NOT_FOUND)."""


class CoreUnavailable(CoreError):
    """Anything else: the event may not be durable, so the caller must repeat the call."""


class CoreHealth(StrEnum):
    """What the core says of itself."""

    SERVING = "serving"
    NOT_SERVING = "not_serving"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class Ingested:
    """A webhook event that the core has stored, or acknowledged and ignored."""

    event_id: str
    duplicate: bool
    ignored: bool = False


class PaymentsClient:
    """Calls over one channel, each with a deadline of ours and without waiting for a peer."""

    def __init__(self, channel: aio.Channel, settings: Settings) -> None:
        self._webhooks = webhooks_pb2_grpc.WebhookServiceStub(channel)
        self._onboarding = onboarding_pb2_grpc.OnboardingServiceStub(channel)
        # Without the generated stub, whose types know no methods.
        self._health = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._ingest_timeout = settings.gateway_ingest_timeout_seconds
        self._page_timeout = settings.gateway_page_timeout_seconds
        self._health_lock = asyncio.Lock()
        self._health_known = CoreHealth.UNREACHABLE
        self._health_known_until = 0.0

    async def ingest_event(
        self, endpoint: webhooks_pb2.WebhookEndpoint.ValueType, payload: bytes, signature: str
    ) -> Ingested:
        """Delivers a webhook; returns only when its event is durable."""
        request = webhooks_pb2.IngestEventRequest(
            endpoint=endpoint, payload=payload, signature=signature
        )
        response = await _answer(
            self._webhooks.IngestEvent(request, timeout=self._ingest_timeout, wait_for_ready=False)
        )
        return Ingested(response.event_id, response.duplicate, ignored=bool(response.verdict))

    async def get_onboarding_status(self, token: str) -> onboarding_pb2.GetOnboardingStatusResponse:
        """Reads where an expert stands; the core asks Stripe first."""
        request = onboarding_pb2.GetOnboardingStatusRequest(onboarding_token=token)
        return await _answer(
            self._onboarding.GetOnboardingStatus(
                request, timeout=self._page_timeout, wait_for_ready=False
            )
        )

    async def create_onboarding_link(self, token: str) -> str:
        """Creates a new link into Stripe's onboarding."""
        request = onboarding_pb2.CreateOnboardingLinkRequest(onboarding_token=token)
        response = await _answer(
            self._onboarding.CreateOnboardingLink(
                request, timeout=self._page_timeout, wait_for_ready=False
            )
        )
        return response.onboarding_url

    async def health(self) -> CoreHealth:
        """What the core says of itself, at most a second ago.

        One question serves everybody who asks meanwhile, so that the public endpoint cannot be
        used to keep the core busy.
        """
        async with self._health_lock:
            if time.monotonic() >= self._health_known_until:
                self._health_known = await self._check()
                self._health_known_until = time.monotonic() + HEALTH_CACHE_SECONDS
            return self._health_known

    async def _check(self) -> CoreHealth:
        try:
            response = await _answer(
                self._health(
                    health_pb2.HealthCheckRequest(service=""),
                    timeout=HEALTH_TIMEOUT_SECONDS,
                    wait_for_ready=False,
                )
            )
        except CoreError:
            return CoreHealth.UNREACHABLE
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            return CoreHealth.SERVING
        return CoreHealth.NOT_SERVING


async def _answer(call: Awaitable[_T]) -> _T:
    """Awaits a call and turns what may go wrong into the three errors above."""
    try:
        return await call
    except grpc.RpcError as error:
        code = error.code() if isinstance(error, aio.AioRpcError) else grpc.StatusCode.UNKNOWN
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            raise CoreRefused(code.name) from None
        if code is grpc.StatusCode.NOT_FOUND:
            raise CoreNotFound(code.name) from None
        raise CoreUnavailable(code.name) from None
    except (aio.UsageError, aio.InternalError) as error:
        # The channel is closed or broken on our side; to the caller it is the same.
        raise CoreUnavailable(type(error).__name__) from None
