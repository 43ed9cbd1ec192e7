"""Stripe's webhooks: refuses cheaply what can never be right, and passes the others to the core.

The signature itself is verified by the core, which alone holds the secrets. Here is only what
needs none: size, encoding, time and the shape of the header. 200 is answered after the core has
said that the event is durable, or that it ignores it, and in no other case; on anything but 2xx
Stripe comes again. So an authentic event is never refused: its size is within the limit, and if
too many large bodies come at once, the answer is 503.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import HttpVersion10, hdrs, web

from gateway.addresses import FORWARDED_FOR, client_address, is_within
from gateway.connections import ConnectionGuard
from gateway.logs import note
from gateway.metrics import Metrics
from gateway.payments_client import CoreError, CoreRefused, Ingested, PaymentsClient
from gateway.settings import Settings
from gateway.tracing import NOT_TRACED, Tracing
from marketplace.payments.v1 import webhooks_pb2

PLATFORM_PATH = "/api/v1/webhooks/stripe"
CONNECT_PATH = "/api/v1/webhooks/stripe/connect"

PAST_TOLERANCE_SECONDS = 300
FUTURE_TOLERANCE_SECONDS = 60
RETRY_AFTER_SECONDS = 5

#: Few events are larger; a body of unknown length counts as larger, too. Only a few of these are
#: read at once, because strangers can send them as well, and each is held in memory.
LARGE_BODY_BYTES = 262_144
MAX_LARGE_BODIES = 8

_SIGNATURE_HEADER = "Stripe-Signature"
_TIME = re.compile(r"[0-9]{1,12}", re.ASCII)

# One text per status, so that a forger does not learn which check failed.
_ERRORS = {
    400: "refused",
    408: "too_slow",
    413: "too_large",
    415: "content_encoding_not_supported",
    503: "try_again_later",
}


class _Refusal(Exception):
    """The delivery ends here, with this status; `outcome` is for log and metrics alone."""

    def __init__(self, status: int, outcome: str) -> None:
        super().__init__(outcome)
        self.status = status
        self.outcome = outcome


class Webhooks:
    """The two addresses that Stripe calls."""

    def __init__(
        self,
        core: PaymentsClient,
        settings: Settings,
        metrics: Metrics,
        connections: ConnectionGuard,
        *,
        tracing: Tracing = NOT_TRACED,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._core = core
        self._metrics = metrics
        self._connections = connections
        self._tracing = tracing
        self._now = now
        self._senders = settings.stripe_networks()
        self._proxies = settings.gateway_trusted_proxies
        self._max_body_bytes = settings.gateway_max_body_bytes
        self._body_timeout_seconds = settings.gateway_body_timeout_seconds
        self._max_forwards = settings.gateway_max_forwards
        self._forwards = 0
        self._large_bodies = 0

    async def platform(self, request: web.Request) -> web.Response:
        """Events of the platform's own objects."""
        return await self._receive(request, webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM, "platform")

    async def connect(self, request: web.Request) -> web.Response:
        """Events of the connected accounts' objects."""
        return await self._receive(request, webhooks_pb2.WEBHOOK_ENDPOINT_CONNECT, "connect")

    async def invite(self, request: web.Request) -> None:
        """Answers `Expect: 100-continue`: a body that will be refused is not asked for."""
        try:
            self._check_headers(request)
        except _Refusal:
            return  # the handler says why
        if request.version == HttpVersion10:  # It has no such answer.
            return
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # or a fault could not be answered any more

    async def _receive(
        self, request: web.Request, endpoint: webhooks_pb2.WebhookEndpoint.ValueType, label: str
    ) -> web.Response:
        outcome = "failed"
        with self._metrics.webhook_seconds.labels(label).time():
            try:
                signature = self._check_headers(request)
                with self._room_for(request):
                    payload = await self._read(request)
                    ingested = await self._forward(request, endpoint, payload, signature)
            except _Refusal as refusal:
                outcome = refusal.outcome
                return _refuse(refusal.status)
            else:
                outcome = _outcome_of(ingested)
                note(request, event_id=ingested.event_id)
                return web.json_response(
                    {
                        "received": True,
                        "event_id": ingested.event_id,
                        "duplicate": ingested.duplicate,
                    }
                )
            finally:
                note(request, outcome=outcome)
                self._metrics.webhooks.labels(label, outcome).inc()

    def _check_headers(self, request: web.Request) -> str:
        """Whatever can be said before a byte of the body is read; returns the signature."""
        self._check_sender(request)
        if hdrs.CONTENT_ENCODING in request.headers:
            # Stripe never compresses, and the signature is over the bytes as sent.
            raise _Refusal(415, "content_encoding")
        if request.content_length is not None and request.content_length > self._max_body_bytes:
            raise _Refusal(413, "too_large")
        signatures = request.headers.getall(_SIGNATURE_HEADER, [])
        if len(signatures) != 1:
            raise _Refusal(400, "signature_missing" if not signatures else "signature_repeated")
        signature: str = signatures[0]
        fault = signature_fault(signature, self._now())
        if fault is not None:
            raise _Refusal(400, fault)
        return signature

    def _check_sender(self, request: web.Request) -> None:
        """Refuses strangers, if the operator has said from where Stripe sends.

        They get the answer to a wrong signature: it does not say that there is a list.
        """
        if not self._senders:
            return
        forwarded = request.headers.getall(FORWARDED_FOR, [])
        client = client_address(request.remote or "", forwarded, self._proxies)
        if client is None or not is_within(client, self._senders):
            # For the day on which Stripe sends from an address that is not on the list.
            note(request, client_address=str(client or "unknown"))
            raise _Refusal(400, "address_refused")

    @contextmanager
    def _room_for(self, request: web.Request) -> Iterator[None]:
        """Keeps one of the few places for large bodies, if this is one."""
        length = request.content_length
        large = int(length is None or length > LARGE_BODY_BYTES)
        if large and self._large_bodies >= MAX_LARGE_BODIES:
            raise _Refusal(503, "busy")
        self._large_bodies += large
        try:
            yield
        finally:
            self._large_bodies -= large

    async def _read(self, request: web.Request) -> bytes:
        """The raw body; never `post()` or `json()`, which would parse a stranger's bytes."""
        try:
            async with asyncio.timeout(self._body_timeout_seconds):
                payload = await request.read()
        except TimeoutError:
            raise _Refusal(408, "too_slow") from None
        except web.HTTPRequestEntityTooLarge:
            raise _Refusal(413, "too_large") from None
        except (web.RequestPayloadError, OSError):
            # The framing is broken, or the sender has left; then nobody reads this answer.
            raise _Refusal(400, "body_broken") from None
        return payload

    async def _forward(
        self,
        request: web.Request,
        endpoint: webhooks_pb2.WebhookEndpoint.ValueType,
        payload: bytes,
        signature: str,
    ) -> Ingested:
        if self._forwards >= self._max_forwards:
            # Waiting here would only hold more bodies in memory; Stripe waits better.
            raise _Refusal(503, "busy")
        self._forwards += 1
        try:
            with (
                self._connections.protecting(request),
                self._tracing.span("deliver webhook") as trace_id,
            ):
                if trace_id:
                    note(request, trace_id=trace_id)
                return await self._core.ingest_event(endpoint, payload, signature)
        except CoreRefused:
            raise _Refusal(400, "refused_by_core") from None
        except CoreError as error:
            note(request, core_code=error.code)
            raise _Refusal(503, "core_unavailable") from None
        finally:
            self._forwards -= 1


