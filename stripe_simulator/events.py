"""Events: a snapshot of an object at the moment something happened to it.

An event of a connected account carries `account` and goes to the Connect endpoints; one of our own
account goes to the platform's (Stripe's documentation of Connect webhooks). One row for each
delivery is stored with the event, so that a restart forgets none.
"""

from __future__ import annotations

from typing import Any

from stripe_simulator.config import WebhookTarget
from stripe_simulator.rendering import event_envelope, plain
from stripe_simulator.simulation import Simulation
from stripe_simulator.store import Row

#: What the switch `account_events` silences.
ACCOUNT_EVENTS = ("account.", "capability.")


def targets(simulation: Simulation) -> list[WebhookTarget]:
    """The endpoints: those set through the control API if any were, else the command line's."""
    saved = simulation.store.get("meta", "webhooks")
    if saved is None:
        return list(simulation.config.webhooks)
    return [
        WebhookTarget(target["scope"], target["url"], tuple(target["secrets"]))
        for target in saved["targets"]
    ]


def emit(
    simulation: Simulation,
    type_: str,
    row: Row,
    previous: dict[str, Any] | None = None,
    *,
    account: str | None = None,
    **overrides: Any,
) -> None:
    """Record an event about `row`, and a delivery for each endpoint it concerns.

    The account is the object's own unless named; `overrides` are fields that the snapshot shows
    otherwise than the object now stands.
    """
    if type_.startswith(ACCOUNT_EVENTS) and not simulation.settings.account_events:
        return
    owner = account or row["_account"]
    shown = {**plain(simulation, row), **overrides}
    event = event_envelope(
        simulation, simulation.new_id("evt_1" if owner != simulation.platform else "evt_3"),
        type_, shown, previous,
    )  # fmt: skip
    scope = "platform"
    if owner != simulation.platform:
        event["account"] = owner
        scope = "connect"
    wanted = [target for target in targets(simulation) if target.scope == scope]
    event["_account"] = owner
    event["_pending"] = len(wanted)
    event["_delivered"] = not wanted
    event = simulation.store.insert("event", event)
    for number, target in enumerate(wanted):
        add_delivery(simulation, event["id"], target.url, f"{event['id']}:{number}", type_)
    if simulation.store.count("event") > simulation.settings.keep_events:
        _forget_oldest(simulation)


def _forget_oldest(simulation: Simulation) -> None:
    """Drop an event that nobody waits for any more; two a time, so that the number goes down."""
    store = simulation.store
    for old in store.first("event", 2):
        if old["_delivered"] and store.count("event") > simulation.settings.keep_events:
            for delivery in list(store.select("delivery", {"event": old["id"]})):
                store.remove("delivery", delivery["id"])
            store.remove("event", old["id"])


def add_delivery(simulation: Simulation, event: str, url: str, id_: str, type_: str) -> None:
    simulation.store.insert(
        "delivery",
        {
            "id": id_,
            "event": event,
            "type": type_,
            "url": url,
            "state": "pending",
            "attempts": 0,
            "last_status": None,
        },
    )
    simulation.new_deliveries.append(id_)
