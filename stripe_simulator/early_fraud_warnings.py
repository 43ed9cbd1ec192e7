"""Early fraud warnings: an issuer reports a charge as fraud, before a dispute or without one."""

from __future__ import annotations

from stripe_simulator import reviews
from stripe_simulator.events import emit
from stripe_simulator.simulation import Call, Simulation
from stripe_simulator.store import Row

KIND = "radar.early_fraud_warning"
FRAUD_TYPES = (
    "card_never_received",
    "fraudulent_card_application",
    "made_with_counterfeit_card",
    "made_with_lost_card",
    "made_with_stolen_card",
    "misc",
    "unauthorized_use_of_card",
)


def warn(simulation: Simulation, charge: Row, fraud_type: str) -> Row:
    warning = simulation.store.insert(
        KIND,
        {
            "id": simulation.new_id("issfr_1"),
            "object": KIND,
            "actionable": _actionable(charge),
            "charge": charge["id"],
            "created": simulation.now(),
            "fraud_type": fraud_type,
            "livemode": False,
            "payment_intent": charge["payment_intent"],
            "_account": charge["_account"],
        },
    )
    simulation.effect(
        "fraud_warning_raised",
        warning["id"],
        payment_intent=charge["payment_intent"],
        amount=charge["amount"],
        currency=charge["currency"],
    )
    emit(simulation, f"{KIND}.created", warning)
    return warning


def _actionable(charge: Row) -> bool:
    """There is something left to prevent: no dispute yet, and not fully refunded."""
    return not charge["disputed"] and not charge["refunded"]


def reconsider(simulation: Simulation, charge: Row) -> None:
    """The charge was disputed or refunded, or a refund of it failed."""
    reviews.reconsider(simulation, charge)
    for warning in list(simulation.store.select(KIND, {"charge": charge["id"]})):
        actionable = _actionable(charge)
        if warning["actionable"] != actionable:
            changed = simulation.store.change(KIND, warning["id"], actionable=actionable)
            before = {"actionable": warning["actionable"]}
            emit(simulation, f"{KIND}.updated", changed, before)


def retrieve(call: Call) -> Row:
    return call.object(KIND, "warning", "early fraud warning")
