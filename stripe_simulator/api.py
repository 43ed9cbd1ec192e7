"""The HTTP face of the API: what every request passes before and after its endpoint.

In order: latency, rate limit and faults in front; authentication; the account; the endpoint;
the idempotency key; parameters; faults inside; the endpoint itself; faults behind. The order is
Stripe's as far as its documents tell (a rate limit is not stored under a key, a parameter error
neither, everything after is).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import collections
import contextlib
import dataclasses
import json
import logging
import re
import socket
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from stripe_simulator import errors, idempotency
from stripe_simulator.accounts import is_deauthorized
from stripe_simulator.config import API_VERSION
from stripe_simulator.errors import ApiError
from stripe_simulator.faults import BEHIND, FRONT, INSIDE, Faults, Rule, Target
from stripe_simulator.forms import (
    Pairs,
    check_exact_indexes,
    decode,
    decode_json,
    nest,
    read_fields,
)
from stripe_simulator.idempotency import Claim, IdempotencyKeys
from stripe_simulator.routes import ENDPOINTS, Endpoint, Router
from stripe_simulator.routes_v2 import ENDPOINTS as ENDPOINTS_V2
from stripe_simulator.simulation import Call, Cause, Simulation

log = logging.getLogger("stripe_simulator")

VERSION_PATTERN = re.compile(r"^\d{4}-\d{2}-\d{2}(\.\w+)?$")
LOGGED_REQUESTS = 5_000


@dataclasses.dataclass
class Exchange:
    """One request on its way through, with what has been found out about it so far."""

    request: web.Request
    request_id: str
    method: str
    path: str
    pairs: Pairs = dataclasses.field(default_factory=list)
    key: str | None = None
    account_header: str | None = None
    version: str = API_VERSION
    publishable: bool = False
    fault: int | None = None

    @property
    def is_v2(self) -> bool:
        return self.path.startswith("/v2/")

    @property
    def target(self) -> Target:
        return Target(self.method, self.path, self.key, self.account_header, dict(self.pairs))


@dataclasses.dataclass
class Answer:
    status: int
    body: str
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


class ConnectionBroken(Exception):
    """A fault cut the connection; there is nobody to answer any more."""


class Api:
    def __init__(self, simulation: Simulation, faults: Faults) -> None:
        self.simulation = simulation
        self.faults = faults
        self.keys = IdempotencyKeys(simulation)
        self.router = Router((*ENDPOINTS, *ENDPOINTS_V2))
        self.requests: collections.deque[dict[str, Any]] = collections.deque(maxlen=LOGGED_REQUESTS)
        self.request_counts: collections.Counter[str] = collections.Counter()
        self._held: dict[str, asyncio.Event] = {}
        self._second = (0, 0)

    def forget(self) -> None:
        """Clear the log of requests (after a reset)."""
        self.requests.clear()
        self.request_counts.clear()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        simulation = self.simulation
        exchange = Exchange(request, simulation.new_request_id(), request.method, request.path)
        started = time.monotonic()
        pause = simulation.settings.latency_ms / 2000
        try:
            # Read first: a request that has arrived takes effect, even if its sender gives up.
            body = await request.text()
            if pause:
                await asyncio.sleep(pause)
            answer = await self._answer(exchange, body)
            rule = self.faults.strike(BEHIND, exchange.target)
            if rule is not None:
                exchange.fault = rule.id
                answer = await self._spoil(exchange, rule, answer)
            self._log(exchange, answer.status, answer, started)
        except ConnectionBroken:
            self._log(exchange, 0, None, started)
            return web.Response()
        if pause:
            await asyncio.sleep(pause)
        return self._response(exchange, answer)

    def _response(self, exchange: Exchange, answer: Answer) -> web.Response:
        headers = {
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Expose-Headers": "Request-Id, Stripe-Should-Retry",
            "Cache-Control": "no-cache, no-store",
            "Request-Id": exchange.request_id,
            "Stripe-Version": exchange.version,
            **answer.headers,
        }
        if exchange.key is not None:
            headers.setdefault("Idempotency-Key", exchange.key)
        if exchange.account_header is not None:
            headers["Stripe-Account"] = exchange.account_header
        # A header takes no line breaks, and an echoed one may hold anything.
        safe = {name: re.sub(r"[\r\n\x00]", " ", value) for name, value in headers.items()}
        return web.Response(
            status=answer.status,
            text=answer.body,
            content_type="application/json",
            headers=safe,
        )

    def _log(self, exchange: Exchange, status: int, answer: Answer | None, started: float) -> None:
        found = self.router.find(exchange.method, exchange.path)
        route = found[0].path if found else exchange.path
        self.request_counts[f"{exchange.method} {route} {status}"] += 1
        headers = answer.headers if answer else {}
        self.requests.append(
            {
                "request_id": exchange.request_id,
                "method": exchange.method,
                "path": exchange.path,
                "status": status,
                "idempotency_key": exchange.key,
                "account": exchange.account_header,
                "parameters": dict(exchange.pairs),
                "replayed": headers.get("Idempotent-Replayed") == "true",
                "fault": exchange.fault,
                "milliseconds": round((time.monotonic() - started) * 1000, 1),
                "time": self.simulation.now(),
            }
        )

    # The layers ---------------------------------------------------------------------------------

    async def _answer(self, exchange: Exchange, body: str) -> Answer:
        try:
            self._read(exchange, body)
            self._limit_rate()
            rule = self.faults.strike(FRONT, exchange.target)
            if rule is not None:
                exchange.fault = rule.id
                spoiled = await self._spoil(exchange, rule, None)
                if spoiled.status:
                    return spoiled
            self._authenticate(exchange)
            return await self._serve(exchange)
        except ApiError as error:
            return self._error(exchange, error)
        except ConnectionBroken:
            raise
        except Exception:
            log.exception("%s %s failed in the simulator", exchange.method, exchange.path)
            return self._error(exchange, _server_error(500, None, None))

    def _read(self, exchange: Exchange, body: str) -> None:
        request = exchange.request
        exchange.pairs = decode(request.rel_url.raw_query_string)
        if exchange.is_v2:
            self._read_v2(exchange, body)
        elif request.method == "POST" and body:
            if request.content_type not in ("application/x-www-form-urlencoded", "text/plain",
                                            "application/octet-stream"):  # fmt: skip
                raise ApiError(
                    400,
                    f"Invalid request (check that your POST content type is application/x-www-"
                    f"form-urlencoded). Received {request.content_type}.",
                    stored=False,
                )
            exchange.pairs = exchange.pairs + decode(body)
        exchange.key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
        exchange.account_header = request.headers.get("Stripe-Account")
        version = request.headers.get("Stripe-Version", API_VERSION)
        if not VERSION_PATTERN.match(version):
            raise ApiError(400, f"Invalid Stripe API version: {version[:40]}", stored=False)
        exchange.version = version

    def _read_v2(self, exchange: Exchange, body: str) -> None:
        """JSON bodies, exact indexes in the query, and the version always."""
        check_exact_indexes(exchange.pairs)
        if "Stripe-Version" not in exchange.request.headers:
            raise ApiError(400, "The Stripe-Version header is required.", stored=False)
        if exchange.method == "POST":
            if exchange.request.content_type != "application/json":
                raise ApiError(
                    400,
                    "Invalid request: the content type must be application/json. Received "
                    f"{exchange.request.content_type}.",
                    stored=False,
                )
            exchange.pairs = exchange.pairs + decode_json(body)

    def _limit_rate(self) -> None:
        limit = self.simulation.settings.rate_limit_per_second
        if not limit:
            return
        second, count = self._second
        now = int(time.monotonic())
        self._second = (now, count + 1) if second == now else (now, 1)
        if self._second[1] > limit:
            raise _rate_limited()

    def _authenticate(self, exchange: Exchange) -> None:
        """A secret key, or a publishable one, in the header or (as Stripe.js does) in the form."""
        config = self.simulation.config
        key = _presented_key(exchange.request.headers.get("Authorization"))
        for name, value in exchange.pairs:
            if name == "key":
                key = key or value
        exchange.pairs = [pair for pair in exchange.pairs if pair[0] != "key"]
        if not key:
            raise errors.unauthenticated(
                "You did not provide an API key. You need to provide your API key in the "
                "Authorization header, using Bearer auth (e.g. 'Authorization: Bearer "
                "YOUR_SECRET_KEY'). See https://stripe.com/docs/api#authentication for details, "
                "or we can help at https://support.stripe.com/."
            )
        exchange.publishable = key == config.publishable_key
        if key != config.secret_key and not exchange.publishable:
            raise errors.unauthenticated(f"Invalid API Key provided: {errors.masked(key)}")

    async def _serve(self, exchange: Exchange) -> Answer:
        simulation = self.simulation
        found = self.router.find(exchange.method, exchange.path)
        if found is None:
            raise ApiError(
                404,
                f"Unrecognized request URL ({exchange.method}: {exchange.path}). Please see "
                "https://stripe.com/docs or we can help at https://support.stripe.com/.",
                stored=False,
            )
        endpoint, variables = found
        if exchange.publishable and endpoint.who != "publishable":
            raise errors.unauthenticated(
                "This API call cannot be made with a publishable API key. Please use a secret API "
                "key. You can find a list of your API keys at "
                "https://dashboard.stripe.com/account/apikeys.",
                "secret_key_required",
            )
        account = exchange.account_header or simulation.platform
        if account != simulation.platform:
            if is_deauthorized(simulation, account):
                raise errors.no_access(simulation.config.secret_key, account)
            if endpoint.who != "any":
                raise errors.not_simulated(
                    f"{exchange.method} {exchange.path} is simulated for the platform only; leave "
                    "the Stripe-Account header out."
                )
        claim = idempotency.claim(account, exchange.key, exchange.path, exchange.pairs)
        if claim is not None:
            stored = self.keys.find(claim)
            if stored is not None:
                headers = {"Idempotent-Replayed": "true", "Original-Request": stored["request"]}
                if stored["status"] >= 500:
                    headers["Stripe-Should-Retry"] = "false"
                return Answer(stored["status"], stored["body"], headers)
        params = read_fields(endpoint.schema, nest(exchange.pairs))
        call = Call(simulation, account, params, variables, exchange.publishable, exchange.version)
        if exchange.method == "GET":
            simulation.process_due()
            return await self._execute(exchange, endpoint, call, None)
        if claim is not None:
            self.keys.begin(claim)
        try:
            async with self._object_free(call):
                return await self._execute(exchange, endpoint, call, claim)
        finally:
            if claim is not None:
                self.keys.end(claim)

    @contextlib.asynccontextmanager
    async def _object_free(self, call: Call) -> AsyncIterator[None]:
        """Hold the object that a request changes; wait for another holder, but not for ever.

        Only a fault that slows an endpoint down ever holds one for longer than an instant.
        """
        ids = [id_ for name, id_ in call.path.items() if name != "*"]
        target = call.get("payment_intent") or call.get("charge") or (ids[0] if ids else None)
        if target is None:
            yield
            return
        deadline = time.monotonic() + self.simulation.settings.lock_wait_ms / 1000
        while target in self._held:
            try:
                async with asyncio.timeout(max(0.001, deadline - time.monotonic())):
                    await self._held[target].wait()
            except TimeoutError:
                raise ApiError(
                    429,
                    "This object cannot be accessed right now because another API request or "
                    "Stripe process is currently accessing it. If you see this error "
                    "intermittently, retry the request.",
                    code="lock_timeout",
                    stored=False,
                    headers={"Stripe-Should-Retry": "true"},
                ) from None
        free = self._held[target] = asyncio.Event()
        try:
            yield
        finally:
            del self._held[target]
            free.set()

    async def _execute(
        self, exchange: Exchange, endpoint: Endpoint, call: Call, claim: Claim | None
    ) -> Answer:
        rule = self.faults.strike(INSIDE, exchange.target)
        if rule is not None:
            exchange.fault = rule.id
            if rule.action == "delay" and rule.when == "before":
                await asyncio.sleep(rule.delay_ms / 1000)
        answer = self._run(exchange, endpoint, call, claim, rule)
        if rule is not None and rule.action == "delay" and rule.when == "after":
            await asyncio.sleep(rule.delay_ms / 1000)
        return answer

    def _run(
        self,
        exchange: Exchange,
        endpoint: Endpoint,
        call: Call,
        claim: Claim | None,
        rule: Rule | None,
    ) -> Answer:
        """The endpoint and the storing of its answer: one change, not interrupted by anything."""
        simulation = self.simulation
        simulation.process_due()
        spoils = rule is not None and rule.action == "status"
        with simulation.acting(Cause(exchange.request_id, exchange.key)):
            try:
                if spoils and rule is not None and rule.when == "before":
                    raise _fault_error(rule)
                answer = kept = Answer(200, json.dumps(endpoint.answer(call), indent=2) + "\n")
                stored = True
                if spoils and rule is not None:
                    answer = self._error(exchange, _fault_error(rule))
                    # v1 repeats its stored error. v2 gives what was done at the next try.
                    kept = kept if exchange.is_v2 else answer
            except ApiError as error:
                if not error.keeps_changes:
                    simulation.undo()
                answer = kept = self._error(exchange, error)
                stored = error.stored
            if claim is not None and stored:
                self.keys.keep(claim, exchange.request_id, kept.status, kept.body)
        if claim is not None:
            answer.headers.setdefault("Original-Request", exchange.request_id)
        return answer

    def _error(self, exchange: Exchange, error: ApiError) -> Answer:
        log_url = (
            f"https://dashboard.stripe.com/{self.simulation.platform}/test/logs/"
            f"{exchange.request_id}?t={self.simulation.now()}"
        )
        body = json.dumps(error.body(log_url), indent=2) + "\n"
        return Answer(error.status, body, dict(error.headers))

    # Faults at the edges ------------------------------------------------------------------------

    async def _spoil(self, exchange: Exchange, rule: Rule, answer: Answer | None) -> Answer:
        """Do what a rule in front of or behind the endpoint says; `answer` is None in front.

        A status of 0 means: go on as though nothing had been.
        """
        if rule.action == "status":
            return self._error(exchange, _fault_error(rule))
        if rule.action == "delay":
            await asyncio.sleep(rule.delay_ms / 1000)
            return answer or Answer(0, "")
        if rule.action == "malformed":
            return Answer(200, rule.body)
        if rule.action == "truncated":
            await self._truncate(exchange, answer or Answer(200, json.dumps({"id": "x" * 400})))
        if rule.action == "hang":
            await asyncio.sleep(max(rule.delay_ms, 1000) / 1000)
        _reset(exchange.request)
        raise ConnectionBroken

    async def _truncate(self, exchange: Exchange, answer: Answer) -> None:
        """Promise the whole length, send half, cut."""
        body = answer.body.encode()
        response = web.StreamResponse(
            status=answer.status,
            headers={"Content-Type": "application/json", "Content-Length": str(len(body))},
        )
        await response.prepare(exchange.request)
        await response.write(body[: len(body) // 2])
        await asyncio.sleep(0.01)


def _reset(request: web.Request) -> None:
    """Close the connection with a TCP reset instead of an orderly end."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _presented_key(header: str | None) -> str | None:
    if header is None:
        return None
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _rate_limited() -> ApiError:
    return ApiError(
        429,
        "Request rate limit exceeded. Learn more about rate limits here "
        "https://stripe.com/docs/rate-limits.",
        code="rate_limit",
        stored=False,
        headers={"Stripe-Rate-Limited-Reason": "endpoint-rate"},
    )


def _server_error(status: int, code: str | None, message: str | None) -> ApiError:
    return ApiError(
        status,
        message
        or "An unknown error occurred. Try again, or contact us at https://support.stripe.com/ if "
        "the problem persists.",
        kind="api_error",
        code=code,
        stored=False,
    )


def _fault_error(rule: Rule) -> ApiError:
    """The error that a rule asks for, with Stripe's own words where it names none."""
    if rule.status == 429 and rule.code in (None, "rate_limit"):
        error = _rate_limited()
    elif rule.status >= 500 or rule.status == 424:
        error = _server_error(rule.status, rule.code, rule.message)
    else:
        kind = "card_error" if rule.status == 402 else "invalid_request_error"
        error = ApiError(
            rule.status,
            rule.message or "Refused by the fault plan.",
            kind=kind,
            code=rule.code,
            param=rule.param,
        )
    error.stored = rule.stored
    if rule.type is not None:
        error.type = rule.type
    error.headers.update(rule.headers)
    return error
