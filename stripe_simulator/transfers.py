"""Transfers from the platform to a connected account, and their reversals."""

from __future__ import annotations

import dataclasses
from typing import Any

from stripe_simulator import application_fees, currencies, regions
from stripe_simulator.accounts import check_destination, is_deauthorized
from stripe_simulator.balance import application_fee_detail
from stripe_simulator.errors import ApiError, no_access, no_such, parameter_missing, refused
from stripe_simulator.events import emit
from stripe_simulator.simulation import Call, Simulation, merged_metadata
from stripe_simulator.store import Row


@dataclasses.dataclass(frozen=True)
class Sent:
    transfer: Row
    payment: Row
    application_fee: Row | None


def send(
    simulation: Simulation,
    *,
    destination: str,
    amount: int,
    currency: str,
    source: Row | None,
    application_fee_amount: int | None,
    transfer_group: str | None,
    description: str | None,
    metadata: dict[str, str],
    available_on: int | None,
) -> Sent:
    """Book a transfer on both accounts; the destination's side is a payment `py_…`."""
    id_ = simulation.new_id("tr_3" if source else "tr_1")
    payment_id = simulation.new_id("py_1")
    line = simulation.balances.record(
        simulation.platform,
        "transfer",
        id_,
        -amount,
        currency,
        available_on=available_on,
        description=description,
    )
    details: list[dict[str, Any]] = []
    if application_fee_amount:
        details = application_fee_detail(application_fee_amount, currency, simulation.application)
    arrival: Row = {"id": None, "available_on": available_on or simulation.now()}
    if simulation.settings.transfers_arrive:
        arrival = simulation.balances.record(
            destination,
            "payment",
            payment_id,
            amount,
            currency,
            available_on=available_on,
            fee_details=details,
        )
    fee = None
    if application_fee_amount and source is not None:
        fee = application_fees.collect(
            simulation,
            account=destination,
            payment=payment_id,
            charge=source["id"],
            amount=application_fee_amount,
            currency=currency,
            available_on=arrival["available_on"],
        )
    transfer = simulation.store.insert(
        "transfer",
        {
            "id": id_,
            "object": "transfer",
            "amount": amount,
            "amount_reversed": 0,
            "balance_transaction": line["id"],
            "created": simulation.now(),
            "currency": currency,
            "description": description,
            "destination": destination,
            "destination_payment": payment_id,
            "livemode": False,
            "metadata": metadata,
            "reversed": False,
            "source_transaction": source["id"] if source else None,
            "source_type": "card",
            "transfer_group": transfer_group,
            "_account": simulation.platform,
            "_available_on": arrival["available_on"],
        },
    )
    payment = simulation.store.insert(
        "charge", _payment(simulation, transfer, payment_id, arrival["id"], fee)
    )
    simulation.effect(
        "transferred",
        id_,
        payment_intent=source["payment_intent"] if source else None,
        amount=amount,
        currency=currency,
        metadata=metadata,
    )
    return Sent(transfer, payment, fee)


def _payment(
    simulation: Simulation, transfer: Row, id_: str, line: str | None, fee: Row | None
) -> Row:
    """The charge object that the connected account sees for a transfer to it."""
    return {
        "id": id_,
        "object": "charge",
        "amount": transfer["amount"],
        "amount_captured": transfer["amount"],
        "amount_refunded": 0,
        "application": simulation.application if fee else None,
        "application_fee": fee["id"] if fee else None,
        "application_fee_amount": fee["amount"] if fee else None,
        "balance_transaction": line,
        "billing_details": {
            "address": dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state")),
            "email": None,
            "name": None,
            "phone": None,
            "tax_id": None,
        },
        "calculated_statement_descriptor": None,
        "captured": True,
        "created": simulation.now(),
        "currency": transfer["currency"],
        "customer": None,
        "description": None,
        "disputed": False,
        "failure_balance_transaction": None,
        "failure_code": None,
        "failure_message": None,
        "fraud_details": {},
        "livemode": False,
        "metadata": {},
        "on_behalf_of": None,
        "outcome": None,
        "paid": True,
        "payment_intent": None,
        "payment_method": None,
        "payment_method_details": {"stripe_account": {}, "type": "stripe_account"},
        "radar_options": {},
        "receipt_email": None,
        "receipt_number": None,
        "receipt_url": None,
        "refunded": False,
        "review": None,
        "shipping": None,
        "source": None,
        "source_transfer": transfer["id"],
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "succeeded",
        "transfer_data": None,
        "transfer_group": transfer["transfer_group"],
        "_account": transfer["destination"],
        "_released": False,
        "_available_on": transfer["_available_on"],
    }


