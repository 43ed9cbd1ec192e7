"""What a failed call says about its effect at Stripe.

Only a 400 or 402 is Stripe's final refusal. Everything that is not a definite answer is *unknown*.
"""

from __future__ import annotations

import aiohttp
import stripe

from payment_service.adapters.stripe.breaker import BulkheadFull, CircuitOpen
from payment_service.domain.ports.stripe import Misconfigured, NotSent, Refused, Unknown


def outcome_of(error: BaseException) -> Refused | NotSent | Unknown | Misconfigured:
    """Returns what an exception says about the effect of the call."""
    if isinstance(error, CircuitOpen | BulkheadFull):
        full = isinstance(error, BulkheadFull)
        return NotSent("overloaded" if full else "circuit_open", rate_limited=full)
    if not isinstance(error, stripe.StripeError):
        # AIOHTTPClient raises errors of the body after the 200: the effect may have happened.
        return Unknown(type(error).__name__)
    if isinstance(error, stripe.APIConnectionError):
        return NotSent("unreachable") if _never_connected(error) else Unknown("connection")
    status, code = error.http_status, _code(error)
    request_id = error.request_id or ""
    if status == 429:
        return NotSent(code or "rate_limit", rate_limited=code != "lock_timeout")
    if isinstance(error, stripe.IdempotencyError):
        # The key was used for another request, perhaps by an operation that a restored database
        # has lost. That request may have had its effect, so this is no refusal.
        return Unknown("idempotency_error", replayed=True)
    if status in (401, 404):
        return Misconfigured(code or f"http_{status}", request_id)
    if status == 403:
        if code == "account_invalid":  # The expert revoked our access: final.
            return Refused(code, "", request_id)
        return Misconfigured(code or "http_403", request_id)
    if status in (400, 402):
        decline_code = getattr(error.error, "decline_code", None) if error.error else None
        return Refused(code, decline_code or "", request_id)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    replayed = headers.get("idempotent-replayed") == "true"
    return Unknown(f"http_{status}", replayed=replayed)


def _code(error: stripe.StripeError) -> str:
    """Returns Stripe's code of an error, or ""."""
    return (error.error.code if error.error else None) or error.code or ""


def _never_connected(error: BaseException) -> bool:
    """Returns whether the connection itself failed, so that nothing was sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
