"""The control API's part for what cardholders and their banks do after a payment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from stripe_simulator import currencies, disputes, early_fraud_warnings, refunds, reviews
from stripe_simulator.dispute_schemas import REASONS
from stripe_simulator.rendering import plain
from stripe_simulator.simulation import Simulation
from stripe_simulator.store import Row

Given = dict[str, Any]
Handler = Callable[[web.Request, Given], Awaitable[Any]]


def only(given: Given, *names: str) -> None:
    """Refuse what nobody would look at."""
    for name in given:
        if name not in names:
            raise ValueError(f"unknown {name}; there are {', '.join(names) or 'none'}")


class Cardholders:
    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [
            ("POST", "/charges/{id}/dispute", self.dispute),
            ("POST", "/charges/{id}/early_fraud_warning", self.warn),
            ("POST", "/charges/{id}/review", self.review),
            ("POST", "/reviews/{id}/approve", self.approve),
            ("POST", "/disputes/{id}/adjust", self.adjust),
            ("POST", "/disputes/{id}/{outcome}", self.decide),
            ("POST", "/refunds/{id}/fail", self.fail_refund),
            ("POST", "/refunds/{id}/cancel", self.cancel_refund),
        ]

    def _charge(self, request: web.Request) -> Row:
        """A card payment; the connected account's side of a transfer is none."""
        charge = self.simulation.store.get("charge", request.match_info["id"])
        if charge is None or charge["status"] != "succeeded" or charge["payment_intent"] is None:
            raise ValueError("there is no such charge")
        return charge

    async def dispute(self, request: web.Request, given: Given) -> Given:
        """{"amount"?: n, "reason"?: "fraudulent", "inquiry"?: false}: all that was captured."""
        only(given, "amount", "reason", "inquiry")
        simulation = self.simulation
        charge = self._charge(request)
        if not charge["captured"]:
            raise ValueError("a charge that was never captured cannot be disputed")
        amount = int(given["amount"] if "amount" in given else charge["amount_captured"])
        reason = given.get("reason", "fraudulent")
        inquiry = given.get("inquiry", False)
        if not 1 <= amount <= charge["amount_captured"]:
            raise ValueError(f"amount must be from 1 to {charge['amount_captured']}")
        currencies.check_step(amount, charge["currency"])
        if reason not in REASONS:
            raise ValueError(f"reason must be one of {', '.join(REASONS)}")
        if not isinstance(inquiry, bool):
            raise ValueError("inquiry must be true or false")
        if disputes.is_open(simulation, charge["id"]):
            raise ValueError("the charge has an open dispute already")
        with simulation.acting():
            opened = disputes.begin(simulation, charge, amount, reason, inquiry=inquiry)
            return plain(simulation, opened)

    async def decide(self, request: web.Request, given: Given) -> Given:
        """What the bank decides, whether or not there is evidence."""
        only(given)
        simulation = self.simulation
        outcome = request.match_info["outcome"]
        if outcome not in disputes.OUTCOMES:
            raise ValueError(f"unknown {outcome}; there are {', '.join(disputes.OUTCOMES)}")
        dispute = self._dispute(request)
        with simulation.acting():
            return plain(simulation, disputes.OUTCOMES[outcome](simulation, dispute))

    def _dispute(self, request: web.Request) -> Row:
        dispute = self.simulation.store.get("dispute", request.match_info["id"])
        if dispute is None:
            raise ValueError("there is no such dispute")
        return dispute

    async def adjust(self, request: web.Request, given: Given) -> Given:
        """{"amount": ±n, "currency"?: "usd"}: a further line of the dispute; negative takes."""
        only(given, "amount", "currency")
        simulation = self.simulation
        dispute = self._dispute(request)
        amount, currency = given["amount"], given.get("currency")
        if type(amount) is not int or amount == 0:
            raise ValueError("amount must be an integer other than 0")
        if currency is not None and currency not in simulation.config.settlement_currencies:
            known = ", ".join(simulation.config.settlement_currencies)
            raise ValueError(f"currency must be one of {known}")
        with simulation.acting():
            return plain(simulation, disputes.adjust(simulation, dispute, amount, currency))

    async def warn(self, request: web.Request, given: Given) -> Given:
        """{"fraud_type"?: "unauthorized_use_of_card"}."""
        only(given, "fraud_type")
        simulation = self.simulation
        charge = self._charge(request)
        types = early_fraud_warnings.FRAUD_TYPES
        fraud_type = given.get("fraud_type", "unauthorized_use_of_card")
        if fraud_type not in types:
            raise ValueError(f"fraud_type must be one of {', '.join(types)}")
        with simulation.acting():
            return plain(simulation, early_fraud_warnings.warn(simulation, charge, fraud_type))

    async def review(self, request: web.Request, given: Given) -> Given:
        """{"reason"?: "rule"}: Radar, or a person, wants the charge to be looked at."""
        only(given, "reason")
        simulation = self.simulation
        charge = self._charge(request)
        reason = given.get("reason", "rule")
        if reason not in reviews.OPENED_REASONS:
            raise ValueError(f"reason must be one of {', '.join(reviews.OPENED_REASONS)}")
        if charge["review"] is not None:
            raise ValueError("the charge has been put into review already")
        with simulation.acting():
            return plain(simulation, reviews.begin(simulation, charge, reason))

    async def approve(self, request: web.Request, given: Given) -> Given:
        only(given)
        simulation = self.simulation
        review = simulation.store.get(reviews.KIND, request.match_info["id"])
        if review is None or not review["open"]:
            raise ValueError("there is no such open review")
        with simulation.acting():
            return plain(simulation, reviews.close(simulation, review, "approved"))

    def _refund(self, request: web.Request) -> Row:
        """A refund of a charge that is not over yet; what releases a hold took no money."""
        store = self.simulation.store
        refund = store.get("refund", request.match_info["id"])
        if refund is None or refund["status"] not in ("pending", "succeeded"):
            raise ValueError("there is no such refund that could fail or be canceled")
        if (
            refund["payment_intent"] is None
            or not store.require("charge", refund["charge"])["captured"]
        ):
            raise ValueError("only the refund of a captured charge can fail or be canceled")
        return refund

    async def fail_refund(self, request: web.Request, given: Given) -> Given:
        """{"reason"?: "..."}: the bank gives a refund back now."""
        only(given, "reason")
        simulation = self.simulation
        refund = self._refund(request)
        with simulation.acting():
            reason = given.get("reason", "expired_or_canceled_card")
            return plain(simulation, refunds.fail(simulation, refund, reason))

    async def cancel_refund(self, request: web.Request, given: Given) -> Given:
        """What a person can do in Stripe's dashboard and the API cannot."""
        only(given)
        simulation = self.simulation
        refund = self._refund(request)
        with simulation.acting():
            return plain(simulation, refunds.cancel_in_dashboard(simulation, refund))
