"""Accounts of API v2: creation as a recipient, retrieval with `include`, update, closing.

The row is the same as v1's, so an account made by either version is shown by both. A v1 account
takes a while until the endpoints of v2 know it (`v1_account_in_v2_seconds`).
"""

from __future__ import annotations

from typing import Any

from stripe_simulator import accounts, thin_events
from stripe_simulator.account_shape_v2 import account_v2, configurations
from stripe_simulator.errors import ApiError, parameter_missing, refused
from stripe_simulator.simulation import Call, Simulation, merged_metadata
from stripe_simulator.store import Row


def known(simulation: Simulation, id_: str, param: str) -> Row:
    """An account that v2 shows to us; closed ones are still shown."""
    account = simulation.store.get("account", id_)
    if account is None:
        raise ApiError(
            404, f"Account not found: {id_}", code="not_found", param=param, stored=False
        )
    if account["_deauthorized"] and not account.get("_deleted"):
        raise ApiError(
            403,
            "The provided key does not have permission to complete this request.",
            code="forbidden",
            stored=False,
        )
    wait = simulation.settings.v1_account_in_v2_seconds
    if account["_api"] == "v1" and simulation.now() < account["created"] + wait:
        raise ApiError(
            400,
            f"The account {id_} was created with Accounts v1 and is not yet compatible with "
            "Accounts v2. Try again later.",
            code="account_not_yet_compatible_with_v2",
            param=param,
            stored=False,
        )
    return account


def create(call: Call) -> dict[str, Any]:
    """POST /v2/core/accounts. Only the recipient configuration is simulated."""
    simulation, params = call.simulation, call.params
    identity, defaults = params.get("identity") or {}, params.get("defaults") or {}
    requested = _requested(params)
    if requested:
        # Stripe asks for these before it accepts the configuration.
        if "contact_email" not in params:
            raise parameter_missing("contact_email")
        if "country" not in identity:
            raise parameter_missing("identity[country]")
        if "responsibilities" not in defaults:
            raise parameter_missing("defaults[responsibilities]")
    responsibilities = defaults.get("responsibilities") or {}
    fees = responsibilities.get("fees_collector", "stripe")
    losses = responsibilities.get("losses_collector", "stripe")
    dashboard = params.get("dashboard", "none" if losses == "application" else "full")
    if dashboard == "express" and (fees, losses) != ("application", "application"):
        raise refused(
            "If `dashboard` is `express`, `fees_collector` must be `application` and "
            "`losses_collector` must be `application`.",
            code="account_controller_express_dash_without_application_losses_or_fees",
        )
    account = accounts.make(
        simulation,
        {
            **_as_v1(params),
            "controller": {
                "fees": {"payer": "account" if fees == "stripe" else fees},
                "losses": {"payments": losses},
                "requirement_collection": "application" if dashboard == "none" else "stripe",
                "stripe_dashboard": {"type": dashboard},
            },
            "capabilities": requested,
        },
        "v2",
    )
    return account_v2(account, call.get("include", []))


def _requested(params: dict[str, Any]) -> dict[str, Any]:
    """The capabilities that a request asks for, as v1 would have them."""
    recipient = (params.get("configuration") or {}).get("recipient") or {}
    balance = (recipient.get("capabilities") or {}).get("stripe_balance") or {}
    transfers = balance.get("stripe_transfers")
    return {} if transfers is None else {"transfers": transfers}


def _as_v1(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters that v1 has by another name."""
    identity, defaults = params.get("identity") or {}, params.get("defaults") or {}
    profile = defaults.get("profile") or {}
    named: dict[str, Any] = {
        "business_type": identity.get("entity_type"),
        "country": identity.get("country"),
        "default_currency": defaults.get("currency"),
        "email": params.get("contact_email"),
        "metadata": params.get("metadata"),
    }
    given = {name: value for name, value in named.items() if value is not None}
    names = {"name": "doing_business_as", "url": "business_url"}
    names["product_description"] = "product_description"
    given["business_profile"] = {
        v1: profile[v2] for v1, v2 in names.items() if profile.get(v2) is not None
    }
    person = identity.get("individual") or {}
    if person:
        given["individual"] = {
            v1: person[v2]
            for v1, v2 in (("first_name", "given_name"), ("last_name", "surname"),
                           ("email", "email"), ("phone", "phone"))
            if v2 in person
        }  # fmt: skip
    details = identity.get("business_details") or {}
    if details:
        given["company"] = {
            v1: details[v2]
            for v1, v2 in (("name", "registered_name"), ("phone", "phone"))
            if v2 in details
        }
    given["_display_name"] = params.get("display_name")
    return given


def retrieve(call: Call) -> dict[str, Any]:
    """GET /v2/core/accounts/:id"""
    account = known(call.simulation, call.path["account"], "id")
    return account_v2(account, call.get("include", []))


def update(call: Call) -> dict[str, Any]:
    """POST /v2/core/accounts/:id"""
    simulation, params = call.simulation, call.params
    account = known(simulation, call.path["account"], "id")
    _check_open(account)
    identity = params.get("identity") or {}
    if "country" in identity and identity["country"].upper() != account["country"]:
        raise refused("The country of an account cannot be changed.", param="identity[country]")
    given = _as_v1(params)
    changes: dict[str, Any] = {
        name: given[name]
        for name in ("business_type", "default_currency", "email")
        if name in given
    }
    changes["business_profile"] = {**account["business_profile"], **given["business_profile"]}
    if "metadata" in params:
        changes["metadata"] = merged_metadata(account["metadata"], params["metadata"])
    if "display_name" in params:
        changes["_display_name"] = params["display_name"]
    if _requested(params):
        changes.update(accounts.requested_changes(simulation, account, _requested(params)))
    changes.update(accounts.person_and_company(simulation, account, given))
    account = accounts.change(simulation, account, changes)
    if accounts.sends(simulation, account, "thin"):
        thin_events.emit(simulation, "v2.core.account.updated", account["id"])
    return account_v2(account, call.get("include", []))


def close(call: Call) -> dict[str, Any]:
    """POST /v2/core/accounts/:id/close: every configuration must be named."""
    simulation = call.simulation
    account = known(simulation, call.path["account"], "id")
    _check_open(account)
    named = call.get("applied_configurations") or []
    if sorted(named) != sorted(configurations(account)):
        raise refused(
            "All configurations of the account must be passed in `applied_configurations`.",
            param="applied_configurations",
        )
    return account_v2(accounts.close(simulation, account), [])


def _check_open(account: Row) -> None:
    if account.get("_deleted"):
        raise refused(f"The account {account['id']} is closed.", code="account_closed")


def is_listed(call: Call, account: Row) -> bool:
    """Whether GET /v2/core/accounts shows an account; closed ones only if they are asked for."""
    closed = bool(account.get("_deleted"))
    if account["_deauthorized"] and not closed:
        return False
    wait = call.simulation.settings.v1_account_in_v2_seconds
    if account["_api"] == "v1" and call.simulation.now() < account["created"] + wait:
        return False
    wanted = set(call.get("applied_configurations") or [])
    return closed is call.get("closed", False) and wanted <= set(configurations(account))


def shown_in_list(_call: Call, account: Row) -> dict[str, Any]:
    return account_v2(account, [])
