"""What is true of every request and every answer, before any page is asked.

A request must name the console's own host: another site's name that leads to this machine is
refused. A form must come from the console's own pages. Without a session there is the sign-in only.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from console.core import Refused
from console.session import Session
from console.settings import Settings
from console.site import SESSION, SITE
from console.subjects import link, own_page
from sidecar.logs import describe_exception, get_logger

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SIGN_IN: Final = "/sign-in"
STYLE: Final = "/assets/console.css"
#: For supervisors, which know the console by its address only. It says nothing.
LIVE: Final = "/live"
_OPEN: Final = frozenset({SIGN_IN, STYLE})
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With no-referrer a browser would hide the origin of our own forms as well.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


async def set_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Sets what every answer has."""
    for name, value in HEADERS.items():
        response.headers[name] = value
    if request.app[SITE].settings.is_https:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    response.headers["Server"] = "console"  # instead of names and versions


@web.middleware
async def observe(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Writes one line for every request: which route and what came of it."""
    started = time.perf_counter()
    status: int | None = None
    try:
        response = await handler(request)
        status = response.status
        return response
    except web.HTTPException as error:
        status = error.status
        raise
    finally:
        resource = request.match_info.route.resource
        get_logger().info(
            "request",
            method=request.method,
            route=resource.canonical if resource is not None else "unknown",
            status=status,
            duration_ms=round((time.perf_counter() - started) * 1000, 1),
        )


@web.middleware
async def answer_faults(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Turns refusals and faults into pages. No page shows an exception's text."""
    site = request.app[SITE]
    try:
        return await handler(request)
    except Refused as refused:
        get_logger().info("refused", code=refused.code, reason=refused.reason)
        if refused.reason == "UNAUTHENTICATED" and request.path not in _OPEN:
            response = web.HTTPSeeOther(f"{SIGN_IN}?why=expired")
            site.sessions.end(response)
            raise response from None
        return site.refusal(request, refused)
    except web.HTTPRedirection:
        raise
    except web.HTTPException as error:
        title = {404: "There is no such page", 405: "This page cannot do that"}
        return site.problem(
            request, error.status, title.get(error.status, "This request cannot be used"), ""
        )
    except Exception as error:  # noqa: BLE001 - a fault of ours is a page, and a line in the log
        get_logger().error("fault", **describe_exception(error))
        return site.problem(
            request,
            500,
            "The console has a fault",
            "Look at the payment to see what was done, then try again.",
        )


@web.middleware
async def admit(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Lets only those requests pass that an operator's browser makes on purpose."""
    site = request.app[SITE]
    if request.path == LIVE:
        return await handler(request)
    if not is_our_host(request, site.settings):
        return web.Response(status=421, text="The console is not known under this name.\n")
    if request.method not in ("GET", "HEAD") and not _is_our_origin(request, site.settings):
        return site.problem(
            request,
            403,
            "This form is not the console's",
            "It came from another site, so nothing was done.",
        )
    session = site.sessions.read(request)
    if session is not None and not session.token and site.settings.console_sign_in == "token":
        session = None
    begun: Session | None = None
    if session is None and site.settings.console_sign_in == "off":
        session = begun = site.sessions.begin("")
    if session is not None:
        request[SESSION] = session
    elif request.path not in _OPEN:
        sought = own_page(request.path_qs) if request.method == "GET" else "/"
        if _came_from_another_site(request):
            return site.page(request, "arrive.html", title="One moment", address=sought)
        raise web.HTTPSeeOther(SIGN_IN if sought == "/" else link(SIGN_IN, next=sought))
    response = await handler(request)
    if begun is not None:
        site.sessions.write(response, begun)
    return response


def is_our_host(request: web.Request, settings: Settings) -> bool:
    """Returns whether the request names the console and not another site."""
    try:
        named = urlsplit(f"//{request.host}")
        host, port = (named.hostname or "").lower(), named.port
    except ValueError:
        return False
    if settings.console_public_url:
        public = urlsplit(settings.console_public_url)
        return host == public.hostname and (port or 443) == (public.port or 443)
    return host in _LOOPBACK | {settings.console_host.lower()}


def _came_from_another_site(request: web.Request) -> bool:
    """Returns whether the operator followed a link of an alarm or a chat.

    Then the browser keeps the cookie back, as it must. A page that leads to itself comes with it.
    """
    site = request.headers.get("Sec-Fetch-Site", "")
    return request.method == "GET" and site in ("cross-site", "same-site")


def _is_our_origin(request: web.Request, settings: Settings) -> bool:
    scheme = "https" if settings.is_https else "http"
    ours = settings.console_public_url or f"{scheme}://{request.host}"
    return request.headers.get("Origin", "").lower() == ours.lower()
