"""Every endpoint of the API, as a table: method, path, parameters, what answers.

A path segment in braces is a variable. `who` says which requests may come: `platform` refuses a
Stripe-Account header, `any` takes one, and `publishable` also takes a publishable key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from stripe_simulator import (
    account_links,
    accounts,
    application_fees,
    balance,
    charges,
    dispute_schemas,
    disputes,
    early_fraud_warnings,
    own_account,
    payment_intents,
    payment_methods,
    payouts,
    refunds,
    schemas,
    transfers,
)
from stripe_simulator.errors import no_such, not_simulated
from stripe_simulator.forms import Fields
from stripe_simulator.rendering import listed, plain, public_intent, render, render_list
from stripe_simulator.simulation import Call, Simulation
from stripe_simulator.store import Row

Answer = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    method: str
    path: str
    schema: Fields
    answer: Callable[[Call], Answer]
    who: str = "platform"


@dataclasses.dataclass(frozen=True)
class Page:
    """One page of a list, by kind and by the filters that its parameters name."""

    kind: str
    noun: str
    filters: tuple[str, ...] = ()
    # A filter from the path: (the row's field, the path's variable, the kind that must exist).
    within: tuple[str, str, str] | None = None
    scoped: bool = True
    keep: Callable[[Call, Row], bool] | None = None

    def __call__(self, call: Call) -> Answer:
        simulation = call.simulation
        where: dict[str, Any] = {"_account": call.account} if self.scoped else {}
        if self.within is not None:
            field, variable, owner = self.within
            where[field] = call.object(owner, variable)["id"]
        for name in self.filters:
            if call.params.get(name) is not None:
                where[name] = call.params[name]
        rows, has_more = self._page(call, where)
        url = call.path["*"]
        return render_list(simulation, rows, url, has_more, call.get("expand") or [])

    def _page(self, call: Call, where: dict[str, Any]) -> tuple[list[Row], bool]:
        store = call.simulation.store
        limit = call.get("limit", 10)
        backwards = "ending_before" in call.params
        cursors = {}
        for name in ("starting_after", "ending_before"):
            if name in call.params:
                row = store.get(self.kind, call.params[name])
                if row is None:
                    raise no_such(self.noun, call.params[name], name)
                cursors[name] = row["_sequence"]
        found: list[Row] = []
        bounds = call.get("created") or {}
        rows = store.select(
            self.kind,
            where,
            before=cursors.get("starting_after"),
            after=cursors.get("ending_before"),
            oldest_first=backwards,
        )
        for row in rows:
            if not backwards and row["created"] < bounds.get("gte", bounds.get("gt", 0)):
                # The clock never runs backwards: all that follow are older still.
                break
            if not _within(row["created"], bounds) or (self.keep and not self.keep(call, row)):
                continue
            if len(found) == limit:
                return (found[::-1] if backwards else found), True
            found.append(row)
        return (found[::-1] if backwards else found), False


def _within(created: int, bounds: dict[str, int]) -> bool:
    return (
        created > bounds.get("gt", -1)
        and created >= bounds.get("gte", 0)
        and created < bounds.get("lt", created + 1)
        and created <= bounds.get("lte", created)
    )


def one(handler: Callable[[Call], Row]) -> Callable[[Call], Answer]:
    """An endpoint that answers with one object."""

    def answer(call: Call) -> Answer:
        shown = render(call.simulation, handler(call), call.get("expand") or [])
        if call.publishable and shown.get("object") == "payment_intent":
            return public_intent(shown)
        return shown

    return answer


def every(handler: Callable[[Call], list[Row]]) -> Callable[[Call], Answer]:
    """A short list that has no pages."""

    def answer(call: Call) -> Answer:
        return listed([plain(call.simulation, row) for row in handler(call)], call.path["*"])

    return answer


def _wanted_event(call: Call, event: Row) -> bool:
    types = call.get("types")
    if types is not None and not any(_type_matches(event["type"], name) for name in types):
        return False
    wanted = call.get("type")
    if wanted is not None and not _type_matches(event["type"], wanted):
        return False
    success = call.get("delivery_success")
    return success is None or event["_delivered"] == success


def _type_matches(type_: str, wanted: str) -> bool:
    """`transfer.*` matches every type of that beginning."""
    if wanted.endswith(".*"):
        return type_.startswith(wanted[:-1])
    return type_ == wanted


def _wanted_fee(call: Call, fee: Row) -> bool:
    charge = call.get("charge")
    return charge is None or application_fees.matches_charge(call.simulation, fee, charge)


def _search(call: Call) -> Answer:
    """Not an object of the name "search", for which the next endpoint would take it."""
    raise not_simulated(f"{call.path['*']} is not simulated; list the objects instead.")


def _object(kind: str, variable: str, noun: str) -> Callable[[Call], Row]:
    return lambda call: call.object(kind, variable, noun)


S = schemas
FEE_PATH = "/v1/application_fees/{fee}/refunds"
_PAYMENT_METHODS_PATH = "/v1/payment_method_configurations"
REVERSAL_PATH = "/v1/transfers/{transfer}/reversals"
ENDPOINTS: tuple[Endpoint, ...] = (
    # Accounts
    Endpoint("POST", "/v1/accounts", S.ACCOUNT_CREATE, one(accounts.create)),
    Endpoint(
        "GET",
        "/v1/accounts",
        S.CREATED_LIST,
        Page("account", "account", scoped=False, keep=accounts.is_listed),
    ),
    Endpoint("GET", "/v1/account", S.EXPAND, one(accounts.retrieve_own), "any"),
    Endpoint("GET", "/v1/accounts/{account}", S.EXPAND, one(accounts.retrieve), "any"),
    Endpoint("POST", "/v1/accounts/{account}", S.ACCOUNT_COMMON, one(accounts.update)),
    Endpoint("DELETE", "/v1/accounts/{account}", {}, one(accounts.delete)),
    Endpoint(
        "GET", "/v1/accounts/{account}/capabilities", S.EXPAND, every(accounts.list_capabilities)
    ),
    Endpoint(
        "GET",
        "/v1/accounts/{account}/capabilities/{capability}",
        S.EXPAND,
        one(accounts.retrieve_capability),
    ),
    Endpoint(
        "POST",
        "/v1/accounts/{account}/capabilities/{capability}",
        S.CAPABILITY_UPDATE,
        one(accounts.update_capability),
    ),
    Endpoint(
        "POST",
        "/v1/accounts/{account}/login_links",
        S.EXPAND,
        one(account_links.create_login_link),
    ),
    Endpoint("POST", "/v1/account_links", S.ACCOUNT_LINK_CREATE, one(account_links.create)),
    # Payments
    Endpoint(
        "POST",
        "/v1/payment_methods",
        S.PAYMENT_METHOD_CREATE,
        one(payment_methods.create),
        "publishable",
    ),
    Endpoint(
        "GET", "/v1/payment_methods/{payment_method}", S.EXPAND, one(payment_methods.retrieve)
    ),
    Endpoint("POST", "/v1/payment_intents", S.INTENT_CREATE, one(payment_intents.create)),
    Endpoint("GET", "/v1/payment_intents", S.INTENT_LIST, Page("payment_intent", "payment_intent")),
    Endpoint("GET", "/v1/payment_intents/search", S.SEARCH, _search),
    Endpoint(
        "GET",
        "/v1/payment_intents/{intent}",
        S.INTENT_RETRIEVE,
        one(payment_intents.retrieve),
        "publishable",
    ),
    Endpoint("POST", "/v1/payment_intents/{intent}", S.INTENT_UPDATE, one(payment_intents.update)),
    Endpoint(
        "POST",
        "/v1/payment_intents/{intent}/confirm",
        S.INTENT_CONFIRM,
        one(payment_intents.confirm),
        "publishable",
    ),
    Endpoint(
        "POST",
        "/v1/payment_intents/{intent}/capture",
        S.INTENT_CAPTURE,
        one(payment_intents.capture),
    ),
    Endpoint(
        "POST", "/v1/payment_intents/{intent}/cancel", S.INTENT_CANCEL, one(payment_intents.cancel)
    ),
    Endpoint(
        "GET",
        "/v1/charges",
        S.CHARGE_LIST,
        Page("charge", "charge", ("payment_intent", "transfer_group")),
        "any",
    ),
    Endpoint("GET", "/v1/charges/search", S.SEARCH, _search),
    Endpoint("GET", "/v1/charges/{charge}", S.EXPAND, one(charges.retrieve), "any"),
    Endpoint("POST", "/v1/charges/{charge}", S.CHARGE_UPDATE, one(charges.update)),
    Endpoint(
        "GET",
        "/v1/charges/{charge}/refunds",
        S.PAGING,
        Page("refund", "refund", within=("charge", "charge", "charge")),
        "any",
    ),
    # Refunds
    Endpoint("POST", "/v1/refunds", S.REFUND_CREATE, one(refunds.create)),
    Endpoint(
        "GET",
        "/v1/refunds",
        S.REFUND_LIST,
        Page("refund", "refund", ("charge", "payment_intent")),
        "any",
    ),
    Endpoint("GET", "/v1/refunds/{refund}", S.EXPAND, one(refunds.retrieve), "any"),
    Endpoint("POST", "/v1/refunds/{refund}", S.METADATA_UPDATE, one(refunds.update)),
    Endpoint("POST", "/v1/refunds/{refund}/cancel", S.EXPAND, one(refunds.cancel)),
    # Disputes
    Endpoint(
        "GET",
        "/v1/disputes",
        dispute_schemas.OF_A_CHARGE_LIST,
        Page("dispute", "dispute", ("charge", "payment_intent")),
    ),
    Endpoint("GET", "/v1/disputes/{dispute}", S.EXPAND, one(disputes.retrieve)),
    Endpoint(
        "POST", "/v1/disputes/{dispute}", dispute_schemas.DISPUTE_UPDATE, one(disputes.update)
    ),
    Endpoint("POST", "/v1/disputes/{dispute}/close", S.EXPAND, one(disputes.close)),
    Endpoint(
        "GET",
        "/v1/radar/early_fraud_warnings",
        dispute_schemas.OF_A_CHARGE_LIST,
        Page(early_fraud_warnings.KIND, "early fraud warning", ("charge", "payment_intent")),
    ),
    Endpoint(
        "GET",
        "/v1/radar/early_fraud_warnings/{warning}",
        S.EXPAND,
        one(early_fraud_warnings.retrieve),
    ),
    # Transfers
    Endpoint("POST", "/v1/transfers", S.TRANSFER_CREATE, one(transfers.create)),
    Endpoint(
        "GET",
        "/v1/transfers",
        S.TRANSFER_LIST,
        Page("transfer", "transfer", ("destination", "transfer_group")),
    ),
    Endpoint("GET", "/v1/transfers/{transfer}", S.EXPAND, one(transfers.retrieve)),
    Endpoint("POST", "/v1/transfers/{transfer}", S.TRANSFER_UPDATE, one(transfers.update)),
    Endpoint("POST", REVERSAL_PATH, S.REVERSAL_CREATE, one(transfers.create_reversal)),
    Endpoint(
        "GET",
        REVERSAL_PATH,
        S.PAGING,
        Page("transfer_reversal", "transfer reversal", within=("transfer", "transfer", "transfer")),
    ),
    Endpoint("GET", REVERSAL_PATH + "/{id}", S.EXPAND, one(transfers.retrieve_reversal)),
    Endpoint("POST", REVERSAL_PATH + "/{id}", S.METADATA_UPDATE, one(transfers.update_reversal)),
    # Application fees
    Endpoint(
        "GET",
        "/v1/application_fees",
        S.FEE_LIST,
        Page("application_fee", "application fee", keep=_wanted_fee),
    ),
    Endpoint("GET", "/v1/application_fees/{fee}", S.EXPAND, one(application_fees.retrieve)),
    Endpoint("POST", FEE_PATH, S.FEE_REFUND_CREATE, one(application_fees.create_refund)),
    Endpoint(
        "GET",
        FEE_PATH,
        S.PAGING,
        Page("fee_refund", "fee refund", within=("fee", "fee", "application_fee")),
    ),
    Endpoint("GET", FEE_PATH + "/{id}", S.EXPAND, one(application_fees.retrieve_refund)),
    Endpoint("POST", FEE_PATH + "/{id}", S.METADATA_UPDATE, one(application_fees.update_refund)),
    # Balance
    Endpoint("GET", "/v1/balance", S.EXPAND, one(balance.retrieve_balance), "any"),
    Endpoint(
        "GET",
        "/v1/balance_transactions",
        S.BALANCE_TRANSACTION_LIST,
        Page("balance_transaction", "balance transaction", ("currency", "source", "type")),
        "any",
    ),
    Endpoint(
        "GET",
        "/v1/balance_transactions/{id}",
        S.EXPAND,
        one(_object("balance_transaction", "id", "balance transaction")),
        "any",
    ),
    # Payouts
    Endpoint("POST", "/v1/payouts", S.PAYOUT_CREATE, one(payouts.create), "any"),
    Endpoint(
        "GET",
        "/v1/payouts",
        S.PAYOUT_LIST,
        Page("payout", "payout", ("status", "destination")),
        "any",
    ),
    Endpoint(
        "GET", "/v1/payouts/{payout}", S.EXPAND, one(_object("payout", "payout", "payout")), "any"
    ),
    Endpoint("POST", "/v1/payouts/{payout}/cancel", S.EXPAND, one(payouts.cancel), "any"),
    # Events
    Endpoint("GET", "/v1/webhook_endpoints", S.PAGING, every(own_account.webhook_endpoints)),
    Endpoint("GET", _PAYMENT_METHODS_PATH, S.PAGING, every(own_account.payment_methods)),
    Endpoint("GET", "/v1/events", S.EVENT_LIST, Page("event", "event", keep=_wanted_event), "any"),
    Endpoint("GET", "/v1/events/{id}", S.EXPAND, one(_object("event", "id", "event")), "any"),
)


class Router:
    """Finds the endpoint of a path by its segments."""

    def __init__(self, endpoints: Iterable[Endpoint] = ENDPOINTS) -> None:
        self._by_shape: dict[tuple[str, int], list[tuple[list[str], Endpoint]]] = {}
        for endpoint in endpoints:
            segments = endpoint.path.strip("/").split("/")
            self._by_shape.setdefault((endpoint.method, len(segments)), []).append(
                (segments, endpoint)
            )

    def find(self, method: str, path: str) -> tuple[Endpoint, dict[str, str]] | None:
        given = path.strip("/").split("/")
        for segments, endpoint in self._by_shape.get((method, len(given)), []):
            variables = dict(_variables(segments, given))
            if "" not in variables:
                return endpoint, {**variables, "*": "/" + "/".join(given)}
        return None


def _variables(pattern: list[str], given: list[str]) -> Iterator[tuple[str, str]]:
    """The path's variables; an empty name marks a segment that does not match."""
    for expected, segment in zip(pattern, given, strict=True):
        if expected.startswith("{"):
            yield expected[1:-1], segment
        elif expected != segment:
            yield "", segment


def register_all(simulation: Simulation) -> None:
    """Give the simulation what acts when the clock moves, and its balances."""
    simulation.balances = balance.Balances(simulation)
    payment_intents.register(simulation)
    refunds.register(simulation)
    disputes.register(simulation)
    payouts.register(simulation)
