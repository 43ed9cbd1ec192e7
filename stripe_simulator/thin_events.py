"""Thin events of API v2: what happened to which object, without the object itself.

They belong to the platform and are listed there by object or by time, also those about connected
accounts. A destination for thin events of connected accounts gets them; here that is the Connect
endpoint, beside the snapshot events and under the same secrets.
"""

from __future__ import annotations

from typing import Any

from stripe_simulator.account_shape_v2 import moment
from stripe_simulator.errors import ApiError
from stripe_simulator.events import add_deliveries
from stripe_simulator.simulation import Call, Simulation
from stripe_simulator.store import Row

KIND = "thin_event"
ACCOUNT = "v2.core.account"


def emit(
    simulation: Simulation,
    type_: str,
    object_id: str,
    *,
    related_type: str = ACCOUNT,
    data: dict[str, Any] | None = None,
) -> Row:
    """Record an event about an object, and its deliveries."""
    cause = simulation.cause
    reason = None
    if cause.request_id is not None:
        request = {"id": cause.request_id, "idempotency_key": cause.idempotency_key}
        reason = {"type": "request", "request": request}
    path = "accounts" if related_type == ACCOUNT else "account_links"
    now = simulation.now()
    event: Row = {
        "id": simulation.new_id("evt_test_6", 48),
        "object": "v2.core.event",
        "changes": None,
        "context": None,
        "created": moment(now),
        "data": data,
        "livemode": False,
        "reason": reason,
        "related_object": {
            "id": object_id,
            "type": related_type,
            "url": f"/v2/core/{path}/{object_id}",
        },
        "type": type_,
        "_account": simulation.platform,
        "_created": now,
        "_object": object_id,
        "_scope": "connect",
    }
    return add_deliveries(simulation, KIND, event)


def notification(event: dict[str, Any]) -> dict[str, Any]:
    """What is delivered: the event without what only fetching it shows."""
    return {name: value for name, value in event.items() if name not in ("changes", "data")}


def retrieve(call: Call) -> Row:
    """GET /v2/core/events/:id"""
    event = call.simulation.store.get(KIND, call.path["id"])
    if event is None:
        raise ApiError(404, "Event not found.", code="not_found", param="id", stored=False)
    return event


def wanted(call: Call, event: Row) -> bool:
    """The filters of GET /v2/core/events. Times compare as text: all have one form."""
    bounds = call.get("created") or {}
    created = event["created"]
    types = call.get("types")
    return (
        call.get("object_id") in (None, event["_object"])
        and (types is None or event["type"] in types)
        and created > bounds.get("gt", "")
        and created >= bounds.get("gte", "")
        and created < bounds.get("lt", "9")
        and created <= bounds.get("lte", "9")
    )
