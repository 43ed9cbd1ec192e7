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
) -> Row:
    """Record an event about `row`, and a delivery for each endpoint it concerns.

    The account is the object's own unless named; `overrides` are fields that the snapshot shows
    otherwise than the object now stands.
    """
    owner = account or row["_account"]
    shown = {**plain(simulation, row), **overrides}
    event = event_envelope(
        simulation, simulation.new_id("evt_1" if owner != simulation.platform else "evt_3"),
        type_, shown, previous,
    )  # fmt: skip
    event["_scope"] = "platform"
    if owner != simulation.platform:
        event["account"] = owner
        event["_scope"] = "connect"
    event["_account"] = owner
    return add_deliveries(simulation, "event", event)


def add_deliveries(simulation: Simulation, kind: str, event: Row) -> Row:
    """Store an event with a delivery for each endpoint that it concerns."""
    scope = event["_scope"] if _is_wanted(simulation, event["type"]) else ""
    wanted = [target for target in targets(simulation) if target.scope == scope]
    event["_pending"] = len(wanted)
    event["_delivered"] = not wanted
    event = simulation.store.insert(kind, event)
    for number, target in enumerate(wanted):
        id_ = f"{event['id']}:{number}"
        add_delivery(simulation, event["id"], target.url, id_, event["type"])
    if simulation.store.count(kind) > simulation.settings.keep_events:
        _forget_oldest(simulation, kind)
    return event


def _is_wanted(simulation: Simulation, type_: str) -> bool:
    """Stripe sends the events that an endpoint is registered for. Its list has all of them."""
    settings = simulation.settings
    chosen = settings.webhook_events.split(",")
    return settings.webhook_status == "enabled" and ("*" in chosen or type_ in chosen)


def kind_of(event_id: str) -> str:
    """The kind of row behind an event's id."""
    return "thin_event" if event_id.startswith("evt_test_6") else "event"


def of_delivery(simulation: Simulation, delivery: Row) -> Row:
    """The event, thin or not, that a delivery brings."""
    return simulation.store.require(kind_of(delivery["event"]), delivery["event"])


def _forget_oldest(simulation: Simulation, kind: str) -> None:
    """Drop an event that nobody waits for any more; two a time, so that the number goes down."""
    store = simulation.store
    for old in store.first(kind, 2):
        if old["_delivered"] and store.count(kind) > simulation.settings.keep_events:
            for delivery in list(store.select("delivery", {"event": old["id"]})):
                store.remove("delivery", delivery["id"])
            store.remove(kind, old["id"])


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