def create(call: Call) -> Row:
    """POST /v1/transfers: sourced by a charge, or from the platform's available balance."""
    simulation = call.simulation
    currency = call.params["currency"]
    destination = call.params["destination"]
    check_destination(simulation, destination, "destination")
    regions.check_transfer(
        simulation.config.country, simulation.store.require("account", destination)
    )
    source = None
    available_on = None
    if "source_transaction" in call.params:
        source, amount = _source(call, currency)
        available_on = source["_available_on"]
    else:
        if "amount" not in call.params:
            raise parameter_missing("amount")
        amount = call.params["amount"]
        if currency not in simulation.config.settlement_currencies or amount > (
            simulation.balances.available(simulation.platform, currency)
        ):
            raise insufficient_funds()
    currencies.check_step(amount, currency)
    group = call.get("transfer_group") or (source["transfer_group"] if source else None)
    sent = send(
        simulation,
        destination=destination,
        amount=amount,
        currency=currency,
        source=source,
        application_fee_amount=None,
        transfer_group=group,
        description=call.get("description"),
        metadata=merged_metadata({}, call.get("metadata") or {}),
        available_on=available_on,
    )
    emit(simulation, "transfer.created", sent.transfer)
    emit(simulation, "payment.created", sent.payment)
    return sent.transfer


def insufficient_funds() -> ApiError:
    return refused(
        "You have insufficient available funds in your Stripe account. Try adding funds directly "
        "to your available balance by creating Charges using the 4000000000000077 test card. See: "
        "https://stripe.com/docs/testing#available-balance",
        code="balance_insufficient",
    )


def _source(call: Call, currency: str) -> tuple[Row, int]:
    """The charge that a transfer draws on, and how much it may still draw.

    All transfers of one source must stay within its amount; the message is one that users of
    Stripe report, a code is not known. That a reversal frees its amount again is our guess.
    """
    simulation = call.simulation
    id_ = call.params["source_transaction"]
    charge = simulation.store.get("charge", id_)
    if charge is None or charge["_account"] != simulation.platform:
        raise no_such("charge", id_, "source_transaction")
    if not charge["captured"]:
        raise refused(
            f"The source_transaction {id_} has not been captured. You can only create a transfer "
            "from a captured charge.",
            param="source_transaction",
        )
    line = simulation.store.require("balance_transaction", charge["balance_transaction"])
    if line["currency"] != currency:
        raise refused(
            f"The currency of source_transaction's balance transaction ({line['currency']}) must "
            f"be the same as the transfer currency ({currency})",
            param="currency",
        )
    used = sum(
        transfer["amount"] - transfer["amount_reversed"]
        for transfer in simulation.store.select("transfer", {"source_transaction": id_})
    )
    remaining: int = line["amount"] - used
    amount: int = call.get("amount", remaining)
    if amount > remaining or amount <= 0:
        raise refused(
            "Transfers using this transaction as a source must not exceed the source amount of "
            f"{currencies.formatted(line['amount'], currency)}. (There is already a transfer using "
            f"this source, amounting to {currencies.formatted(used, currency)}.)",
            param="amount",
        )
    return charge, amount


def retrieve(call: Call) -> Row:
    return call.object("transfer", "transfer")


def update(call: Call) -> Row:
    simulation = call.simulation
    transfer = call.object("transfer", "transfer")
    changes: dict[str, Any] = {}
    if "description" in call.params:
        changes["description"] = call.params["description"]
    if "metadata" in call.params:
        changes["metadata"] = merged_metadata(transfer["metadata"], call.params["metadata"])
    before = {name: transfer[name] for name in changes}
    transfer = simulation.store.change("transfer", transfer["id"], **changes)
    if before:
        emit(simulation, "transfer.updated", transfer, before)
    return transfer


def _reversal_rule(simulation: Simulation, transfer: Row) -> str:
    """Which part of the destination's balance a reversal draws on."""
    rule = simulation.settings.reversal_balance
    if rule != "documented":
        return rule
    source = transfer["source_transaction"]
    charge = simulation.store.require("charge", source) if source else None
    made_by_charge = charge is not None and charge.get("transfer") == transfer["id"]
    return "total" if made_by_charge else "available"


def reversible(simulation: Simulation, transfer: Row) -> int | None:
    """How much the destination's balance lets a reversal take; None is no limit."""
    destination, currency = transfer["destination"], transfer["currency"]
    rule = _reversal_rule(simulation, transfer)
    if rule == "unlimited":
        return None
    if rule == "available":
        return simulation.balances.available(destination, currency)
    return simulation.balances.total(destination, currency)


def check_reversible(simulation: Simulation, transfer: Row, amount: int) -> None:
    """Refuse a reversal that the destination's balance cannot bear."""
    destination = transfer["destination"]
    if is_deauthorized(simulation, destination):
        # Whether Stripe still reverses towards an account that left is unknown: we refuse.
        raise no_access(simulation.config.secret_key, destination)
    limit = reversible(simulation, transfer)
    if limit is not None and amount > limit:
        raise refused(
            f"The connected account {destination} has insufficient funds to cover this reversal "
            f"of {currencies.formatted(amount, transfer['currency'])}.",
            code="balance_insufficient",
        )


