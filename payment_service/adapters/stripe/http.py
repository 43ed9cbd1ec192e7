"""Stripe's HTTP client, watched: each request is timed, counted by endpoint, and traced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import stripe
from typing_extensions import override

from payment_service.domain.ports.tracing import NO_TRACER, Tracer

#: Gets the endpoint, the outcome and the seconds of each request.
Observe = Callable[[str, str, float], None]

#: Every word of the paths that are asked for. Anything else is an id.
_WORDS: Final = frozenset(
    "v1 v2 core account account_links accounts application_fees balance balance_transactions "
    "cancel capture charges close disputes early_fraud_warnings events login_links "
    "payment_intents payouts radar refunds reversals reviews settings transfers".split()
)
_OUTCOMES: Final = {
    400: "refused",
    401: "denied",
    402: "refused",
    403: "denied",
    404: "absent",
    409: "conflict",
    429: "rate_limited",
}


def endpoint_of(method: str, url: str) -> str:
    """Returns a request without its ids: ``POST /v1/payment_intents/{id}/capture``."""
    parts = urlsplit(url).path.strip("/").split("/")
    path = "/".join(part if part in _WORDS else "{id}" for part in parts[:8])
    return f"{method.upper()} /{path}"


def outcome_of_status(status: int) -> str:
    """Returns a word for a status of HTTP. What an outcome means is said in ``outcomes``."""
    if status < 400:
        return "done"
    return "failed" if status >= 500 else _OUTCOMES.get(status, "refused")


class WatchedHttpClient(stripe.AIOHTTPClient):
    """Stripe's own client; only the request itself is wrapped."""

    def __init__(
        self, *, observe: Observe | None = None, tracer: Tracer = NO_TRACER, **options: Any
    ) -> None:
        super().__init__(**options)
        self._observe = observe or (lambda endpoint, outcome, seconds: None)
        self._tracer = tracer

    @override
    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> tuple[bytes, int, Mapping[str, str]]:
        endpoint, begun, outcome = endpoint_of(method, url), time.perf_counter(), "no_answer"
        facts = {"http.request.method": method.upper(), "peer.service": "stripe"}
        try:
            with self._tracer.request(f"stripe {endpoint}", facts) as span:
                try:
                    content, status, answered = await super().request_async(
                        method, url, headers, post_data
                    )
                except asyncio.CancelledError:
                    outcome = "canceled"
                    span.failed(outcome)
                    raise
                except Exception:
                    span.failed(outcome)
                    raise
                outcome = outcome_of_status(status)
                span.note("http.response.status_code", status)
                # aiohttp's headers ignore case.
                span.note("stripe.request_id", str(answered.get("Request-Id", "")))
                if outcome != "done":
                    span.failed(outcome)
                return content, status, answered
        finally:
            self._observe(endpoint, outcome, time.perf_counter() - begun)
