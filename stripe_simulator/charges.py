"""Charges: what a confirmed intent leaves at the card network."""

from __future__ import annotations

from typing import Any

from stripe_simulator import cards, payment_methods
from stripe_simulator.events import emit
from stripe_simulator.ids import scrambled
from stripe_simulator.simulation import Call, Simulation, merged_metadata
from stripe_simulator.store import Row

DAY = 86_400
EXTENDED_AUTHORIZATION_DAYS = 30


def build(
    simulation: Simulation, intent: Row, method: Row, *, manual: bool, authenticated: bool
) -> Row:
    """The charge of an approved card, not captured yet."""
    card = payment_methods.card_of(method)
    charge = _base(simulation, intent, method)
    options = (intent["payment_method_options"] or {}).get("card") or {}
    extended = (
        card.extended_authorization
        and options.get("request_extended_authorization") == "if_available"
    )
    standard = simulation.settings.authorization_days
    days = EXTENDED_AUTHORIZATION_DAYS if extended else standard
    details = _card_details(simulation, charge["id"], card, method, intent["amount"], authenticated)
    details["extended_authorization"] = {"status": "enabled" if extended else "disabled"}
    if manual:
        details["capture_before"] = simulation.now() + days * DAY
    charge.update(
        outcome={
            "advice_code": None,
            "network_advice_code": None,
            "network_decline_code": None,
            "network_status": "approved_by_network",
            "reason": None,
            "risk_level": "normal",
            "risk_score": 12,
            "seller_message": "Payment complete.",
            "type": "authorized",
        },
        paid=True,
        payment_method_details={"card": details, "type": "card"},
        status="succeeded",
    )
    return simulation.store.insert("charge", charge)


def build_failed(simulation: Simulation, intent: Row, method: Row, message: str) -> Row:
    """The charge that a decline leaves behind."""
    card = payment_methods.card_of(method)
    assert card.decline is not None
    code, decline_code, _ = card.decline
    charge = _base(simulation, intent, method)
    details = _card_details(simulation, charge["id"], card, method, intent["amount"], False)
    details["amount_authorized"] = None
    charge.update(
        failure_code=code,
        failure_message=message,
        outcome={
            "advice_code": "try_again_later" if code == "processing_error" else None,
            "network_advice_code": None,
            "network_decline_code": None,
            "network_status": "declined_by_network",
            "reason": decline_code or code,
            "risk_level": "normal",
            "risk_score": 12,
            "seller_message": "The bank did not return any further details with this decline.",
            "type": "issuer_declined",
        },
        paid=False,
        payment_method_details={"card": details, "type": "card"},
        receipt_url=None,
        status="failed",
    )
    return simulation.store.insert("charge", charge)


def _base(simulation: Simulation, intent: Row, method: Row) -> Row:
    id_ = simulation.new_id("ch_3")
    transfer_data = intent["transfer_data"]
    group = intent["transfer_group"]
    if group is None and transfer_data is not None:
        # Stripe labels a destination charge and its transfer with a group of its own.
        group = f"group_{intent['id']}"
    return {
        "id": id_,
        "object": "charge",
        "amount": intent["amount"],
        "amount_captured": 0,
        "amount_refunded": 0,
        "application": None,
        "application_fee": None,
        "application_fee_amount": intent["application_fee_amount"],
        "balance_transaction": None,
        "billing_details": method["billing_details"],
        "calculated_statement_descriptor": intent["statement_descriptor"] or "SIMULATOR",
        "captured": False,
        "created": simulation.now(),
        "currency": intent["currency"],
        "customer": None,
        "description": intent["description"],
        "disputed": False,
        "failure_balance_transaction": None,
        "failure_code": None,
        "failure_message": None,
        "fraud_details": {},
        "livemode": False,
        "metadata": intent["metadata"],
        "on_behalf_of": intent["on_behalf_of"],
        "outcome": None,
        "paid": False,
        "payment_intent": intent["id"],
        "payment_method": method["id"],
        "payment_method_details": None,
        "radar_options": {},
        "receipt_email": intent["receipt_email"],
        "receipt_number": None,
        "receipt_url": f"{simulation.base_url}/_pages/receipt/{id_}",
        "refunded": False,
        "review": None,
        "shipping": intent["shipping"],
        "source": None,
        "source_transfer": None,
        "statement_descriptor": intent["statement_descriptor"],
        "statement_descriptor_suffix": intent["statement_descriptor_suffix"],
        "status": "pending",
        "transfer_data": transfer_data,
        "transfer_group": group,
        "_account": intent["_account"],
        # Whether the authorization was canceled or has expired.
        "_released": False,
        "_available_on": None,
    }


