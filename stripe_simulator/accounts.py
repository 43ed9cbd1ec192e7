"""Connected accounts: creation by v1, capabilities, requirements, what onboarding changes.

An Express account starts with everything due and nothing active. What the account may do follows
from one private field, `_stage` (fresh, pending, complete, restricted), so that every way of
changing it (the hosted page, the control API) leaves the same picture.
"""

from __future__ import annotations

from typing import Any

from stripe_simulator import account_shape as shape
from stripe_simulator import own_account, thin_events
from stripe_simulator.account_shape_v2 import PAYOUTS, TRANSFERS, recipient_capability
from stripe_simulator.account_shape_v2 import asked as asked_v2
from stripe_simulator.currencies import COUNTRY_CURRENCIES
from stripe_simulator.errors import invalid_parameter, no_access, no_such, refused
from stripe_simulator.events import emit
from stripe_simulator.simulation import Call, Simulation, merged_metadata
from stripe_simulator.store import Row

# Stripe's own words to a platform whose settings do not support Accounts v1: no code, no param.
V1_NOT_SUPPORTED = (
    "Stripe no longer recommends Accounts v1 for new Connect integrations. Create connected "
    "accounts with POST /v2/core/accounts instead: https://docs.stripe.com/api/v2/core/accounts. "
    "Read more about Accounts v2: https://docs.stripe.com/connect/accounts-v2/account-creation. "
    "If your integration requires v1 account creation for a supported compatibility scenario, "
    "enable Accounts v1 support in the Dashboard: "
    "https://dashboard.stripe.com/settings/features/feat_accounts_v1_support."
)


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
    if not call.simulation.settings.accounts_v1_support:
        raise refused(V1_NOT_SUPPORTED)
    if "type" in call.params and "controller" in call.params:
        raise refused("You may only specify one of these parameters: type, controller.")
    return make(call.simulation, call.params, "v1")


def make(simulation: Simulation, params: dict[str, Any], api: str) -> Row:
    """A new account by v1's parameters; `api` is the version that creates it."""
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
        "_api": api,
        "_display_name": params.get("_display_name"),
    }
    account.update(person_and_company(simulation, account, params))
    account.update(shape.standing(account))
    account = simulation.store.insert("account", account)
    simulation.effect("account_created", id_, metadata=account["metadata"])
    if sends(simulation, account, "thin"):
        thin_events.emit(simulation, "v2.core.account.created", id_)
    return account


def sends(simulation: Simulation, account: Row, form: str) -> bool:
    """Whether Stripe tells of an account in this form, `thin` or `snapshot`."""
    mode = simulation.settings.account_event_form
    if mode == "by_api":
        return form == ("thin" if account["_api"] == "v2" else "snapshot")
    return mode in (form, "both")


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


def person_and_company(
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


def is_listed(_call: Call, account: Row) -> bool:
    """Our guess: the list of v1 shows its own accounts only. One of v2 is retrieved by its id."""
    return account["_api"] == "v1" and not account["_deauthorized"]


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
        changes.update(requested_changes(simulation, account, params["capabilities"]))
    changes.update(person_and_company(simulation, account, params))
    return change(simulation, account, changes)


def requested_changes(
    simulation: Simulation, account: Row, capabilities: dict[str, Any]
) -> dict[str, Any]:
    """What asking for capabilities changes."""
    requested = _requested_capabilities(capabilities, account["_requested"])
    since = account["_requested_at"]
    return {
        "_requested": requested,
        "_requested_at": {name: since.get(name, simulation.now()) for name in requested},
    }


def change(simulation: Simulation, account: Row, changes: dict[str, Any]) -> Row:
    """Change an account, derive its standing anew, and report what differs."""
    before = account
    account = simulation.store.change("account", account["id"], **changes)
    account = simulation.store.change("account", account["id"], **shape.standing(account))
    if sends(simulation, account, "snapshot"):
        _emit_snapshots(simulation, before, account)
    if sends(simulation, account, "thin"):
        _emit_thin(simulation, before, account)
    return account


def _emit_snapshots(simulation: Simulation, before: Row, account: Row) -> None:
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


def _emit_thin(simulation: Simulation, before: Row, account: Row) -> None:
    for name in (TRANSFERS, PAYOUTS):
        if recipient_capability(before, name) != recipient_capability(account, name):
            thin_events.emit(
                simulation,
                "v2.core.account[configuration.recipient].capability_status_updated",
                account["id"],
                data={"updated_capability": name},
            )
    for name in ("requirements", "future_requirements"):
        if asked_v2(before, name) != asked_v2(account, name):
            thin_events.emit(simulation, f"v2.core.account[{name}].updated", account["id"])


def delete(call: Call) -> Row:
    """DELETE /v1/accounts/:id"""
    account = reachable(call.simulation, call.path["account"])
    close(call.simulation, account)
    return {"id": account["id"], "object": "account", "deleted": True}


def close(simulation: Simulation, account: Row) -> Row:
    """End an account; one that still holds money cannot be closed."""
    id_ = account["id"]
    if any(simulation.balances.total(id_, name) for name in simulation.balances.currencies(id_)):
        raise refused(
            f"You cannot delete the account {id_} because its balance is not zero.",
            code="account_balance_not_zero",
        )
    account = simulation.store.change("account", id_, _deauthorized=True, _deleted=True)
    simulation.effect("account_deleted", id_, metadata=account["metadata"])
    if sends(simulation, account, "thin"):
        thin_events.emit(simulation, "v2.core.account.closed", id_)
    return account


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
        if sends(simulation, account, "snapshot"):
            created = {**bank, "_account": account["id"]}
            emit(simulation, "account.external_account.created", created)
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
    if simulation.settings.account_event_form != "none":
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