def _outcome_of(ingested: Ingested) -> str:
    if ingested.ignored:
        return "ignored"
    return "duplicate" if ingested.duplicate else "accepted"


def signature_fault(header: str, now: float) -> str | None:
    """Why this header can never be right, or None if only a secret can tell.

    The format is `t=<unix seconds>,v1=<hex>[,v1=…]`, two v1 while a secret is being rotated; other
    schemes may stand beside them.
    """
    if not header.isascii() or not header.isprintable():
        return "signature_malformed"
    items = [item.strip().partition("=") for item in header.split(",")]
    times = [value for name, _, value in items if name == "t"]
    if len(times) != 1 or _TIME.fullmatch(times[0]) is None:
        return "time_missing"
    age = now - int(times[0])
    if age > PAST_TOLERANCE_SECONDS:
        return "time_stale"
    if age < -FUTURE_TOLERANCE_SECONDS:
        return "time_in_future"
    if not any(name == "v1" and value for name, _, value in items):
        return "signature_malformed"
    return None


def _refuse(status: int) -> web.Response:
    response = web.json_response({"received": False, "error": _ERRORS[status]}, status=status)
    if status == 503:
        response.headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_SECONDS)
    else:
        # Its body may be unread or endless: the connection is of no more use.
        response.force_close()
    return response
