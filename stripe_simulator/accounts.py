"""Connected accounts: creation, capabilities, requirements, what onboarding changes.

An Express account starts with everything due and nothing active. What the account may do follows
from one private field, `_stage` (fresh, pending, complete, restricted), so that every way of
changing it (the hosted page, the control API) leaves the same picture.
"""

from __future__ import annotations

from typing import Any

from stripe_simulator import account_shape as shape
from stripe_simulator import own_account
from stripe_simulator.currencies import COUNTRY_CURRENCIES
from stripe_simulator.errors import invalid_parameter, no_access, no_such, refused
from stripe_simulator.events import emit
from stripe_simulator.simulation import Call, Simulation, merged_metadata
from stripe_simulator.store import Row


def is_deauthorized(simulation: Simulation, id_: str) -> bool:
    account = simulation.store.get("account", id_)
    return account is None or account["_deauthorized"]


def check_destination(simulation: Simulation, id_: str, param: str) -> None:
    """Money can only be sent to an account whose `transfers` capability is active."""
    account = simulation.store.get("account", id_)
    if account is None or account["_deauthorized"]:
        raise no_such("destination", id_, param)
    if account["capabilities"].get("transfers") != "active":
        raise refused(
            "Your destination account needs to have at least one of the following capabilities "
            "enabled: transfers, crypto_transfers, legacy_payments",
            code="insufficient_capabilities_for_transfer",
            param=param,
        )


def reachable(simulation: Simulation, id_: str) -> Row:
    """An account that our key may act for; else 403, the same for unknown and for revoked."""
    account = simulation.store.get("account", id_)
    if account is None or account["_deauthorized"]:
        raise no_access(simulation.config.secret_key, id_)
    return account


def create(call: Call) -> Row:
    """POST /v1/accounts, with `type` or with `controller`."""
    simulation = call.simulation
    params = call.params
    if "type" in params and "controller" in params:
        raise refused("You may only specify one of these parameters: type, controller.")
    country = params.get("country", simulation.config.country).upper()
    if country not in COUNTRY_CURRENCIES:
        raise invalid_parameter(
            "country",
            f"Country '{country}' is unknown. Try using a 2-character alphanumeric country code "
            "instead, such as 'US', 'EG', or 'GB'.",
            "country_unsupported",
        )
    requested = _requested_capabilities(params.get("capabilities") or {}, {})
    type_, controller = shape.controller(params.get("type"), params.get("controller"))
    id_ = simulation.new_id("acct_1", 15)
    now = simulation.now()
    account: Row = {
        "id": id_,
        "object": "account",
        "business_profile": shape.business_profile(params.get("business_profile")),
        "business_type": params.get("business_type"),
        "capabilities": {},
        "charges_enabled": False,
        "controller": controller,
        "country": country,
        "created": now,
        "default_currency": params.get("default_currency", COUNTRY_CURRENCIES[country]),
        "details_submitted": False,
        "email": params.get("email"),
        "external_accounts": {
            "object": "list",
            "data": [],
            "has_more": False,
            "url": f"/v1/accounts/{id_}/external_accounts",
        },
        "future_requirements": shape.requirements(),
        "metadata": merged_metadata({}, params.get("metadata") or {}),
        "payouts_enabled": False,
        "requirements": shape.requirements(),
        "settings": shape.settings(
            params.get("settings"),
            shape.settings(
                {"payouts": {"schedule": {"interval": simulation.settings.payout_interval}}}
            ),
        ),
        "tos_acceptance": {**shape.NO_TERMS, **params.get("tos_acceptance", {})},
        "type": type_,
        "_account": id_,
        "_requested": requested,
        "_requested_at": dict.fromkeys(requested, now),
        "_stage": "fresh",
        "_restriction": None,
        "_deauthorized": False,
        "_bank_failure": None,
    }
    account.update(_person_and_company(simulation, account, params))
    account.update(shape.standing(account))
    account = simulation.store.insert("account", account)
    simulation.effect("account_created", id_, metadata=account["metadata"])
    return account


def _requested_capabilities(given: dict[str, Any], current: dict[str, bool]) -> dict[str, bool]:
    requested = {**current}
    for name, wish in given.items():
        if wish is not None and "requested" in wish:
            requested[name] = wish["requested"]
    if requested.get("card_payments") and not requested.get("transfers"):
        raise refused(
            "You cannot request the card_payments capability without the transfers capability.",
            param="capabilities",
        )
    return requested


def _person_and_company(
    simulation: Simulation, account: Row, params: dict[str, Any]
) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if params.get("individual") is not None:
        person = account.get("individual") or shape.person(
            simulation.new_id("person_1", 14), account["id"], simulation.now()
        )
        changes["individual"] = shape.described_person(person, params["individual"])
    if params.get("company") is not None:
        company = account.get("company") or shape.company()
        changes["company"] = shape.described_company(company, params["company"])
    return changes


def retrieve(call: Call) -> Row:
    return reachable(call.simulation, call.path["account"])


def retrieve_own(call: Call) -> Row:
    """GET /v1/account: the platform itself, or the account in Stripe-Account."""
    if call.account != call.simulation.platform:
        return reachable(call.simulation, call.account)
    simulation = call.simulation
    return own_account.account(simulation.config, simulation.settings.platform_payout_interval)


