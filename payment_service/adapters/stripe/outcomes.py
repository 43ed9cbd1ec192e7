"""What a failed call says about its effect at Stripe.

Only a 400 or 402 is Stripe's final refusal. Everything that is not a definite answer is *unknown*.
"""

from __future__ import annotations

import re
from typing import Final

import aiohttp
import stripe

from payment_service.adapters.stripe.breaker import BulkheadFull, CircuitOpen
from payment_service.domain.ports.stripe import Misconfigured, NotSent, Refused, Unknown

#: Refusals for which Stripe gives neither a code nor a parameter. They are about the destination.
_DESTINATION_MESSAGES: Final = (
    "Funds can't be sent to accounts located in",
    "Cannot create a destination charge for connected accounts in",
)
_MOST_CHARACTERS: Final = 600
#: What a message of Stripe may repeat and nobody needs to read: an address, a key, a card's number.
_PRIVATE: Final = re.compile(
    r"[^\s'\"<>()]+@[^\s'\"<>()]+"
    r"|\b(?:sk|pk|rk|whsec|ek)_[^\s'\"]+"
    r"|\b\w+_secret_\w+"
    r"|\b\d(?:[ -]?\d){11,}\b"
)


def said_of(error: stripe.StripeError) -> str:
    """Returns the type, the parameter and the message of an error, cut and masked."""
    shown = error.error
    words = [getattr(shown, name, None) for name in ("type", "param")] if shown else []
    about = " ".join(_PRIVATE.sub("***", str(word)) for word in words if word)
    message = (getattr(shown, "message", None) if shown else None) or error.user_message or ""
    plain = " ".join(_PRIVATE.sub("***", str(message)).split())
    return ": ".join(part for part in (about, plain) if part)[:_MOST_CHARACTERS]


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
    if isinstance(error, stripe.IdempotencyError) and status != 409:
        # The key was used for another request, perhaps by an operation that a restored database
        # has lost. That request may have had its effect, so this is no refusal.
        return Unknown("idempotency_error", replayed=True)
    if status in (401, 404):
        return Misconfigured(code or f"http_{status}", request_id, said_of(error))
    if status == 403:
        if code == "account_invalid":  # The expert revoked our access: final.
            return Refused(code, "", request_id, _param(error), said_of(error))
        return Misconfigured(code or "http_403", request_id, said_of(error))
    # Without Stripe's error in its body it is the answer of a proxy, and says nothing of an earlier
    # request under the same key, whose answer was lost.
    if status in (400, 402) and error.error is not None:
        decline_code = getattr(error.error, "decline_code", None)
        return Refused(code, decline_code or "", request_id, _param(error), said_of(error))
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    replayed = headers.get("idempotent-replayed") == "true"
    return Unknown(f"http_{status}", replayed=replayed)


def _code(error: stripe.StripeError) -> str:
    """Returns Stripe's code of an error, or "". A refused refund may have a message code only."""
    code = (error.error.code if error.error else None) or error.code
    if code:
        return code
    body = error.json_body if isinstance(error.json_body, dict) else {}
    shown = body.get("error")
    message_code = shown.get("message_code") if isinstance(shown, dict) else None
    return message_code if isinstance(message_code, str) else ""


def _param(error: stripe.StripeError) -> str:
    """Returns the parameter that Stripe names as the cause, or ""."""
    detail = error.error
    if detail is None:
        return ""
    param = getattr(detail, "param", None) or ""
    message = str(getattr(detail, "message", None) or "")
    return "destination" if not param and message.startswith(_DESTINATION_MESSAGES) else param


def _never_connected(error: BaseException) -> bool:
    """Returns whether the connection itself failed, so that nothing was sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