def _card_details(
    simulation: Simulation,
    charge: str,
    card: cards.Card,
    method: Row,
    amount: int,
    authenticated: bool,
) -> dict[str, Any]:
    return {
        "amount_authorized": amount,
        "authorization_code": scrambled(f"{simulation.ids.seed}{charge}", 6).upper(),
        "brand": card.brand,
        "checks": method["card"]["checks"],
        "country": card.country,
        "exp_month": method["card"]["exp_month"],
        "exp_year": method["card"]["exp_year"],
        "extended_authorization": {"status": "disabled"},
        "fingerprint": method["card"]["fingerprint"],
        "funding": method["card"]["funding"],
        "incremental_authorization": {"status": "unavailable"},
        "installments": None,
        "last4": card.last4,
        "mandate": None,
        "multicapture": {"status": "unavailable"},
        "network": card.brand,
        "network_token": {"used": False},
        "network_transaction_id": str(int.from_bytes(charge.encode()[-6:], "big")).zfill(15)[:15],
        "overcapture": {"maximum_amount_capturable": amount, "status": "unavailable"},
        "regulated_status": "unregulated",
        "three_d_secure": {
            "authentication_flow": "challenge",
            "electronic_commerce_indicator": "05",
            "exemption_indicator": None,
            "result": "authenticated",
            "result_reason": None,
            "transaction_id": scrambled(f"3ds{charge}", 24),
            "version": "2.2.0",
        }
        if authenticated
        else None,
        "transaction_link_id": None,
        "wallet": None,
    }


def capture_before(charge: Row) -> int | None:
    """When the authorization ends; on the charge only after confirmation, and only if manual."""
    details = charge["payment_method_details"]
    moment: int | None = details["card"].get("capture_before") if details else None
    return moment


def is_open_authorization(charge: Row) -> bool:
    return (
        charge["status"] == "succeeded"
        and not charge["captured"]
        and not charge["_released"]
        and charge["payment_intent"] is not None
    )


def release(simulation: Simulation, charge: Row) -> Row:
    """Gives an uncaptured authorization back, which the charge itself does not show.

    Since 2025-03-31.basil there is no refund of what was never captured: no Refund object, no
    `amount_refunded`, no `charge.refunded`.
    """
    return simulation.store.change("charge", charge["id"], _released=True)


def available_on(simulation: Simulation, card: cards.Card) -> int:
    """When the money of a charge made now can be used; a card number bypasses the wait."""
    days = 0 if card.bypasses_pending else simulation.settings.available_after_days
    return simulation.now() + days * DAY


def retrieve(call: Call) -> Row:
    return call.object("charge", "charge")


def update(call: Call) -> Row:
    """POST /v1/charges/:id: what describes a charge may change, its money may not."""
    simulation = call.simulation
    charge = call.object("charge", "charge")
    changes: dict[str, Any] = {
        name: call.params[name]
        for name in ("description", "receipt_email", "shipping")
        if name in call.params
    }
    if "metadata" in call.params:
        changes["metadata"] = merged_metadata(charge["metadata"], call.params["metadata"])
    before = {name: charge[name] for name in changes}
    charge = simulation.store.change("charge", charge["id"], **changes)
    if before:
        emit(simulation, "charge.updated", charge, before)
    return charge
