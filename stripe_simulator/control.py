"""The control API under `/_simulator/`: what a test needs and Stripe does not offer.

JSON in and out, no authentication (the simulator listens on 127.0.0.1 unless told otherwise).
README.md has an example of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from aiohttp import web

from stripe_simulator import accounts, announced, confirmation, faults, payouts
from stripe_simulator.api import Api
from stripe_simulator.balance import BY_HAND
from stripe_simulator.control_cardholders import Cardholders, Given, Handler, only
from stripe_simulator.errors import ApiError
from stripe_simulator.events import targets
from stripe_simulator.payment_intents import require_intent
from stripe_simulator.rendering import plain
from stripe_simulator.routes import one
from stripe_simulator.schemas import INTENT_CONFIRM
from stripe_simulator.simulation import Call, Simulation
from stripe_simulator.store import Row
from stripe_simulator.webhooks import Webhooks


class Control:
    def __init__(self, simulation: Simulation, api: Api, webhooks: Webhooks) -> None:
        self.simulation = simulation
        self.api = api
        self.faults = api.faults
        self.webhooks = webhooks
        announced.register(simulation)

    def routes(self) -> list[web.RouteDef]:
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/health", self.health),
            ("GET", "/clock", self.get_clock),
            ("POST", "/clock", self.move_clock),
            ("GET", "/settings", self.get_settings),
            ("POST", "/settings", self.move_settings),
            ("GET", "/faults", self.get_faults),
            ("POST", "/faults", self.add_faults),
            ("DELETE", "/faults", self.clear_faults),
            ("DELETE", "/faults/{id}", self.clear_faults),
            ("GET", "/effects", self.get_effects),
            ("GET", "/requests", self.get_requests),
            ("GET", "/webhooks", self.get_webhooks),
            ("POST", "/webhooks", self.move_webhooks),
            ("POST", "/webhooks/rules", self.add_webhook_rule),
            ("DELETE", "/webhooks/rules", self.clear_webhook_rules),
            ("POST", "/webhooks/settle", self.settle_webhooks),
            ("POST", "/events/{id}/redeliver", self.redeliver),
            ("POST", "/reset", self.reset),
            ("POST", "/balance", self.adjust_balance),
            ("POST", "/accounts/{id}/{action}", self.act_on_account),
            ("POST", "/payment_intents/{id}/confirm", self.confirm),
            ("POST", "/payment_intents/{id}/authenticate", self.authenticate),
            *Cardholders(self.simulation).routes(),
            ("POST", "/payouts/{id}/{action}", self.act_on_payout),
        ]
        return [
            web.route(method, f"/_simulator{path}", _json(self.simulation, handler))
            for method, path, handler in table
        ]

    async def health(self, _request: web.Request, _given: Given) -> Given:
        store = self.simulation.store
        kinds = ("account", "payment_intent", "charge", "refund", "transfer", "event")
        return {
            "status": "ok",
            "seed": self.simulation.ids.seed,
            "platform_account": self.simulation.platform,
            "base_url": self.simulation.base_url,
            "objects": {kind: store.count(kind) for kind in kinds},
        }

    # Clock and switches -------------------------------------------------------------------------

    async def get_clock(self, _request: web.Request, _given: Given) -> Given:
        clock = self.simulation.clock
        return {"now": clock.now(), "frozen": clock.frozen}

    async def move_clock(self, request: web.Request, given: Given) -> Given:
        """{"advance_seconds": n}, {"set": unix seconds}, {"freeze": true or false}."""
        only(given, "advance_seconds", "set", "freeze")
        simulation = self.simulation
        if "freeze" in given:
            simulation.clock.freeze(bool(given["freeze"]))
        if "advance_seconds" in given:
            simulation.clock.advance(float(given["advance_seconds"]))
        if "set" in given:
            simulation.clock.set(float(given["set"]))
        simulation.process_due()
        with simulation.acting():
            simulation.save_clock_and_settings()
        return await self.get_clock(request, {})

    async def get_settings(self, _request: web.Request, _given: Given) -> Given:
        return dataclasses.asdict(self.simulation.settings)

    async def move_settings(self, request: web.Request, given: Given) -> Given:
        self.simulation.settings.move(given)
        with self.simulation.acting():
            self.simulation.save_clock_and_settings()
        return await self.get_settings(request, {})

    # Faults -------------------------------------------------------------------------------------

    async def get_faults(self, _request: web.Request, _given: Given) -> Given:
        return {"rules": [faults.shown(rule) for rule in self.faults.rules]}

    async def add_faults(self, request: web.Request, given: Given) -> Given:
        """One rule, or {"rules": [...], "seed": "...", "replace": true}."""
        rules = given.get("rules")
        if rules is None:
            rules = [given]
        else:
            only(given, "rules", "seed", "replace")
            if "seed" in given:
                self.faults.seed(str(given["seed"]))
            if given.get("replace"):
                self.faults.clear()
        for rule in rules:
            self.faults.add(rule)
        return await self.get_faults(request, {})

    async def clear_faults(self, request: web.Request, _given: Given) -> Given:
        id_ = request.match_info.get("id")
        self.faults.clear(int(id_) if id_ else None)
        return await self.get_faults(request, {})

    # Logs ---------------------------------------------------------------------------------------

    async def get_effects(self, request: web.Request, _given: Given) -> Given:
        """?since=N gives those after number N; ?kind= and ?payment_intent= narrow them."""
        query = request.query
        since = int(query.get("since", "0"))
        rows = [
            {name: value for name, value in row.items() if name[0] != "_" and name != "id"}
            for row in self.simulation.store.all("effect")[since:]
            if query.get("kind") in (None, row["kind"])
            and query.get("payment_intent") in (None, row["payment_intent"])
        ]
        return {"effects": rows, "last": self.simulation.store.count("effect")}

    async def get_requests(self, request: web.Request, _given: Given) -> Given:
        limit = int(request.query.get("limit", "100"))
        kept = list(self.api.requests)
        return {
            "counts": dict(self.api.request_counts),
            "requests": kept[-limit:] if limit else [],
        }

    # Webhooks -----------------------------------------------------------------------------------

    async def get_webhooks(self, request: web.Request, _given: Given) -> Given:
        return self.webhooks.status(int(request.query.get("limit", "100")))

    async def move_webhooks(self, request: web.Request, given: Given) -> Given:
        """Delivery settings, and {"targets": [{"scope", "url", "secrets"}]} for the endpoints."""
        given = dict(given)
        wanted = given.pop("targets", None)
        self.webhooks.move(given)
        if wanted is not None:
            for target in wanted:
                only(target, "scope", "url", "secrets")
                if target.get("scope") not in ("platform", "connect"):
                    raise ValueError("scope must be platform or connect")
            with self.simulation.acting():
                self.simulation.store.put("meta", "webhooks", targets=wanted)
        return await self.get_webhooks(request, {})

    async def add_webhook_rule(self, request: web.Request, given: Given) -> Given:
        for rule in given.get("rules", [given]):
            self.webhooks.add_rule(rule)
        return await self.get_webhooks(request, {})

    async def clear_webhook_rules(self, request: web.Request, _given: Given) -> Given:
        self.webhooks.rules.clear()
        return await self.get_webhooks(request, {})

    async def settle_webhooks(self, _request: web.Request, given: Given) -> Given:
        """Wait until no delivery is pending."""
        return {"settled": await self.webhooks.settle(float(given.get("seconds", 10)))}

    async def redeliver(self, request: web.Request, _given: Given) -> Given:
        return {"deliveries": self.webhooks.redeliver(request.match_info["id"])}

    # State --------------------------------------------------------------------------------------

    async def reset(self, request: web.Request, _given: Given) -> Given:
        """Empty everything; endpoints set at run time stay, since their receivers do."""
        kept = [dataclasses.asdict(target) for target in targets(self.simulation)]
        self.simulation.reset()
        self.faults.clear()
        self.webhooks.forget()
        self.api.forget()
        with self.simulation.acting():
            self.simulation.store.put("meta", "webhooks", targets=kept)
        return await self.health(request, {})

    async def adjust_balance(self, _request: web.Request, given: Given) -> Given:
        """Put money on a balance or take it away, as a top-up, a fee of Stripe's or a payout would.

        {"account"?: acct, "amount": ±n, "currency": "usd", "type"?: "adjustment|stripe_fee|…"}
        """
        only(given, "account", "amount", "currency", "type", "description", "reporting_category")
        simulation = self.simulation
        account = given.get("account", simulation.platform)
        if account != simulation.platform and simulation.store.get("account", account) is None:
            raise ValueError(f"no such account: {account}")
        type_ = given.get("type", "adjustment")
        if type_ not in BY_HAND:
            raise ValueError(f"type must be one of {', '.join(BY_HAND)}")
        with simulation.acting():
            line = simulation.balances.record(
                account,
                type_,
                None,
                int(given["amount"]),
                str(given["currency"]),
                description=given.get("description"),
                reporting_category=given.get("reporting_category"),
            )
            simulation.effect(
                "balance_adjusted", account, amount=line["amount"], currency=line["currency"]
            )
        return plain(simulation, line)

    async def act_on_account(self, request: web.Request, given: Given) -> Given:
        simulation = self.simulation
        id_ = request.match_info["id"]
        account = simulation.store.get("account", id_)
        if account is None:
            raise ValueError(f"no such account: {id_}")

        def complete() -> Row:
            outcome = given.get("outcome", "complete")
            if outcome not in ("complete", "pending", "unfinished"):
                raise ValueError("outcome must be complete, pending or unfinished")
            return accounts.complete_onboarding(simulation, account, outcome)

        actions: dict[str, Callable[[], Row]] = {
            "complete_onboarding": complete,
            "restrict": lambda: accounts.restrict(simulation, id_, given),
            "announce": lambda: announced.announce(simulation, id_, given),
            "restore": lambda: accounts.restore(simulation, id_),
            "deauthorize": lambda: accounts.deauthorize(simulation, id_),
            "reauthorize": lambda: accounts.reauthorize(simulation, id_),
            "payout": lambda: payouts.pay_out_now(simulation, id_),
            "bank": lambda: payouts.set_bank(simulation, id_, given),
        }
        action = request.match_info["action"]
        if action not in actions:
            raise ValueError(f"unknown action {action}; there are {', '.join(actions)}")
        with simulation.acting():
            return plain(simulation, actions[action]())

    async def confirm(self, request: web.Request, given: Given) -> Given:
        """{"payment_method": "pm_card_visa"}: what a person would do on the pay page."""
        only(given, *INTENT_CONFIRM)
        simulation = self.simulation
        intent = require_intent(simulation, request.match_info["id"])
        params = {"payment_method": "pm_card_visa", **given}
        params["client_secret"] = intent["client_secret"]
        call = Call(simulation, intent["_account"], params, {"intent": intent["id"]}, True)
        return confirm_as_customer(call, intent)

    async def authenticate(self, request: web.Request, given: Given) -> Given:
        """{"outcome": "approve"} or "fail": the answer to a 3D Secure challenge."""
        only(given, "outcome")
        simulation = self.simulation
        intent = require_intent(simulation, request.match_info["id"])
        with simulation.acting():
            passed = given.get("outcome", "approve") == "approve"
            return plain(simulation, confirmation.finish_challenge(simulation, intent, passed))

    async def act_on_payout(self, request: web.Request, given: Given) -> Given:
        """`/payouts/po_…/pay`, `/payouts/po_…/fail` with {"failure"?: code}: at the bank, now."""
        only(given, "failure")
        simulation = self.simulation
        id_, action = request.match_info["id"], request.match_info["action"]
        with simulation.acting():
            return plain(simulation, payouts.act(simulation, id_, action, given))


def confirm_as_customer(call: Call, intent: Row) -> Given:
    """Confirm as Stripe.js would; a decline is no error here, the intent shows it."""
    simulation = call.simulation
    with simulation.acting():
        try:
            confirmation.confirm_intent(call, intent)
        except ApiError as error:
            if not error.keeps_changes:
                raise
    return one(lambda _: simulation.store.require("payment_intent", intent["id"]))(call)


def _json(
    simulation: Simulation, handler: Handler
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Read JSON, answer JSON; a mistake of the caller's is 400 with a sentence."""

    async def handle(request: web.Request) -> web.Response:
        try:
            given = await request.json() if request.can_read_body else {}
            if not isinstance(given, dict):
                raise ValueError("the body must be a JSON object")
            # What is already due comes first, so that nothing is dated before what exists.
            simulation.process_due()
            return web.json_response(await handler(request, given))
        except (ValueError, TypeError, KeyError) as error:
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)
        except ApiError as error:
            return web.json_response(error.body(""), status=error.status)

    return handle
