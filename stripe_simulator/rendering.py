"""Objects as callers see them: private fields left out, sub-lists added, `expand[]` obeyed."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from stripe_simulator.config import API_VERSION
from stripe_simulator.errors import ApiError, invalid_parameter
from stripe_simulator.simulation import Simulation
from stripe_simulator.store import Row

# The kind of object that an id names, for fields that may name any of several.
PREFIXES = {
    "pi_": "payment_intent",
    "ch_": "charge",
    "py_": "charge",
    "re_": "refund",
    "pyr_": "refund",
    "tr_": "transfer",
    "trr_": "transfer_reversal",
    "fee_": "application_fee",
    "fr_": "fee_refund",
    "dp_": "dispute",
    "issfr_": "radar.early_fraud_warning",
    "prv_": "review",
    "txn_": "balance_transaction",
    "po_": "payout",
    "acct_": "account",
    "pm_": "payment_method",
}

# Fields that hold an id and can be expanded; `*` means that the id's prefix tells the kind.
LINKS: dict[str, frozenset[str]] = {
    "payment_intent": frozenset(
        "latest_charge payment_method transfer_data.destination on_behalf_of customer "
        "application review source".split()
    ),
    "charge": frozenset(
        "payment_intent balance_transaction application_fee transfer transfer_data.destination "
        "source_transfer on_behalf_of failure_balance_transaction customer application "
        "review".split()
    ),
    "refund": frozenset(
        "charge payment_intent balance_transaction failure_balance_transaction "
        "transfer_reversal source_transfer_reversal payment_method customer".split()
    ),
    "transfer": frozenset(
        "balance_transaction destination destination_payment source_transaction".split()
    ),
    "transfer_reversal": frozenset(
        "transfer balance_transaction destination_payment_refund source_refund".split()
    ),
    "application_fee": frozenset(
        "account charge balance_transaction originating_transaction application".split()
    ),
    "fee_refund": frozenset("fee balance_transaction".split()),
    "dispute": frozenset(("charge", "payment_intent")),
    "radar.early_fraud_warning": frozenset(("charge", "payment_intent")),
    "review": frozenset(("charge", "payment_intent")),
    "balance_transaction": frozenset(("source",)),
    "payout": frozenset(
        "balance_transaction failure_balance_transaction original_payout reversed_by".split()
    ),
    "capability": frozenset(("account",)),
    "payment_method": frozenset(("customer",)),
}


@dataclasses.dataclass(frozen=True)
class SubList:
    """A list inside an object; some are always there, others only when expanded."""

    kind: str
    field: str
    url: str
    always: bool


SUB_LISTS: dict[tuple[str, str], SubList] = {
    ("transfer", "reversals"): SubList(
        "transfer_reversal", "transfer", "/v1/transfers/{id}/reversals", True
    ),
    ("application_fee", "refunds"): SubList(
        "fee_refund", "fee", "/v1/application_fees/{id}/refunds", True
    ),
    # Left out unless expanded since API version 2022-11-15.
    ("charge", "refunds"): SubList("refund", "charge", "/v1/charges/{id}/refunds", False),
}

# Fields that are left out while they have no value, where others are null.
ABSENT: dict[str, frozenset[str]] = {
    "refund": frozenset(
        ("destination_details", "failure_balance_transaction", "failure_reason", "pending_reason")
    ),
}

# What a publishable key may see of an intent (from answers that Stripe.js gets).
PUBLIC_INTENT_FIELDS = frozenset(
    "id object amount amount_details automatic_payment_methods canceled_at cancellation_reason "
    "capture_method client_secret confirmation_method created currency description "
    "last_payment_error livemode next_action payment_method "
    "payment_method_configuration_details payment_method_types processing receipt_email "
    "setup_future_usage shipping source status".split()
)


def listed(rows: list[dict[str, Any]], url: str, has_more: bool = False) -> dict[str, Any]:
    return {"object": "list", "data": rows, "has_more": has_more, "url": url}


def plain(simulation: Simulation, row: Row) -> dict[str, Any]:
    """An object without expansions; this is also what an event's snapshot holds."""
    kind = row.get("object", "")
    absent = ABSENT.get(kind, frozenset())
    shown = {
        name: value
        for name, value in row.items()
        if name[0] != "_" and (value is not None or name not in absent)
    }
    if kind == "balance_transaction":
        settled = row["available_on"] <= simulation.now()
        shown["status"] = "available" if settled else "pending"
    if kind == "dispute":
        shown["balance_transactions"] = [
            plain(simulation, simulation.store.require("balance_transaction", line))
            for line in row["_lines"]
        ]
    for (owner, name), sub_list in SUB_LISTS.items():
        if owner == kind and sub_list.always:
            shown[name] = _sub_list(simulation, row, sub_list)
    if kind == "event":
        shown["pending_webhooks"] = row["_pending"]
    return shown


