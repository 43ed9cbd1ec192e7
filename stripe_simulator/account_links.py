"""Links into pages that Stripe hosts: onboarding, and the Express dashboard."""

from __future__ import annotations

from stripe_simulator import accounts_v2
from stripe_simulator.account_shape import is_express
from stripe_simulator.account_shape_v2 import moment
from stripe_simulator.accounts import reachable
from stripe_simulator.errors import invalid_parameter, parameter_missing, refused
from stripe_simulator.simulation import Call, Simulation
from stripe_simulator.store import Row

LINK_SECONDS = 300


def create(call: Call) -> Row:
    """POST /v1/account_links: good for five minutes and one use; every call makes another."""
    simulation = call.simulation
    account = reachable(simulation, call.params["account"])
    for name in ("refresh_url", "return_url"):
        url = call.get(name)
        if url is None:
            raise parameter_missing(name)
        if not url.startswith(("http://", "https://")):
            raise invalid_parameter(name, "Not a valid URL", "url_invalid")
    if call.params["type"] == "account_update" and (
        account["controller"]["requirement_collection"] == "stripe"
    ):
        raise refused(
            "You cannot create `account_update` type Account Links for this account.",
            param="type",
        )
    url = _add(simulation, account, call.params["refresh_url"], call.params["return_url"])
    now = simulation.now()
    return {
        "object": "account_link",
        "created": now,
        "expires_at": now + LINK_SECONDS,
        "url": url,
    }


def create_v2(call: Call) -> Row:
    """POST /v2/core/account_links: the flow that `use_case` names, with its own addresses."""
    simulation = call.simulation
    account = accounts_v2.known(simulation, call.params["account"], "account")
    use_case = call.params["use_case"]
    flow = use_case.get(use_case["type"])
    if flow is None:
        raise parameter_missing(f"use_case[{use_case['type']}]")
    if account.get("_deleted"):
        raise refused(f"The account {account['id']} is closed.", code="account_closed")
    for name in ("refresh_url", "return_url"):
        if not flow.get(name, "https://").startswith(("http://", "https://")):
            raise invalid_parameter(name, "Not a valid URL", "url_invalid")
    url = _add(simulation, account, flow["refresh_url"], flow.get("return_url"))
    now = simulation.now()
    return {
        "object": "v2.core.account_link",
        "account": account["id"],
        "created": moment(now),
        "expires_at": moment(now + LINK_SECONDS),
        "livemode": False,
        "url": url,
        "use_case": use_case,
    }


def _add(simulation: Simulation, account: Row, refresh_url: str, return_url: str | None) -> str:
    """Store a link, and return its address."""
    token = simulation.new_id("", 32)
    simulation.store.insert(
        "link",
        {
            "id": token,
            "account": account["id"],
            "expires_at": simulation.now() + LINK_SECONDS,
            "refresh_url": refresh_url,
            # Without one the form ends where it began.
            "return_url": return_url or refresh_url,
            "used": False,
            "_account": account["id"],
        },
    )
    return f"{simulation.base_url}/_pages/onboarding/{token}"


def usable(simulation: Simulation, token: str) -> Row | None:
    """The link behind a token, unless it is expired or used."""
    link = simulation.store.get("link", token)
    if link is None or link["used"] or simulation.now() >= link["expires_at"]:
        return None
    return link


def create_login_link(call: Call) -> Row:
    """POST /v1/accounts/:id/login_links: Express only, and only after onboarding."""
    simulation = call.simulation
    account = reachable(simulation, call.path["account"])
    if not is_express(account):
        raise refused(
            "Cannot create a login link for an account that does not have access to the Express "
            "Dashboard.",
        )
    if not account["details_submitted"]:
        raise refused(
            "Cannot create a login link for an account that has not completed onboarding."
        )
    token = simulation.new_id("", 32)
    simulation.store.insert(
        "login", {"id": token, "account": account["id"], "_account": account["id"]}
    )
    return {
        "object": "login_link",
        "created": simulation.now(),
        "url": f"{simulation.base_url}/_pages/express/{token}",
    }
