"""The HTTP client of Stripe, and how each call is made.

The retry loop is ours, so the retries of Stripe's SDK are off. A circuit breaker and a limit of
concurrent calls stand before every call.

Requests are encoded, signed and judged by Stripe's SDK. The answers are read as plain JSON: the SDK
would make an object of every part of an answer, though we read few, and text for a log that is off.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, TypeVar
from urllib.parse import quote_plus

import stripe
import structlog
from aiohttp import ClientTimeout, TCPConnector
from stripe._util import get_api_mode

from payment_service.adapters.stripe.breaker import Breaker, CircuitOpen
from payment_service.adapters.stripe.fields import Json, Unreadable, flag, items, text
from payment_service.adapters.stripe.http import Observe, WatchedHttpClient
from payment_service.adapters.stripe.outcomes import outcome_of
from payment_service.domain.errors import Precondition, processor_unavailable
from payment_service.domain.ports.stripe import (
    Done,
    Misconfigured,
    NotSent,
    Outcome,
    Refused,
    Unknown,
)
from payment_service.domain.ports.tracing import NO_TRACER, Tracer
from payment_service.domain.processor_errors import (
    misconfigured,
    rate_limited,
    refused_by_processor,
)

S = TypeVar("S")
T = TypeVar("T")
log = structlog.get_logger(__name__)

#: The API version of the SDK, for which its types are right and this code was written.
API_VERSION: Final = "2026-10-28.endive"
_READ_TRIES: Final = 3


def _is_silence(error: Exception) -> bool:
    """Returns whether Stripe did not answer, or answered with a 5xx."""
    status = error.http_status if isinstance(error, stripe.StripeError) else None
    return status is None or status >= 500


def _is_missing(error: BaseException) -> bool:
    return isinstance(error, stripe.InvalidRequestError) and error.http_status == 404


def _read_json(content: bytes) -> object:
    """Returns the JSON of an answer, or None if it is none. The SDK takes twice as long."""
    try:
        shown: object = json.loads(content.decode())
    except (ValueError, RecursionError):
        return None
    return shown


def path_to(*steps: str) -> str:
    """Returns the path of an object: ``/v1/refunds/re_1``. An id cannot leave its step."""
    return "/" + "/".join(quote_plus(step) for step in steps)


class StripeCaller:
    """Makes calls through the circuit breaker and turns failures into outcomes or errors."""

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker

    async def _through(self, make: Callable[[], Awaitable[T]]) -> T:
        """Makes one call and reports to the circuit breaker whether Stripe answered."""
        async with self.breaker.call():
            try:
                answer = await make()
            except Exception as error:
                (self.breaker.failed if _is_silence(error) else self.breaker.answered)()
                raise
            self.breaker.answered()
            return answer

    async def mutation(
        self,
        make: Callable[[], Awaitable[S]],
        convert: Callable[[S], T],
        judge: Callable[[BaseException], Refused | NotSent | Unknown | Misconfigured] = outcome_of,
    ) -> Outcome[T]:
        """Makes one call and returns its outcome. Raises nothing except a cancellation.

        ``judge`` says what an error means.
        """
        try:
            answer = await self._through(make)
        except Exception as error:  # noqa: BLE001 - every exception is judged, none is lost
            outcome = judge(error)
            if isinstance(outcome, Misconfigured) and outcome.is_not_set_up:
                log.error(
                    "stripe_misconfigured",
                    code=outcome.code,
                    request_id=outcome.request_id,
                    message=outcome.said,
                )
                return outcome
            level = log.warning if isinstance(outcome, Unknown | Misconfigured) else log.info
            level("stripe_call_failed", error=type(error).__name__, outcome=repr(outcome))
            return outcome
        try:
            return Done(convert(answer))
        except Exception as error:  # noqa: BLE001 - the effect has happened, the answer is unreadable
            log.error("stripe_answer_unreadable", error=type(error).__name__)
            return Unknown("unreadable")

    async def read(
        self,
        make: Callable[[], Awaitable[T]],
        is_absent: Callable[[BaseException], bool] = _is_missing,
    ) -> T | None:
        """Makes a call that is safe to repeat, with retries. Returns None if Stripe answers 404.

        ``is_absent`` says which errors mean that as well.
        Raises :class:`Precondition` if Stripe refuses the call, :class:`Exhausted` if the rate
        limit is reached, and :class:`Unavailable` if Stripe does not answer or refuses our
        credentials.
        """
        for tried in range(1, _READ_TRIES + 1):
            try:
                return await self._through(make)
            except Exception as error:  # noqa: BLE001 - judged below
                if is_absent(error):
                    return None
                outcome = outcome_of(error)
                if isinstance(outcome, Refused):
                    log.info("stripe_read_refused", code=outcome.code, said=outcome.said)
                    raise refused_by_processor(outcome.code, outcome.request_id) from None
                if isinstance(outcome, Misconfigured):
                    log.error(
                        "stripe_misconfigured",
                        code=outcome.code,
                        request_id=outcome.request_id,
                        said=outcome.said,
                    )
                    raise misconfigured(outcome.code, outcome.request_id) from None
                log.info("stripe_read_failed", error=type(error).__name__, tried=tried)
                if tried == _READ_TRIES or isinstance(error, CircuitOpen):
                    if isinstance(outcome, NotSent) and outcome.rate_limited:
                        raise rate_limited() from None
                    raise processor_unavailable() from None
                await asyncio.sleep(0.1 * 3 ** (tried - 1))
        raise AssertionError("the loop returns or raises")

    async def read_all(self, make: Callable[[Mapping[str, str]], Awaitable[Json]]) -> list[Json]:
        """Returns the items of all pages of a list, newest first. Raises as :meth:`read` does.

        ``make`` reads one page; it gets what to ask for besides the list's own parameters.
        """
        found: list[Json] = []
        after: Mapping[str, str] = {}
        while True:
            page = await self.read(partial(make, after))
            shown = items(page)
            found += shown
            if page is None or not shown or not flag(page, "has_more"):
                return found
            after = {"starting_after": text(shown[-1], "id")}


class StripeResource:
    """The base of the modules of this package: they share one client and one circuit breaker."""

    def __init__(
        self,
        secret_key: str,
        *,
        api_base: str | None = None,
        timeout_seconds: float = 15.0,
        connections: int = 256,
        observe: Observe | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._calls = StripeCaller(Breaker(connections, self._answers))
        # Our own connector replaces the one with Stripe's CA bundle, so it gets the bundle too.
        context = ssl.create_default_context(cafile=stripe.ca_bundle_path)
        self._http = WatchedHttpClient(
            observe=observe,
            tracer=tracer,
            timeout=ClientTimeout(total=timeout_seconds, sock_connect=3),
            # Shorter than Stripe's keep-alive, or Stripe may reset a connection during a POST.
            connector=TCPConnector(limit=connections, ssl=context, keepalive_timeout=15),
        )
        self._client = stripe.StripeClient(
            secret_key,
            stripe_version=API_VERSION,
            max_network_retries=0,
            base_addresses={"api": api_base} if api_base else None,
            http_client=self._http,
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]  # Stripe's, untyped

    async def _get(
        self, path: str, params: Mapping[str, object] | None = None, account: str = ""
    ) -> Json:
        """Reads an object or a list. ``account`` is the connected account that is asked for it."""
        return await self._request("get", path, params, {"stripe_account": account or None})

    async def _post(self, path: str, params: Mapping[str, object], key: str = "") -> Json:
        """Changes something. ``key`` is what makes Stripe do it once."""
        return await self._request("post", path, params, {"idempotency_key": key or None})

    async def _request(
        self,
        method: str,
        path: str,
        params: Mapping[str, object] | None,
        options: stripe.RequestOptions,
    ) -> Json:
        """Makes one request. Raises the SDK's errors."""
        requestor, mode = self._client._requestor, get_api_mode(path)
        # Not `raw_request_async`, which makes text of every answer for a log that nobody reads.
        url, headers, body = requestor._args_for_request_with_retries(
            method, path, params, options, base_address="api", api_mode=mode
        )[1:4]
        content, status, answered = await self._http.request_async(method, url, headers, body)
        shown = _read_json(content) if 200 <= status < 300 else None
        if shown is None:  # Stripe's SDK says which error it is.
            shown = requestor._interpret_response(content, status, answered, mode).data
        if not isinstance(shown, dict):
            raise Unreadable("an answer of Stripe is no object")
        return shown

    async def _answers(self) -> bool:
        """Returns whether Stripe answers a read that concerns no payment and no account."""
        try:
            await self._get("/v1/balance")
        except Exception as error:  # noqa: BLE001 - whatever it is, Stripe has not answered
            return not _is_silence(error)
        return True

    async def _read_of_account(self, make: Callable[[], Awaitable[T]]) -> T | None:
        """Makes a read of a connected account. Returns None if the account revoked our access."""
        return await self._unless_revoked(self._calls.read(make))

    async def _unless_revoked(self, read: Awaitable[T]) -> T | None:
        """Returns the result of a read, or None if the account has revoked our access.

        Stripe then answers 403 with the code ``account_invalid``.
        """
        try:
            return await read
        except Precondition as refusal:
            if refusal.facts.get("stripe_code") == "account_invalid":
                return None
            raise
