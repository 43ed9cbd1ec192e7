"""A service that gets webhooks: it verifies each one as docs/integrating.md tells it to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

SECRET = "whsec_" + base64.b64encode(b"relay tests, 32 bytes of secret!").decode()


@dataclass
class Receiver:
    """Remembers what came, and answers what the test wants."""

    url: str = ""
    secrets: list[str] = field(default_factory=lambda: [SECRET])
    #: Every request, in the order of arrival.
    came: list[dict[str, Any]] = field(default_factory=list)
    #: Those that were answered with 2xx.
    accepted: list[dict[str, Any]] = field(default_factory=list)
    unverified: int = 0
    #: The status that a request gets, and headers.
    answer: Callable[[dict[str, Any]], int] = lambda _: 204
    headers: dict[str, str] = field(default_factory=dict)
    #: While it is cleared, requests that have arrived get no answer.
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if not self._verified(request, body):
            self.unverified += 1
            return web.Response(status=401)
        event = json.loads(body)
        assert event["id"] == request.headers["webhook-id"]
        self.came.append(event)
        await self.answering.wait()
        status = self.answer(event)
        if 200 <= status < 300:
            self.accepted.append(event)
        return web.Response(status=status, headers=self.headers)

    def _verified(self, request: web.Request, body: bytes) -> bool:
        head = request.headers
        content = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + body
        given = [one.removeprefix("v1,") for one in head["webhook-signature"].split(" ")]
        return any(
            hmac.compare_digest(base64.b64decode(one), self._signature(secret, content))
            for one in given
            for secret in self.secrets
        )

    @staticmethod
    def _signature(secret: str, content: bytes) -> bytes:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        return hmac.new(key, content, hashlib.sha256).digest()


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Starts a receiver on a free port."""
    receiver = Receiver()
    receiver.answering.set()
    app = web.Application()
    app.router.add_post("/events", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        [(_, port)] = [address[:2] for address in runner.addresses]
        receiver.url = f"http://127.0.0.1:{port}/events"
        yield receiver
    finally:
        receiver.answering.set()
        await runner.cleanup()
