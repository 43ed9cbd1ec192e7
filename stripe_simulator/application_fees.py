"""Application fees: the platform's share, taken from the connected account's payment."""

from __future__ import annotations

from stripe_simulator import currencies
from stripe_simulator.errors import no_such, refused
from stripe_simulator.events import emit
from stripe_simulator.simulation import Call, Simulation, merged_metadata
from stripe_simulator.store import Row


def collect(
    simulation: Simulation,
    *,
    account: str,
    payment: str,
    charge: str,
    amount: int,
    currency: str,
    available_on: int,
) -> Row:
    """Book a fee onto the platform. `charge` of a fee is the payment on the connected account;
    the platform's own charge is its `originating_transaction` (the SDK's description)."""
    id_ = simulation.new_id("fee_1")
    line = simulation.balances.record(
        simulation.platform,
        "application_fee",
        id_,
        amount,
        currency,
        available_on=available_on,
        description=f"Application fee from {account}",
    )
    return simulation.store.insert(
        "application_fee",
        {
            "id": id_,
            "object": "application_fee",
            "account": account,
            "amount": amount,
            "amount_refunded": 0,
            "application": simulation.application,
            "balance_transaction": line["id"],
            "charge": payment,
            "created": simulation.now(),
            "currency": currency,
            "fee_source": {"charge": payment, "type": "charge"},
            "livemode": False,
            "originating_transaction": charge,
            "refunded": False,
            "_account": simulation.platform,
            "_available_on": available_on,
        },
    )


def give_back(
    simulation: Simulation, fee: Row, amount: int, metadata: dict[str, str]
) -> tuple[Row, Row]:
    """Return part of a fee to the connected account that paid it; (fee refund, fee)."""
    id_ = simulation.new_id("fr_1")
    available_on = fee["_available_on"]
    line = simulation.balances.record(
        simulation.platform,
        "application_fee_refund",
        id_,
        -amount,
        fee["currency"],
        available_on=available_on,
    )
    # Which type Stripe gives this line on the connected account is our guess.
    simulation.balances.record(
        fee["account"],
        "application_fee_refund",
        id_,
        amount,
        fee["currency"],
        available_on=available_on,
    )
    refunded = fee["amount_refunded"] + amount
    row = simulation.store.insert(
        "fee_refund",
        {
            "id": id_,
            "object": "fee_refund",
            "amount": amount,
            "balance_transaction": line["id"],
            "created": simulation.now(),
            "currency": fee["currency"],
            "fee": fee["id"],
            "metadata": metadata,
            "_account": simulation.platform,
        },
    )
    fee = simulation.store.change(
        "application_fee",
        fee["id"],
        amount_refunded=refunded,
        refunded=refunded == fee["amount"],
    )
    simulation.effect(
        "fee_refunded", id_, amount=amount, currency=fee["currency"], metadata=metadata
    )
    emit(simulation, "application_fee.refunded", fee)
    return row, fee


def retrieve(call: Call) -> Row:
    return call.object("application_fee", "fee", "application fee")


def matches_charge(simulation: Simulation, fee: Row, charge: str) -> bool:
    """A fee is found by the connected payment or by the platform's charge."""
    return charge in (fee["charge"], fee["originating_transaction"])


def create_refund(call: Call) -> Row:
    """POST /v1/application_fees/:id/refunds."""
    fee = call.object("application_fee", "fee", "application fee")
    remaining = fee["amount"] - fee["amount_refunded"]
    amount = call.get("amount", remaining)
    if remaining == 0:
        raise refused(
            f"Application fee {fee['id']} has already been refunded.",
            code="application_fee_already_refunded",
        )
    if amount > remaining:
        raise refused(
            f"Refund amount ({currencies.formatted(amount, fee['currency'])}) is greater than "
            f"unrefunded amount on fee ({currencies.formatted(remaining, fee['currency'])})",
            param="amount",
        )
    metadata = merged_metadata({}, call.get("metadata") or {})
    refund, _ = give_back(call.simulation, fee, amount, metadata)
    return refund


def retrieve_refund(call: Call) -> Row:
    refund = call.object("fee_refund", "id", "fee refund")
    if refund["fee"] != call.path["fee"]:
        raise no_such("fee refund", call.path["id"], "id", in_path=True)
    return refund


def update_refund(call: Call) -> Row:
    refund = retrieve_refund(call)
    metadata = refund["metadata"]
    if "metadata" in call.params:
        metadata = merged_metadata(metadata, call.params["metadata"])
    return call.simulation.store.change("fee_refund", refund["id"], metadata=metadata)