def _sub_list(simulation: Simulation, row: Row, sub_list: SubList) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for found in simulation.store.select(sub_list.kind, {sub_list.field: row["id"]}):
        if len(rows) == 10:
            return listed(rows, sub_list.url.format(id=row["id"]), has_more=True)
        rows.append(plain(simulation, found))
    return listed(rows, sub_list.url.format(id=row["id"]))


def render(simulation: Simulation, row: Row, expand: list[str]) -> dict[str, Any]:
    """An object with the fields named by `expand` replaced by the objects they name."""
    shown = plain(simulation, row)
    for index, path in enumerate(expand):
        _expand(simulation, shown, path.split("."), f"expand[{index}]", path)
    return shown


def render_list(
    simulation: Simulation, rows: list[Row], url: str, has_more: bool, expand: list[str]
) -> dict[str, Any]:
    shown = listed([plain(simulation, row) for row in rows], url, has_more)
    for index, path in enumerate(expand):
        steps = path.split(".")
        if steps[0] != "data":
            raise _not_expandable(path, f"expand[{index}]", f"data.{path}")
        for item in shown["data"]:
            _expand(simulation, item, steps[1:], f"expand[{index}]", path)
    return shown


def _not_expandable(path: str, param: str, suggestion: str | None = None) -> ApiError:
    message = f"This property cannot be expanded ({path})."
    if suggestion:
        message += f" You may want to try expanding '{suggestion}' instead."
    return invalid_parameter(param, message)


def _expand(
    simulation: Simulation, shown: dict[str, Any], steps: list[str], param: str, path: str
) -> None:
    """Follow one path into `shown`, replacing ids by objects as it goes."""
    if not steps:
        return
    if path.removeprefix("data.").count(".") > 3:
        raise invalid_parameter(
            param, f"You cannot expand more than 4 levels of a property ({path})."
        )
    kind = shown.get("object", "")
    name, rest = steps[0], steps[1:]
    sub_list = SUB_LISTS.get((kind, name))
    if sub_list is not None:
        if name not in shown:
            shown[name] = _sub_list(simulation, shown, sub_list)
        for item in shown[name]["data"] if rest[:1] == ["data"] else []:
            _expand(simulation, item, rest[1:], param, path)
        return
    links = LINKS.get(kind, frozenset())
    holder: dict[str, Any] | None = shown
    if name not in links and rest and f"{name}.{rest[0]}" in links:
        holder = _own_copy(shown, name)
        name, rest = rest[0], rest[1:]
    elif name not in links:
        raise _not_expandable(path, param)
    found = _open_link(simulation, holder, name)
    if found is not None:
        _expand(simulation, found, rest, param, path)


def _own_copy(shown: dict[str, Any], name: str) -> dict[str, Any] | None:
    """A hash within an object, ready to be changed: the row's own is shared with the store."""
    inner = shown.get(name)
    if inner is not None:
        inner = shown[name] = dict(inner)
    return inner


def _open_link(
    simulation: Simulation, holder: dict[str, Any] | None, name: str
) -> dict[str, Any] | None:
    """Put the object in the place of its id; None where there is nothing to open."""
    value = holder.get(name) if holder is not None else None
    if holder is None or value is None or isinstance(value, dict):
        return value
    row = _linked(simulation, value)
    if row is not None:
        holder[name] = plain(simulation, row)
        return cast("dict[str, Any]", holder[name])
    return None


def _linked(simulation: Simulation, id_: str) -> Row | None:
    for prefix, kind in PREFIXES.items():
        if id_.startswith(prefix):
            return simulation.store.get(kind, id_)
    return None


def public_intent(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown.items() if name in PUBLIC_INTENT_FIELDS}


def event_envelope(
    simulation: Simulation,
    id_: str,
    type_: str,
    shown: dict[str, Any],
    previous: dict[str, Any] | None,
) -> Row:
    data: dict[str, Any] = {"object": shown}
    if previous is not None:
        data["previous_attributes"] = previous
    return {
        "id": id_,
        "object": "event",
        "api_version": API_VERSION,
        "created": simulation.now(),
        "data": data,
        "livemode": False,
        "pending_webhooks": 0,
        "request": {
            "id": simulation.cause.request_id,
            "idempotency_key": simulation.cause.idempotency_key,
        },
        "type": type_,
    }
