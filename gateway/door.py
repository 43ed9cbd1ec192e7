"""What is true of every request and every answer, before any route is looked for.

aiohttp reads requests leniently where the standard allows it: a version 0.9, a body compressed
under `Transfer-Encoding`, an address of another host. A proxy in front may read the same bytes in
another way, and such a disagreement lets a request pass unseen (request smuggling). So what has two
readings is refused here. And where aiohttp answers by itself, it quotes what it got and names its
version: that answer is replaced.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from typing_extensions import override

from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.urls import parse_web_address
from sidecar.logs import get_logger

#: A year. Without subdomains: their owners decide about them.
_HTTPS_ONLY: Final = "max-age=31536000"

# The landing page's token is in its address, hence no referrer; and no answer is worth keeping.
_HEADERS_OF_ALL: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
}

_Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """A request that no route may see; `reason` is for log and metrics alone."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Door:
    """Refuses what has two readings, and puts the same headers on every answer."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._max_header_bytes = settings.gateway_max_header_bytes
        self._headers = dict(_HEADERS_OF_ALL)
        public = parse_web_address(settings.gateway_public_url)
        if public is not None and public.scheme == "https":
            self._headers["Strict-Transport-Security"] = _HTTPS_ONLY

    def dress(self, response: web.StreamResponse) -> None:
        """Adds the headers of every answer; a page's own ones stay."""
        for name, value in self._headers.items():
            response.headers.setdefault(name, value)
        response.headers[hdrs.SERVER] = "gateway"  # instead of names and versions

    def guard(self, answer: _Answer) -> _Answer:
        """Returns `answer` for those requests that may pass."""

        async def guarded(request: web.BaseRequest) -> web.StreamResponse:
            try:
                self._check(request)
            except Refused as refused:
                get_logger().info("malformed_request", error=refused.reason)
                return self.refuse(refused.status, refused.reason)
            return await answer(request)

        return guarded

    def refuse(self, status: int, reason: str) -> web.Response:
        """Returns the one answer to all that is malformed; the connection ends with it."""
        self._metrics.requests_refused.labels(reason).inc()
        response = web.json_response({"error": "refused"}, status=status)
        self.dress(response)
        response.force_close()
        return response

    def _check(self, request: web.BaseRequest) -> None:
        if request.version not in (HttpVersion10, HttpVersion11):
            raise Refused(400, "version")
        target = request.raw_path
        # An address of another host, `*`, a fragment, or a second spelling of a path of ours.
        if not target.startswith("/") or "#" in target or "%" in target.partition("?")[0]:
            raise Refused(400, "target")
        if sum(len(name) + len(value) for name, value in request.raw_headers) > (
            self._max_header_bytes
        ):
            raise Refused(431, "header_size")
        codings = request.headers.getall(hdrs.TRANSFER_ENCODING, [])
        if codings and request.version == HttpVersion10:
            raise Refused(400, "transfer_encoding")
        if codings and [coding.strip().lower() for coding in codings] != ["chunked"]:
            raise Refused(415, "transfer_encoding")
        if request.headers.get(hdrs.EXPECT, "100-continue").lower() != "100-continue":
            raise Refused(400, "expect")


class Connection(web.RequestHandler):
    """One connection of a stranger. What aiohttp would say of broken bytes stays unsaid."""

    __slots__ = ("_door",)

    def __init__(self, server: web.Server, door: Door, options: Mapping[str, Any]) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._door = door

    @override
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)  # logs it
        if status >= 500:
            return self._door.refuse(503, "fault")
        return self._door.refuse(status, "unparsable")
