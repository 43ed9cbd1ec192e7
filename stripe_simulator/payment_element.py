"""A stand-in for Stripe.js and its Payment Element: a checkout page can be tried with it.

A page changes the address of the script and nothing else. The card's fields are in a frame of the
simulator's origin: a page of another origin cannot read them, as it cannot read Stripe's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from aiohttp import web

from stripe_simulator.cards import CARDS
from stripe_simulator.pages import HEADERS, STYLE

_SCRIPTS: Final = Path(__file__).with_name("elements")
_CACHE: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_FRAME: Final = HEADERS | {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
}
_CHOICES: Final = "".join(f"<option value='{card.number}'>{card.says}</option>" for card in CARDS)
_PAGE: Final = (
    "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Card (simulator)</title>"
    f"<style>{STYLE} body{{background:none}} .banner{{font-size:.8rem;border-radius:6px}}</style>"
    "<script src='/_pages/elements/payment.js' defer></script></head><body>"
    "<div class='banner'>STRIPE SIMULATOR: test cards only. The page around this frame does not "
    "see what you enter.</div>"
    "<label for='number'>Card number</label><input id='number' inputmode='numeric' list='cards' "
    "autocomplete='off' placeholder='4242 4242 4242 4242'>"
    f"<datalist id='cards'>{_CHOICES}</datalist>"
    "<label for='expiry'>Expiration (MM/YY)</label><input id='expiry' autocomplete='off' "
    "placeholder='12/34'><label for='cvc'>Security code</label><input id='cvc' "
    "inputmode='numeric' autocomplete='off' placeholder='123'></body></html>"
)


def routes() -> list[web.RouteDef]:
    """Returns the script, and the frame that it opens with a script of its own."""
    return [
        web.get("/_pages/stripe.js", _script("stripe.js")),
        web.get("/_pages/elements/payment.js", _script("payment.js")),
        web.get("/_pages/elements/payment", _payment),
    ]


def _script(name: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    text = (_SCRIPTS / name).read_text()

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/javascript", headers=_CACHE)

    return answer


async def _payment(_request: web.Request) -> web.Response:
    return web.Response(text=_PAGE, content_type="text/html", headers=_FRAME)
