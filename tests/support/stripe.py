"""The simulator as its users see it, and events as Stripe sends them."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from marketplace.payments.v1 import webhooks_pb2
from payment_service.adapters.stripe.client import API_VERSION
from tests.support.service import CONNECT_SECRET, PLATFORM_SECRET, PUBLISHABLE_KEY, SECRET_KEY


class Stripe:
    """The simulator, as a browser, an operator at the dashboard, and a test see it."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self._http = http

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        """The control API; a refusal fails the test."""
        async with self._http.request(method, f"{self.url}/_simulator{path}", json=body) as answer:
            given = await answer.json()
            assert answer.status == 200, given
            return given

    async def api(
        self, method: str, path: str, *, account: str = "", publishable: bool = False, **params: Any
    ) -> Any:
        """Stripe's own API, as somebody else than the service uses it. Any status is an answer."""
        key = PUBLISHABLE_KEY if publishable else SECRET_KEY
        headers = {"Authorization": f"Bearer {key}"}
        if account:
            headers["Stripe-Account"] = account
        given = {name: str(value) for name, value in params.items()}
        reads = method == "GET"
        async with self._http.request(
            method,
            f"{self.url}/v1{path}",
            headers=headers,
            params=given if reads else None,
            data=None if reads else given,
        ) as answer:
            return await answer.json()

    async def api_v2(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        """Stripe's API v2, with JSON bodies. Any status is an answer."""
        headers = {"Authorization": f"Bearer {SECRET_KEY}", "Stripe-Version": API_VERSION}
        given = {name: str(value) for name, value in params.items()}
        async with self._http.request(
            method, f"{self.url}/v2{path}", headers=headers, params=given, json=body
        ) as answer:
            return await answer.json()

    async def fault(
        self, path: str, action: str, when: str = "before", *, times: int | None = 1, **more: Any
    ) -> None:
        """A rule about POSTs to a path (a pattern), which strikes so often."""
        match = {"method": "POST", "path": path, **more.pop("match", {})}
        given = {"match": match, "when": when, "action": action, **more}
        if times is not None:
            given["times"] = times
        await self.control("POST", "/faults", given)

    async def clear_faults(self) -> None:
        await self.control("DELETE", "/faults")

    async def fired(self) -> int:
        rules = (await self.control("GET", "/faults"))["rules"]
        return sum(rule["fired"] for rule in rules)

    async def effects(self, kind: str = "", payment_intent: str = "") -> list[Any]:
        """What really happened; replays do not count."""
        query = "&".join(
            f"{name}={value}"
            for name, value in (("kind", kind), ("payment_intent", payment_intent))
            if value
        )
        return list((await self.control("GET", f"/effects?{query}"))["effects"])

    async def requests(self, path: str = "", method: str = "POST") -> list[Any]:
        """The requests to a path that ends so, oldest first."""
        found = (await self.control("GET", "/requests?limit=5000"))["requests"]
        return [one for one in found if one["method"] == method and one["path"].endswith(path)]

    async def advance(self, seconds: float) -> None:
        await self.control("POST", "/clock", {"advance_seconds": seconds})

    async def lines(self, account: str = "") -> list[Any]:
        """All balance transactions of an account (the platform's own by default)."""
        found: list[Any] = []
        more: dict[str, Any] = {}
        while True:
            page = await self.api(
                "GET", "/balance_transactions", account=account, limit=100, **more
            )
            found += page["data"]
            if not page["has_more"]:
                return found
            more = {"starting_after": found[-1]["id"]}


def webhook_targets(gateway_url: str) -> Sequence[Mapping[str, object]]:
    return [
        {
            "scope": scope,
            "url": f"{gateway_url}/api/v1/webhooks/stripe{suffix}",
            "secrets": [secret],
        }
        for scope, suffix, secret in (
            ("platform", "", PLATFORM_SECRET),
            ("connect", "/connect", CONNECT_SECRET),
        )
    ]


def signed(payload: bytes, secret: str, *, age: float = 0, scheme: str = "v1") -> str:
    """A Stripe-Signature header of the given age."""
    moment = int(time.time() - age)
    digest = hmac.new(secret.encode(), f"{moment}.".encode() + payload, hashlib.sha256)
    return f"t={moment},{scheme}={digest.hexdigest()}"


def new_event(kind: str, shown: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """An event as Stripe sends it."""
    return {
        "id": f"evt_{secrets.token_hex(12)}",
        "object": "event",
        "type": kind,
        "livemode": False,
        "created": int(time.time()),
        "data": {"object": dict(shown)},
        **fields,
    }


def ingestion(
    event: Mapping[str, Any] | bytes,
    *,
    secret: str = PLATFORM_SECRET,
    endpoint: webhooks_pb2.WebhookEndpoint.ValueType = webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM,
    age: float = 0,
    scheme: str = "v1",
) -> webhooks_pb2.IngestEventRequest:
    payload = event if isinstance(event, bytes) else json.dumps(event).encode()
    signature = signed(payload, secret, age=age, scheme=scheme)
    return webhooks_pb2.IngestEventRequest(endpoint=endpoint, payload=payload, signature=signature)
