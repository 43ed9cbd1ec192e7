"""Reviews: a person of the platform looks at a charge in Radar before it is trusted.

They are opened and approved by the control API. A refund, a dispute or a cancellation closes one as
well. The charge keeps the id of its review after it is closed.
"""

from __future__ import annotations

from stripe_simulator.events import emit
from stripe_simulator.simulation import Simulation
from stripe_simulator.store import Row

KIND = "review"
OPENED_REASONS = ("rule", "manual")


def begin(simulation: Simulation, charge: Row, reason: str) -> Row:
    review = simulation.store.insert(
        KIND,
        {
            "id": simulation.new_id("prv_1"),
            "object": KIND,
            "billing_zip": None,
            "charge": charge["id"],
            "closed_reason": None,
            "created": simulation.now(),
            "ip_address": None,
            "ip_address_location": None,
            "livemode": False,
            "open": True,
            "opened_reason": reason,
            "payment_intent": charge["payment_intent"],
            "reason": reason,
            "session": None,
            "_account": charge["_account"],
        },
    )
    simulation.store.change("charge", charge["id"], review=review["id"])
    simulation.store.change("payment_intent", charge["payment_intent"], review=review["id"])
    _log(simulation, "review_opened", review)
    emit(simulation, "review.opened", review)
    return review


def close(simulation: Simulation, review: Row, reason: str) -> Row:
    review = simulation.store.change(
        KIND, review["id"], open=False, closed_reason=reason, reason=reason
    )
    _log(simulation, "review_closed", review)
    emit(simulation, "review.closed", review)
    return review


def close_of(simulation: Simulation, charge: Row, reason: str) -> None:
    """Closes the charge's open review, if there is one."""
    review = simulation.store.get(KIND, charge["review"]) if charge["review"] else None
    if review is not None and review["open"]:
        close(simulation, review, reason)


def reconsider(simulation: Simulation, charge: Row) -> None:
    """The charge was disputed or refunded."""
    if charge["disputed"]:
        close_of(simulation, charge, "disputed")
    elif charge["refunded"] and charge["captured"]:
        close_of(simulation, charge, "refunded")


def _log(simulation: Simulation, kind: str, review: Row) -> None:
    simulation.effect(kind, review["id"], payment_intent=review["payment_intent"])