def update(call: Call) -> Row:
    """POST /v1/accounts/:id."""
    simulation = call.simulation
    params = call.params
    account = reachable(simulation, call.path["account"])
    changes: dict[str, Any] = {
        name: params[name]
        for name in ("business_type", "default_currency", "email")
        if name in params
    }
    if "metadata" in params:
        changes["metadata"] = merged_metadata(account["metadata"], params["metadata"])
    if "business_profile" in params:
        changes["business_profile"] = {**account["business_profile"], **params["business_profile"]}
    if "tos_acceptance" in params:
        changes["tos_acceptance"] = {**account["tos_acceptance"], **params["tos_acceptance"]}
    if "settings" in params:
        changes["settings"] = shape.settings(params["settings"], account["settings"])
    if "capabilities" in params:
        requested = _requested_capabilities(params["capabilities"], account["_requested"])
        changes["_requested"] = requested
        changes["_requested_at"] = {
            name: account["_requested_at"].get(name, simulation.now()) for name in requested
        }
    changes.update(_person_and_company(simulation, account, params))
    return change(simulation, account, changes)


def change(simulation: Simulation, account: Row, changes: dict[str, Any]) -> Row:
    """Change an account, derive its standing anew, and report what differs."""
    before = account
    account = simulation.store.change("account", account["id"], **changes)
    account = simulation.store.change("account", account["id"], **shape.standing(account))
    previous = {
        name: before.get(name)
        for name, value in account.items()
        if name[0] != "_" and before.get(name) != value
    }
    for name in sorted(account["capabilities"]):
        if before["capabilities"].get(name) != account["capabilities"][name]:
            emit(
                simulation,
                "capability.updated",
                {**shape.capability(account, name), "_account": account["id"]},
                {"status": before["capabilities"].get(name, "unrequested")},
            )
    if previous:
        emit(simulation, "account.updated", account, previous)
    return account


def delete(call: Call) -> Row:
    """DELETE /v1/accounts/:id; an account that still holds money cannot be deleted."""
    simulation = call.simulation
    account = reachable(simulation, call.path["account"])
    id_ = account["id"]
    if any(simulation.balances.total(id_, name) for name in simulation.balances.currencies(id_)):
        raise refused(
            f"You cannot delete the account {id_} because its balance is not zero.",
            code="account_balance_not_zero",
        )
    simulation.store.change("account", id_, _deauthorized=True, _deleted=True)
    simulation.effect("account_deleted", id_, metadata=account["metadata"])
    return {"id": id_, "object": "account", "deleted": True}


def complete_onboarding(simulation: Simulation, account: Row, outcome: str) -> Row:
    """What the hosted form leaves: `complete`, `pending` (verification runs) or nothing."""
    if outcome == "unfinished":
        return account
    changes: dict[str, Any] = {
        "_stage": outcome,
        "_restriction": None,
        "_announced": None,
        "details_submitted": True,
        "business_type": account["business_type"] or "individual",
        "tos_acceptance": {
            **account["tos_acceptance"],
            "date": simulation.now(),
            "ip": "127.0.0.1",
            "user_agent": "stripe_simulator",
        },
    }
    if not account["external_accounts"]["data"]:
        bank = shape.bank_account(simulation.new_id("ba_1"), account)
        changes["external_accounts"] = {**account["external_accounts"], "data": [bank]}
        emit(simulation, "account.external_account.created", {**bank, "_account": account["id"]})
    account = change(simulation, account, changes)
    simulation.effect("onboarding_submitted", account["id"], metadata=account["metadata"])
    return account


def restrict(simulation: Simulation, id_: str, restriction: dict[str, Any]) -> Row:
    """Stripe withdraws capabilities (control API): see `account_shape.standing`."""
    account = simulation.store.require("account", id_)
    account = change(simulation, account, {"_stage": "restricted", "_restriction": restriction})
    simulation.effect("account_restricted", id_, metadata=account["metadata"])
    return account


def restore(simulation: Simulation, id_: str) -> Row:
    """The restriction is over: back to where the account was when its form was submitted."""
    account = simulation.store.require("account", id_)
    stage = "complete" if account["details_submitted"] else "fresh"
    changes = {"_stage": stage, "_restriction": None, "_announced": None}
    account = change(simulation, account, changes)
    simulation.effect("account_restored", id_, metadata=account["metadata"])
    return account


def deauthorize(simulation: Simulation, id_: str) -> Row:
    """The account disconnects from the platform: one event, and 403 for every later call."""
    account = simulation.store.change("account", id_, _deauthorized=True)
    application = {
        "id": simulation.application,
        "object": "application",
        "name": "stripe_simulator platform",
        "_account": id_,
    }
    emit(simulation, "account.application.deauthorized", application)
    simulation.effect("account_deauthorized", id_, metadata=account["metadata"])
    return account


def reauthorize(simulation: Simulation, id_: str) -> Row:
    """Undo a deauthorization (control API); Stripe would need a new connection."""
    return simulation.store.change("account", id_, _deauthorized=False)


def list_capabilities(call: Call) -> list[Row]:
    account = reachable(call.simulation, call.path["account"])
    return [shape.capability(account, name) for name in sorted(account["_requested"])]


def retrieve_capability(call: Call) -> Row:
    account = reachable(call.simulation, call.path["account"])
    name = call.path["capability"]
    if name not in shape.CAPABILITIES:
        raise no_such("capability", name, "capability", in_path=True)
    return shape.capability(account, name)


def update_capability(call: Call) -> Row:
    simulation = call.simulation
    account = reachable(simulation, call.path["account"])
    name = call.path["capability"]
    if name not in shape.CAPABILITIES:
        raise no_such("capability", name, "capability", in_path=True)
    if "requested" in call.params:
        given = {name: {"requested": call.params["requested"]}}
        requested = _requested_capabilities(given, account["_requested"])
        requested_at = {**account["_requested_at"], name: simulation.now()}
        changes = {"_requested": requested, "_requested_at": requested_at}
        account = change(simulation, account, changes)
    return shape.capability(account, name)