def reverse(
    simulation: Simulation,
    transfer: Row,
    amount: int,
    metadata: dict[str, str],
    source_refund: str | None = None,
) -> tuple[Row, Row]:
    """Take money back from a connected account; (reversal, transfer). Checked by the caller."""
    id_ = simulation.new_id("trr_1")
    currency = transfer["currency"]
    # What is taken from available money is at once available again to the platform; otherwise the
    # lines mature with those that they undo.
    takes_available = _reversal_rule(simulation, transfer) == "available"
    available_on = None if takes_available else transfer["_available_on"]
    line = simulation.balances.record(
        simulation.platform, "transfer_refund", id_, amount, currency, available_on=available_on
    )
    payment = simulation.store.require("charge", transfer["destination_payment"])
    payment_refund = simulation.new_id("pyr_1")
    taken = simulation.balances.record(
        transfer["destination"],
        "payment_refund",
        payment_refund,
        -amount,
        currency,
        available_on=available_on,
    )
    refund = _payment_refund(simulation, payment, payment_refund, amount, taken["id"], id_)
    refunded = payment["amount_refunded"] + amount
    simulation.store.change(
        "charge",
        payment["id"],
        amount_refunded=refunded,
        refunded=refunded == payment["amount"],
    )
    reversal = simulation.store.insert(
        "transfer_reversal",
        {
            "id": id_,
            "object": "transfer_reversal",
            "amount": amount,
            "balance_transaction": line["id"],
            "created": simulation.now(),
            "currency": currency,
            "destination_payment_refund": refund["id"],
            "metadata": metadata,
            "source_refund": source_refund,
            "transfer": transfer["id"],
            "_account": simulation.platform,
        },
    )
    reversed_so_far = transfer["amount_reversed"] + amount
    transfer = simulation.store.change(
        "transfer",
        transfer["id"],
        amount_reversed=reversed_so_far,
        reversed=reversed_so_far == transfer["amount"],
    )
    source = transfer["source_transaction"]
    charge = simulation.store.get("charge", source) if source else None
    simulation.effect(
        "reversed",
        id_,
        payment_intent=charge["payment_intent"] if charge else None,
        amount=amount,
        currency=currency,
        metadata=metadata,
    )
    emit(simulation, "transfer.reversed", transfer)
    return reversal, transfer


def _payment_refund(
    simulation: Simulation, payment: Row, id_: str, amount: int, line: str, reversal: str
) -> Row:
    return simulation.store.insert(
        "refund",
        {
            "id": id_,
            "object": "refund",
            "amount": amount,
            "balance_transaction": line,
            "charge": payment["id"],
            "created": simulation.now(),
            "currency": payment["currency"],
            "customer": None,
            "customer_account": None,
            "destination_details": None,
            "metadata": {},
            "payment_intent": None,
            "payment_method": None,
            "reason": None,
            "receipt_number": None,
            "source_transfer_reversal": reversal,
            "status": "succeeded",
            "transfer_reversal": None,
            "_account": payment["_account"],
        },
    )


def create_reversal(call: Call) -> Row:
    """POST /v1/transfers/:id/reversals."""
    simulation = call.simulation
    transfer = call.object("transfer", "transfer")
    remaining = transfer["amount"] - transfer["amount_reversed"]
    amount = call.get("amount", remaining)
    if remaining == 0:
        raise refused(
            f"Transfer {transfer['id']} has already been fully reversed.",
            code="transfer_already_reversed",
        )
    if amount > remaining:
        raise refused(
            f"Reversal amount ({currencies.formatted(amount, transfer['currency'])}) is greater "
            "than unreversed amount on transfer "
            f"({currencies.formatted(remaining, transfer['currency'])})",
            param="amount",
        )
    fee = None
    if call.get("refund_application_fee"):
        payment = simulation.store.require("charge", transfer["destination_payment"])
        if payment["application_fee"] is None:
            raise refused(
                "Cannot refund the application fee of a transfer that has none.",
                param="refund_application_fee",
            )
        fee = simulation.store.require("application_fee", payment["application_fee"])
    check_reversible(simulation, transfer, amount)
    metadata = merged_metadata({}, call.get("metadata") or {})
    reversal, _ = reverse(simulation, transfer, amount, metadata)
    if fee is not None:
        share = proportion(fee["amount"], fee["amount_refunded"], amount, transfer["amount"],
                           amount == remaining)  # fmt: skip
        if share:
            application_fees.give_back(simulation, fee, share, {})
    return reversal


def proportion(whole: int, already: int, part: int, base: int, is_rest: bool) -> int:
    """A share of `whole` as `part` is of `base`; the last part takes what is left.

    Stripe does not document how it rounds: half up, bounded by what is left, is our guess.
    """
    left = whole - already
    if is_rest:
        return left
    return min(left, (2 * whole * part + base) // (2 * base))


def retrieve_reversal(call: Call) -> Row:
    reversal = call.object("transfer_reversal", "id", "transfer reversal")
    if reversal["transfer"] != call.path["transfer"]:
        raise no_such("transfer reversal", call.path["id"], "id", in_path=True)
    return reversal


def update_reversal(call: Call) -> Row:
    reversal = retrieve_reversal(call)
    metadata = reversal["metadata"]
    if "metadata" in call.params:
        metadata = merged_metadata(metadata, call.params["metadata"])
    return call.simulation.store.change("transfer_reversal", reversal["id"], metadata=metadata)
