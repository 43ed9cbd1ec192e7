"""The pages that Stripe would host: onboarding, paying, 3D Secure, receipts, the dashboard.

They work without JavaScript, escape what they show, and say loudly what they are.
"""

from __future__ import annotations

from html import escape
from urllib.parse import urlencode, urlsplit, urlunsplit

from aiohttp import web

from stripe_simulator import account_links, accounts, cards, confirmation, currencies
from stripe_simulator.control import confirm_as_customer
from stripe_simulator.errors import ApiError
from stripe_simulator.payment_intents import by_client_secret
from stripe_simulator.simulation import Call, Simulation
from stripe_simulator.store import Row

STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#f6f8fa;color:#1a1f36}
main{max-width:44rem;margin:0 auto;padding:1.5rem}
.banner{background:#a3360a;color:#fff;padding:.6rem 1.5rem;text-align:center;font-weight:600}
.card{background:#fff;border:1px solid #d8dee4;border-radius:8px;padding:1.25rem;margin:1rem 0}
h1{font-size:1.4rem;margin:.5rem 0}
label{display:block;margin:.75rem 0 .25rem}
input{font:inherit;padding:.5rem;border:1px solid #c0c8d2;border-radius:6px;width:100%;
box-sizing:border-box}
button{font:inherit;padding:.6rem 1.1rem;border:0;border-radius:6px;background:#3f3ad1;color:#fff;
cursor:pointer;margin:.75rem .5rem 0 0}
button.quiet{background:#e3e8ee;color:#1a1f36}
table{border-collapse:collapse;width:100%;font-size:.9rem}
td,th{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #e3e8ee;vertical-align:top}
.bad{color:#b3093c}.good{color:#0a6b43}code{font-size:.9em;word-break:break-all}
@media (prefers-color-scheme:dark){body{background:#14171c;color:#e6e8eb}
.card{background:#1d2127;border-color:#343a43}input{background:#14171c;color:inherit}
td,th{border-color:#343a43}.bad{color:#ff8fa8}.good{color:#6fdcae}a{color:#9aa0ff}}
"""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Pages:
    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.index),
            web.get("/_pages/onboarding/{token}", self.onboarding),
            web.post("/_pages/onboarding/{token}", self.submit_onboarding),
            web.get("/_pages/express/{token}", self.express),
            web.get("/_pages/pay", self.pay),
            web.post("/_pages/pay", self.submit_payment),
            web.get("/_pages/three_d_secure/{intent}", self.challenge),
            web.post("/_pages/three_d_secure/{intent}", self.submit_challenge),
            web.get("/_pages/receipt/{charge}", self.receipt),
        ]

    async def index(self, _request: web.Request) -> web.Response:
        store = self.simulation.store
        payments = "".join(
            f"<tr><td><a href='/_pages/pay?{escape(urlencode(_secret(row)))}'>"
            f"<code>{escape(row['id'])}</code></a></td><td>{_money(row)}</td>"
            f"<td>{escape(row['status'])}</td></tr>"
            for row in store.all("payment_intent")[:-21:-1]
        )
        connected = "".join(
            f"<tr><td><code>{escape(row['id'])}</code></td><td>{escape(row['email'] or '')}</td>"
            f"<td>{escape(row['_stage'])}</td></tr>"
            for row in store.all("account")[:-21:-1]
        )
        return _page(
            "Stripe simulator",
            "<p>A stand-in for Stripe. The API is under <code>/v1</code>, the control API under "
            "<code>/_simulator</code>.</p><div class='card'><h1>Latest payments</h1>"
            f"<table><tr><th>Payment</th><th>Amount</th><th>Status</th></tr>{payments}</table>"
            "</div><div class='card'><h1>Latest connected accounts</h1><table><tr><th>Account</th>"
            f"<th>E-mail</th><th>Onboarding</th></tr>{connected}</table></div>",
        )

    # Onboarding ---------------------------------------------------------------------------------

    async def onboarding(self, request: web.Request) -> web.Response:
        link, answer = self._link(request)
        if link is None:
            return answer
        account = self.simulation.store.require("account", link["account"])
        due = "".join(
            f"<li><code>{escape(name)}</code></li>"
            for name in account["requirements"]["currently_due"]
        )
        facts = _facts(
            ("Account", account["id"]),
            ("E-mail", account["email"]),
            ("Country", account["country"]),
            ("Business type", account["business_type"]),
        )
        return _page(
            "Get paid by the platform",
            f"<div class='card'>{facts}<p>Stripe would now ask for:</p><ul>{due}</ul>"
            "<form method='post'>"
            "<button name='outcome' value='complete'>Submit everything</button>"
            "<button class='quiet' name='outcome' value='pending'>Submit, verification pending"
            "</button><button class='quiet' name='outcome' value='unfinished'>Leave unfinished"
            "</button></form></div>",
        )

    async def submit_onboarding(self, request: web.Request) -> web.Response:
        """POST, with or without a form: completes unless `outcome` says otherwise."""
        link, answer = self._link(request)
        if link is None:
            return answer
        form = await request.post()
        outcome = str(form.get("outcome", "complete"))
        if outcome not in ("complete", "pending", "unfinished"):
            return _page("Unknown outcome", "<p class='bad'>There is no such button.</p>", 400)
        simulation = self.simulation
        simulation.process_due()
        with simulation.acting():
            simulation.store.change("link", link["id"], used=True)
            account = simulation.store.require("account", link["account"])
            accounts.complete_onboarding(simulation, account, outcome)
        return _redirect(link["return_url"])

    def _link(self, request: web.Request) -> tuple[Row | None, web.Response]:
        """The usable link, or the answer of one that is not: back to where a new one is made."""
        simulation = self.simulation
        token = request.match_info["token"]
        link = account_links.usable(simulation, token)
        if link is not None and not accounts.is_deauthorized(simulation, link["account"]):
            return link, web.Response()
        known = simulation.store.get("link", token)
        if known is not None:
            return None, _redirect(known["refresh_url"])
        return None, _page("Unknown link", "<p class='bad'>There is no such link.</p>", 404)

    async def express(self, request: web.Request) -> web.Response:
        simulation = self.simulation
        login = simulation.store.get("login", request.match_info["token"])
        if login is None:
            return _page("Unknown link", "<p class='bad'>There is no such link.</p>", 404)
        account = simulation.store.require("account", login["account"])
        id_ = account["id"]
        balances = []
        for name in simulation.balances.currencies(id_):
            available = currencies.formatted(simulation.balances.available(id_, name), name)
            total = currencies.formatted(simulation.balances.total(id_, name), name)
            balances.append((f"Balance ({name})", f"{available} available of {total}"))
        facts = _facts(
            ("Account", id_),
            ("Charges", "enabled" if account["charges_enabled"] else "disabled"),
            ("Payouts", "enabled" if account["payouts_enabled"] else "disabled"),
            ("Owed to Stripe", ", ".join(account["requirements"]["currently_due"]) or "nothing"),
            *balances,
        )
        return _page("Express dashboard", f"<div class='card'>{facts}</div>")

    # Paying -------------------------------------------------------------------------------------

    async def pay(self, request: web.Request) -> web.Response:
        secret = request.query.get("client_secret")
        intent = by_client_secret(self.simulation, secret) if secret else None
        if intent is not None:
            return self._payment_page(intent, None)
        problem = "<p class='bad'>No payment has this client secret.</p>" if secret else ""
        return _page(
            "Pay",
            f"<div class='card'>{problem}<form method='get' action='/_pages/pay'>"
            "<label for='client_secret'>Client secret of the payment</label>"
            "<input id='client_secret' name='client_secret' placeholder='pi_…_secret_…' "
            "autocomplete='off'><button>Show the payment</button></form></div>",
            404 if secret else 200,
        )

    async def submit_payment(self, request: web.Request) -> web.Response:
        form = await request.post()
        simulation = self.simulation
        simulation.process_due()
        intent = by_client_secret(simulation, str(form.get("client_secret", "")))
        if intent is None:
            return _page("Unknown payment", "<p class='bad'>No such payment.</p>", 404)
        params = {
            "client_secret": intent["client_secret"],
            "payment_method_data": {"type": "card", "card": {"number": str(form.get("number"))}},
            "return_url": f"{simulation.base_url}/_pages/pay?{urlencode(_secret(intent))}",
        }
        call = Call(simulation, intent["_account"], params, {"intent": intent["id"]}, True)
        problem = None
        try:
            confirm_as_customer(call, intent)
        except ApiError as error:
            problem = error.message
        intent = simulation.store.require("payment_intent", intent["id"])
        if intent["status"] == "requires_action":
            return _redirect(confirmation.challenge_url(simulation, intent))
        return self._payment_page(intent, problem)

    def _payment_page(self, intent: Row, problem: str | None) -> web.Response:
        failure = intent["last_payment_error"] or {}
        problem = problem or failure.get("message")
        status = {
            "succeeded": "<p class='good'>Paid. The money has been taken.</p>",
            "requires_capture": "<p class='good'>Authorized. The amount is held on the card.</p>",
            "canceled": "<p class='bad'>This payment was canceled.</p>",
            "requires_action": "<p>Your bank asks you to confirm: "
            f"<a href='{escape(confirmation.challenge_url(self.simulation, intent))}'>3D Secure"
            "</a>.</p>",
        }.get(intent["status"], "")
        body = "<div class='card'>" + _facts(
            ("Payment", intent["id"]),
            ("Amount", currencies.formatted(intent["amount"], intent["currency"])),
            ("For", intent["description"]),
            ("Status", intent["status"]),
        )
        if problem:
            body += f"<p class='bad'>{escape(problem)}</p>"
        body += status + "</div>"
        if intent["status"] in ("requires_payment_method", "requires_confirmation"):
            body += self._card_form(intent)
        return _page("Pay", body)

    def _card_form(self, intent: Row) -> str:
        rows = "".join(
            f"<tr><td><code>{card.number}</code></td><td>{escape(card.says)}</td></tr>"
            for card in cards.CARDS
        )
        return (
            "<div class='card'><form method='post' action='/_pages/pay'>"
            f"<input type='hidden' name='client_secret' value='{escape(intent['client_secret'])}'>"
            "<label for='number'>Card number (test cards only)</label>"
            "<input id='number' name='number' value='4242 4242 4242 4242' inputmode='numeric' "
            "autocomplete='off'><button>Pay "
            f"{escape(currencies.formatted(intent['amount'], intent['currency']))}</button></form>"
            f"</div><div class='card'><table><tr><th>Test card</th><th>It …</th></tr>{rows}"
            "</table></div>"
        )

    async def challenge(self, request: web.Request) -> web.Response:
        intent = self._challenged(request)
        if intent is None:
            return _page("Unknown payment", "<p class='bad'>No such payment.</p>", 404)
        if intent["status"] != "requires_action":
            return self._payment_page(intent, None)
        return _page(
            "3D Secure",
            "<div class='card'><p>Your bank asks: do you want to pay "
            f"<b>{escape(currencies.formatted(intent['amount'], intent['currency']))}</b>?</p>"
            "<form method='post'><button name='outcome' value='approve'>Complete authentication"
            "</button><button class='quiet' name='outcome' value='fail'>Fail authentication"
            "</button></form></div>",
        )

    async def submit_challenge(self, request: web.Request) -> web.Response:
        """`outcome=approve` (the default) or `fail`; then back to the return_url, if any."""
        intent = self._challenged(request)
        if intent is None:
            return _page("Unknown payment", "<p class='bad'>No such payment.</p>", 404)
        form = await request.post()
        simulation = self.simulation
        simulation.process_due()
        back = (intent["_authentication"] or {}).get("return_url")
        with simulation.acting():
            passed = form.get("outcome", "approve") == "approve"
            intent = confirmation.finish_challenge(simulation, intent, passed)
        if back is None:
            return self._payment_page(intent, None)
        succeeded = intent["status"] in ("succeeded", "requires_capture")
        parts = urlsplit(back)
        outcome = {
            "payment_intent": intent["id"],
            "payment_intent_client_secret": intent["client_secret"],
            "redirect_status": "succeeded" if succeeded else "failed",
        }
        query = "&".join(filter(None, (parts.query, urlencode(outcome))))
        return _redirect(urlunsplit(parts._replace(query=query)))

    def _challenged(self, request: web.Request) -> Row | None:
        secret = request.query.get("client_secret", "")
        intent = by_client_secret(self.simulation, secret)
        if intent is None or intent["id"] != request.match_info["intent"]:
            return None
        return intent

    async def receipt(self, request: web.Request) -> web.Response:
        charge = self.simulation.store.get("charge", request.match_info["charge"])
        if charge is None:
            return _page("Unknown receipt", "<p class='bad'>No such charge.</p>", 404)
        facts = _facts(
            ("Charge", charge["id"]),
            ("Amount", currencies.formatted(charge["amount"], charge["currency"])),
            ("Captured", currencies.formatted(charge["amount_captured"], charge["currency"])),
            ("For", charge["description"]),
        )
        return _page("Receipt", f"<div class='card'>{facts}</div>")


def _secret(intent: Row) -> dict[str, str]:
    return {"client_secret": intent["client_secret"]}


def _money(intent: Row) -> str:
    return escape(currencies.formatted(intent["amount"], intent["currency"]))


def _facts(*facts: tuple[str, str | None]) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in facts
        if value
    )
    return f"<table>{rows}</table>"


def _page(title: str, body: str, status: int = 200) -> web.Response:
    html = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)} (simulator)</title><style>{STYLE}</style></head><body>"
        "<div class='banner'>STRIPE SIMULATOR — not Stripe, no real money, no real cards</div>"
        f"<main><h1>{escape(title)}</h1>{body}</main></body></html>"
    )
    return web.Response(text=html, content_type="text/html", status=status, headers=HEADERS)


def _redirect(url: str) -> web.Response:
    return web.Response(status=303, headers={"Location": url, **HEADERS})
