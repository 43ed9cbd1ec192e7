"""Capture: the one moment at which a card payment's money moves.

For a destination charge the whole amount goes to the connected account and the application fee
comes back from there, while Stripe's own fee stays with the platform (Stripe's documentation of
destination charges).
"""

from __future__ import annotations

import dataclasses

from stripe_simulator import (
    charges,
    disputes,
    early_fraud_warnings,
    payment_methods,
    transfers,
)
from stripe_simulator.balance import processing_fee, settle
from stripe_simulator.currencies import convert
from stripe_simulator.events import emit
from stripe_simulator.simulation import Simulation
from stripe_simulator.store import Row


@dataclasses.dataclass(frozen=True)
class Captured:
    charge: Row
    transfer: Row | None
    application_fee: Row | None
    payment: Row | None


def take(
    simulation: Simulation,
    charge: Row,
    amount: int,
    application_fee_amount: int | None,
    transfer_amount: int | None,
) -> Captured:
    """Move the money of `charge`; no events yet, since their order depends on the caller."""
    platform = simulation.platform
    method = simulation.store.require("payment_method", charge["payment_method"])
    available_on = charges.available_on(simulation, payment_methods.card_of(method))
    settled, currency, exchange_rate = settle(simulation, amount, charge["currency"])
    line = simulation.balances.record(
        platform,
        "charge",
        charge["id"],
        settled,
        currency,
        available_on=available_on,
        fee_details=processing_fee(settled, currency),
        description=charge["description"],
        exchange_rate=exchange_rate,
    )
    # What an authorization held beyond that is released. Since 2025-03-31.basil it is no refund.
    charge = simulation.store.change(
        "charge",
        charge["id"],
        amount_captured=amount,
        application_fee_amount=application_fee_amount,
        balance_transaction=line["id"],
        captured=True,
        _available_on=available_on,
    )
    simulation.effect(
        "captured",
        charge["id"],
        payment_intent=charge["payment_intent"],
        amount=amount,
        currency=charge["currency"],
        metadata=charge["metadata"],
    )
    if charge["transfer_data"] is None:
        return Captured(charge, None, None, None)
    moved = settled
    if transfer_amount is not None:
        moved = min(settled, convert(transfer_amount, charge["currency"], currency))
    fee = None
    if application_fee_amount:
        fee = min(moved, convert(application_fee_amount, charge["currency"], currency))
    sent = transfers.send(
        simulation,
        destination=charge["transfer_data"]["destination"],
        amount=moved,
        currency=currency,
        source=charge,
        application_fee_amount=fee,
        transfer_group=charge["transfer_group"],
        description=None,
        metadata={},
        available_on=available_on,
    )
    charge = simulation.store.change(
        "charge",
        charge["id"],
        transfer=sent.transfer["id"],
        application_fee=sent.application_fee["id"] if sent.application_fee else None,
    )
    return Captured(charge, sent.transfer, sent.application_fee, sent.payment)


def emit_money_events(simulation: Simulation, captured: Captured) -> None:
    """What moved besides the charge itself; the order among these is our guess."""
    if captured.transfer is not None:
        emit(simulation, "transfer.created", captured.transfer)
    if captured.application_fee is not None:
        emit(simulation, "application_fee.created", captured.application_fee)
    if captured.payment is not None:
        emit(simulation, "payment.created", captured.payment)


def let_cardholder_react(simulation: Simulation, charge: Row) -> Row:
    """What the test cards for fraud warnings and disputes do; the charge as it then stands.

    They come between the charge's event and the intent's, as a live-probed simulator recorded.
    """
    method = simulation.store.require("payment_method", charge["payment_method"])
    card = payment_methods.card_of(method)
    amount = charge["amount_captured"]
    with simulation.unasked():
        if card.fraud_warning is not None:
            early_fraud_warnings.warn(simulation, charge, card.fraud_warning)
        if card.dispute is not None:
            disputes.begin(simulation, charge, amount, card.dispute, inquiry=card.inquiry)
    return simulation.store.require("charge", charge["id"])
