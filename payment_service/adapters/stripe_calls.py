"""One call to Stripe, judged: what its failure says about its effect.

Only a 400 or 402 is Stripe's final no; everything that is not a definite answer is *unknown*. The
retry loop is ours, so the SDK's is off. A breaker and a bulkhead stand before every call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import aiohttp
import stripe
import structlog

from payment_service.adapters.breaker import Breaker, BulkheadFull, CircuitOpen
from payment_service.domain.errors import (
    Exhausted,
    Precondition,
    Unavailable,
    processor_unavailable,
)
from payment_service.domain.ports import (
    Done,
    Misconfigured,
    NotSent,
    Outcome,
    Refused,
    Unknown,
)

S = TypeVar("S")
T = TypeVar("T")
log = structlog.get_logger(__name__)

_READ_TRIES: Final = 3


def outcome_of(error: BaseException) -> Refused | NotSent | Unknown | Misconfigured:
    """What an exception says about the effect of the call."""
    if isinstance(error, CircuitOpen | BulkheadFull):
        full = isinstance(error, BulkheadFull)
        return NotSent("overloaded" if full else "circuit_open", rate_limited=full)
    if not isinstance(error, stripe.StripeError):
        # AIOHTTPClient lets errors of the body escape after the 200: the effect may be done.
        return Unknown(type(error).__name__)
    if isinstance(error, stripe.APIConnectionError):
        return NotSent("unreachable") if _never_connected(error) else Unknown("connection")
    status, code = error.http_status, _code(error)
    request_id = error.request_id or ""
    if status == 429:
        return NotSent(code or "rate_limit", rate_limited=code != "lock_timeout")
    if isinstance(error, stripe.IdempotencyError) or status in (401, 404):
        return Misconfigured(code or f"http_{status}", request_id)
    if status == 403:
        if code == "account_invalid":  # The expert has cut the account off: final, and theirs.
            return Refused(code, "", request_id)
        return Misconfigured(code or "http_403", request_id)
    if status in (400, 402):
        decline_code = getattr(error.error, "decline_code", None) if error.error else None
        return Refused(code, decline_code or "", request_id)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    replayed = headers.get("idempotent-replayed") == "true"
    return Unknown(f"http_{status}", replayed=replayed)


def _code(error: stripe.StripeError) -> str:
    return (error.error.code if error.error else None) or error.code or ""


def _never_connected(error: BaseException) -> bool:
    """Whether the connection itself failed, so that nothing can have been sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class Calls:
    """Makes calls through the breaker and turns what happens into outcomes or refusals."""

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker

    async def _through(self, make: Callable[[], Awaitable[T]]) -> T:
        async with self.breaker.call():
            try:
                answer = await make()
            except stripe.StripeError as error:
                silent = error.http_status is None or error.http_status >= 500
                (self.breaker.failed if silent else self.breaker.answered)()
                raise
            except Exception:
                self.breaker.failed()
                raise
            self.breaker.answered()
            return answer

    async def mutation(
        self, make: Callable[[], Awaitable[S]], convert: Callable[[S], T]
    ) -> Outcome[T]:
        """One call, one outcome. A cancelled task is not an outcome and goes on being cancelled."""
        try:
            answer = await self._through(make)
        except Exception as error:  # noqa: BLE001 - every exception is judged, none is lost
            outcome = outcome_of(error)
            level = log.warning if isinstance(outcome, Unknown | Misconfigured) else log.info
            level("stripe_call_failed", error=type(error).__name__, outcome=repr(outcome))
            return outcome
        try:
            return Done(convert(answer))
        except Exception as error:  # noqa: BLE001 - the effect is done, its account unreadable
            log.error("stripe_answer_unreadable", error=type(error).__name__)
            return Unknown("unreadable")

    async def read(self, make: Callable[[], Awaitable[T]]) -> T | None:
        """A read, tried a few times; None for what Stripe does not know. Raises Refusal."""
        for tried in range(1, _READ_TRIES + 1):
            try:
                return await self._through(make)
            except Exception as error:  # noqa: BLE001 - judged below
                if isinstance(error, stripe.InvalidRequestError) and error.http_status == 404:
                    return None
                outcome = outcome_of(error)
                if isinstance(outcome, Refused):
                    raise _refused(outcome) from None
                if isinstance(outcome, Misconfigured):
                    log.error(
                        "stripe_misconfigured", code=outcome.code, request_id=outcome.request_id
                    )
                    raise misconfigured(outcome.code, outcome.request_id) from None
                log.info("stripe_read_failed", error=type(error).__name__, tried=tried)
                if tried == _READ_TRIES or isinstance(error, CircuitOpen):
                    if isinstance(outcome, NotSent) and outcome.rate_limited:
                        raise _rate_limited() from None
                    raise processor_unavailable() from None
                await asyncio.sleep(0.1 * 3 ** (tried - 1))
        raise AssertionError("the loop returns or raises")

    async def read_all(
        self,
        make: Callable[[], Awaitable[Any]],
        until: Callable[[Any], bool] = lambda item: False,
    ) -> list[Any]:
        """Every item of a list, newest first, up to the first that ``until`` says is enough."""
        page: Any = await self.read(make)
        found: list[Any] = []
        while page is not None:
            for item in page.data:
                if until(item):
                    return found
                found.append(item)
            if not page.has_more:
                break
            page = await self.read(page.next_page_async)
        return found


def _refused(refused: Refused) -> Precondition:
    return Precondition(
        "REFUSED_BY_PROCESSOR",
        f"Stripe refused for good: {refused.code or 'no reason given'}",
        {"stripe_code": refused.code, "stripe_request_id": refused.request_id},
    )


def misconfigured(code: str, request_id: str = "") -> Unavailable:
    return Unavailable(
        "PROCESSOR_MISCONFIGURED",
        "Stripe refuses this service's own credentials or requests; an operator is told",
        {"stripe_code": code, "stripe_request_id": request_id},
    )


def _rate_limited() -> Exhausted:
    return Exhausted(
        "PROCESSOR_RATE_LIMITED", "Stripe's rate limit is reached; ask again with the same key"
    )
