"""The part of a gig service that a browser sees: a page on which the client of a gig pays.

    python -m examples.checkout.server
    # then open http://127.0.0.1:8080/gigs/logo

The browser gets a client secret from here, and gives the card to Stripe alone.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

import grpc
from aiohttp import web

from examples.python.gig_service import GigService, open_channel, state_of
from marketplace.payments.errors import refusal_of

HERE = Path(__file__).parent
GIGS = web.AppKey("GIGS", GigService)

#: The simulator's stand-in. With keys of Stripe: the address from Stripe's documentation, such as
#: https://js.stripe.com/endive/stripe.js. Never a copy of the script on your own server.
STRIPE_JS = os.environ.get("STRIPE_JS", "http://127.0.0.1:12111/_pages/stripe.js")
EXPERT = os.environ.get("CHECKOUT_EXPERT", "ann")


def policy(stripe_js: str) -> str:
    """Returns the Content-Security-Policy: code, frames and calls are ours and Stripe's alone."""
    parts = urlsplit(stripe_js)
    scripts = frames = calls = f"{parts.scheme}://{parts.netloc}"
    if parts.netloc == "js.stripe.com":
        scripts = "https://js.stripe.com https://*.js.stripe.com"
        frames = f"{scripts} https://hooks.stripe.com"
        calls = "https://api.stripe.com"
    return (
        f"default-src 'none'; script-src 'self' {scripts}; frame-src {frames}; "
        f"connect-src 'self' {calls}; style-src 'self'; img-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )


HEADERS = {
    "Content-Security-Policy": policy(STRIPE_JS),
    "Referrer-Policy": "no-referrer",  # the address that Stripe returns to has the secret
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


async def page(_request: web.Request) -> web.Response:
    """The page of every gig: which one, its script reads from the address."""
    text = Template((HERE / "page.html").read_text()).substitute(stripe_js=STRIPE_JS)
    return web.Response(text=text, content_type="text/html", headers=HEADERS)


async def script(_request: web.Request) -> web.Response:
    text = (HERE / "checkout.js").read_text()
    return web.Response(text=text, content_type="text/javascript", headers=HEADERS)


async def style(_request: web.Request) -> web.Response:
    text = (HERE / "checkout.css").read_text()
    return web.Response(text=text, content_type="text/css", headers=HEADERS)


async def begin(request: web.Request) -> web.Response:
    """Initiates the payment of a gig, or finds it, and hands the secret to its client.

    Who the client is comes from your session, and the price from your gigs: never from the browser.
    """
    if request.headers.get("X-Requested-With") != "checkout":
        return answer(403, message="This call must come from the page itself.")
    service, gig = request.app[GIGS], request.match_info["gig"]
    made = await service.book(gig, client="bob", expert=EXPERT, minor_units=10_000)
    payment = await service.payment_of(gig)  # the stored answer shows the first state
    return answer(
        200,
        clientSecret=made.client_secret,
        publishableKey=made.publishable_key,
        state=state_of(payment),
    )


async def show(request: web.Request) -> web.Response:
    """Says how the payment stands. `last_failure.message` may be shown to a client."""
    payment = await request.app[GIGS].payment_of(request.match_info["gig"])
    return answer(200, state=state_of(payment), message=payment.last_failure.message)


def answer(status: int, **body: str) -> web.Response:
    return web.json_response(body, status=status, headers=HEADERS)


@web.middleware
async def refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turns refusals into sentences for a client. Their facts are for the log alone."""
    try:
        return await handler(request)
    except LookupError:
        return answer(404, message="There is no payment for this gig.")
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        print(f"{request.method} {request.path}: {refusal.reason or refusal.code.name}", flush=True)
        if refusal.reason == "EXPERT_NOT_READY":
            return answer(409, message="This expert cannot be paid yet. Please come back later.")
        return answer(503, message="Payments do not work at the moment. Please try again.")


async def connected(app: web.Application) -> AsyncIterator[None]:
    """Holds the one channel of this process."""
    async with open_channel() as channel:
        app[GIGS] = GigService(channel, os.environ.get("DATABASE", "gigs.sqlite"))
        yield


def application() -> web.Application:
    app = web.Application(middlewares=[refusals])
    app.add_routes(
        [
            web.get("/gigs/{gig:[a-z0-9-]{1,64}}", page),
            web.get("/checkout.js", script),
            web.get("/checkout.css", style),
            web.post("/api/gigs/{gig:[a-z0-9-]{1,64}}/payment", begin),
            web.get("/api/gigs/{gig:[a-z0-9-]{1,64}}/payment", show),
        ]
    )
    app.cleanup_ctx.append(connected)
    return app


if __name__ == "__main__":
    # No access log: the address that Stripe returns to has the client secret.
    port = int(os.environ.get("PORT", "8080"))
    web.run_app(application(), host="127.0.0.1", port=port, access_log=None)
