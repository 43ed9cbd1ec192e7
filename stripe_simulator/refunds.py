"""Refunds of captured charges, and what becomes of them later.

Cards refund at once; two test cards refund with an outcome that comes later, when the simulator's
clock reaches it. A refund that fails gives its amount back to the platform's balance and shows it
no longer as refunded on the charge (the latter is our guess).
"""

from __future__ import annotations

from typing import Any

from stripe_simulator import (
    application_fees,
    currencies,
    disputes,
    early_fraud_warnings,
    payment_methods,
    transfers,
)
from stripe_simulator.balance import settle
from stripe_simulator.errors import no_such, refused
from stripe_simulator.events import emit
from stripe_simulator.simulation import Call, Simulation, merged_metadata
from stripe_simulator.store import Row

DAY = 24 * 3_600


def register(simulation: Simulation) -> None:
    Waiting(simulation)


class Waiting:
    """The refunds whose outcome comes later: by time, or when the platform has the money."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        #: The refunds that wait for the platform's money.
        self._for_money: set[str] = set()
        simulation.due_handlers["refund_outcome"] = lambda id_: _outcome(simulation, id_)
        simulation.due_handlers["refund_waits"] = self._begin
        simulation.due_handlers["refund_funds"] = lambda _: self.pay()
        simulation.balances.on_line.append(self._money_came)
        simulation.on_rebuild.append(self.rebuild)
        self.rebuild()

    def rebuild(self) -> None:
        self._for_money.clear()
        for refund in self._simulation.store.all("refund"):
            if refund.get("_outcome_at") is not None:
                self._simulation.schedule(refund["_outcome_at"], "refund_outcome", refund["id"])
            if _waits_for_money(refund):
                self._begin(refund["id"])

    def _begin(self, id_: str) -> None:
        """Look again whenever money that is on its way becomes available."""
        refund = self._simulation.store.get("refund", id_)
        if refund is None or not _waits_for_money(refund):
            return
        self._for_money.add(id_)
        _, currency, _ = settle(self._simulation, refund["amount"], refund["currency"])
        for moment in self._simulation.balances.maturing(refund["_account"], currency):
            self._simulation.schedule(moment, "refund_funds", id_)

    def _money_came(self, line: Row) -> None:
        if self._for_money and line["_account"] == self._simulation.platform and line["net"] > 0:
            self._simulation.schedule(line["available_on"], "refund_funds", line["id"])

    def pay(self) -> None:
        """Pay the refunds that can be paid in full now, the oldest first."""
        simulation = self._simulation
        found = [simulation.store.get("refund", id_) for id_ in self._for_money]
        waiting = [refund for refund in found if refund is not None and _waits_for_money(refund)]
        self._for_money = {refund["id"] for refund in waiting}
        for refund in sorted(waiting, key=lambda one: int(one["_sequence"])):
            charge = simulation.store.require("charge", refund["charge"])
            if disputes.is_charged_back(simulation, charge["id"]):
                fail(simulation, refund, "charge_for_pending_refund_disputed")
            elif not _lacks_money(simulation, charge, refund["amount"]):
                line = _pay(simulation, charge, refund)
                simulation.store.change("refund", refund["id"], balance_transaction=line["id"])
                _succeed(simulation, refund["id"])


def _waits_for_money(refund: Row) -> bool:
    return refund["status"] == "pending" and refund["balance_transaction"] is None


def insert(
    simulation: Simulation,
    charge: Row,
    amount: int,
    reason: str | None,
    metadata: dict[str, str],
    **fields: Any,
) -> Row:
    return simulation.store.insert(
        "refund",
        {
            "id": simulation.new_id("re_3"),
            "object": "refund",
            "amount": amount,
            "balance_transaction": None,
            "charge": charge["id"],
            "created": simulation.now(),
            "currency": charge["currency"],
            "customer": None,
            "customer_account": None,
            "destination_details": {
                "card": {
                    "reference_status": "pending",
                    "reference_type": "acquirer_reference_number",
                    "type": "refund",
                },
                "type": "card",
            },
            "metadata": metadata,
            "payment_intent": charge["payment_intent"],
            "payment_method": charge["payment_method"],
            "reason": reason,
            "receipt_number": None,
            "source_transfer_reversal": None,
            "status": "succeeded",
            "transfer_reversal": None,
            "_account": charge["_account"],
            "_outcome_at": None,
            **fields,
        },
    )


def _charge_to_refund(call: Call) -> Row:
    store = call.simulation.store
    if "charge" in call.params:
        charge = store.get("charge", call.params["charge"])
        if charge is None or charge["_account"] != call.account:
            raise no_such("charge", call.params["charge"], "charge")
        return charge
    if "payment_intent" not in call.params:
        raise refused(
            "One of the following params should be provided for this request: payment_intent or "
            "charge.",
            code="parameter_missing",
        )
    id_ = call.params["payment_intent"]
    intent = store.get("payment_intent", id_)
    if intent is None or intent["_account"] != call.account:
        raise no_such("payment_intent", id_, "payment_intent")
    charge = store.get("charge", intent["latest_charge"]) if intent["latest_charge"] else None
    if charge is None or charge["status"] != "succeeded":
        raise refused(
            f"This PaymentIntent ({id_}) does not have a successful charge to refund.",
            code="charge_not_refundable",
        )
    return charge


def refundable(charge: Row) -> int:
    """What of a charge can still be refunded; the part never captured is no part of it."""
    remaining: int = charge["amount_captured"] - charge["amount_refunded"]
    return remaining


def create(call: Call) -> Row:
    """POST /v1/refunds."""
    simulation = call.simulation
    charge = _charge_to_refund(call)
    if charge["status"] != "succeeded" or not charge["captured"]:
        raise refused(
            f"Charge {charge['id']} has not been captured, so it cannot be refunded; cancel its "
            "PaymentIntent instead.",
            code="charge_not_refundable",
        )
    if disputes.is_charged_back(simulation, charge["id"]):
        raise refused(
            f"Charge {charge['id']} has been charged back; cannot issue a refund.",
            code="charge_disputed",
        )
    remaining = refundable(charge)
    amount = call.get("amount", remaining)
    if remaining == 0:
        raise refused(
            f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded"
        )
    currencies.check_step(amount, charge["currency"])
    if amount > remaining:
        raise refused(
            f"Refund amount ({currencies.formatted(amount, charge['currency'])}) is greater than "
            f"unrefunded amount on charge ({currencies.formatted(remaining, charge['currency'])})",
            param="amount",
        )
    transfer, taken_back = _transfer_share(call, charge, amount, amount == remaining)
    fee, fee_back = _fee_share(call, charge, amount, amount == remaining)
    if transfer is not None and taken_back:
        # The fee that goes back to the connected account helps to bear the reversal.
        transfers.check_reversible(simulation, transfer, taken_back - fee_back)
    refuses = simulation.settings.refund_on_low_balance == "refused"
    if refuses and _lacks_money(simulation, charge, amount):
        raise refused(
            "Insufficient funds in your Stripe balance to refund this amount.",
            message_code="insufficient_balance_for_refund",
        )
    return _refund(call, charge, amount, transfer, taken_back, fee, fee_back)


def _transfer_share(call: Call, charge: Row, amount: int, is_rest: bool) -> tuple[Row | None, int]:
    if not call.get("reverse_transfer"):
        return None, 0
    id_ = charge.get("transfer")
    if id_ is None:
        raise refused(
            f"Cannot reverse transfer on charge {charge['id']} because it does not have an "
            "associated transfer.",
            param="reverse_transfer",
        )
    transfer = call.simulation.store.require("transfer", id_)
    share = transfers.proportion(
        transfer["amount"], transfer["amount_reversed"], amount, charge["amount_captured"], is_rest
    )
    return transfer, share


def _fee_share(call: Call, charge: Row, amount: int, is_rest: bool) -> tuple[Row | None, int]:
    if not call.get("refund_application_fee"):
        return None, 0
    id_ = charge["application_fee"]
    if id_ is None:
        raise refused(
            f"Charge {charge['id']} does not have an application fee to refund.",
            param="refund_application_fee",
        )
    if not call.get("reverse_transfer"):
        raise refused(
            "You must set reverse_transfer to true when refunding the application fee of a charge "
            "created with transfer_data[destination].",
            param="refund_application_fee",
        )
    fee = call.simulation.store.require("application_fee", id_)
    share = transfers.proportion(
        fee["amount"], fee["amount_refunded"], amount, charge["amount_captured"], is_rest
    )
    return fee, share


def _refund(
    call: Call,
    charge: Row,
    amount: int,
    transfer: Row | None,
    taken_back: int,
    fee: Row | None,
    fee_back: int,
) -> Row:
    simulation = call.simulation
    store = simulation.store
    card = payment_methods.card_of(store.require("payment_method", charge["payment_method"]))
    metadata = merged_metadata({}, call.get("metadata") or {})
    refund = insert(simulation, charge, amount, call.get("reason"), metadata)
    id_ = refund["id"]
    changes: dict[str, Any] = {}
    wait = None
    if _lacks_money(simulation, charge, amount):
        changes.update(status="pending", pending_reason="insufficient_funds")
        wait = simulation.settings.refund_funds_days * DAY
        simulation.schedule(simulation.now(), "refund_waits", id_)
    else:
        changes["balance_transaction"] = _pay(simulation, charge, refund)["id"]
        if card.refund == "pending":
            changes.update(status="pending", pending_reason="processing")
        if card.refund != "succeeds":
            wait = simulation.settings.refund_outcome_seconds
    if wait is not None:
        changes["_outcome_at"] = simulation.now() + wait
        simulation.schedule(changes["_outcome_at"], "refund_outcome", id_)
    refunded = charge["amount_refunded"] + amount
    charge = store.change(
        "charge",
        charge["id"],
        amount_refunded=refunded,
        refunded=refunded == charge["amount_captured"],
    )
    simulation.effect(
        "refunded",
        id_,
        payment_intent=charge["payment_intent"],
        amount=amount,
        currency=charge["currency"],
        metadata=metadata,
    )
    refund = store.change("refund", id_, **changes)
    emit(simulation, "refund.created", refund)
    if fee is not None and fee_back:
        application_fees.give_back(simulation, fee, fee_back, {})
    if transfer is not None and taken_back:
        reversal, _ = transfers.reverse(simulation, transfer, taken_back, {}, source_refund=id_)
        refund = store.change("refund", id_, transfer_reversal=reversal["id"])
    emit(simulation, "charge.refunded", charge)
    if charge["refunded"]:
        disputes.refunded_in_full(simulation, charge)
        early_fraud_warnings.reconsider(simulation, charge)
    return refund


def _lacks_money(simulation: Simulation, charge: Row, amount: int) -> bool:
    """Whether the available balance cannot bear a refund. What is pending does not count."""
    settled, currency, _ = settle(simulation, amount, charge["currency"])
    return simulation.balances.available(charge["_account"], currency) < settled


def _pay(simulation: Simulation, charge: Row, refund: Row) -> Row:
    """Take a refund's money from the platform's available balance."""
    settled, currency, exchange_rate = settle(simulation, refund["amount"], charge["currency"])
    return simulation.balances.record(
        charge["_account"],
        "refund",
        refund["id"],
        -settled,
        currency,
        description=f"REFUND FOR CHARGE ({charge['description'] or ''})",
        exchange_rate=exchange_rate,
    )


def _expire(simulation: Simulation, refund: Row) -> None:
    """A refund that has waited too long for money is never paid."""
    charge = simulation.store.require("charge", refund["charge"])
    disputed = disputes.is_charged_back(simulation, charge["id"])
    fail(
        simulation,
        refund,
        "charge_for_pending_refund_disputed" if disputed else "insufficient_funds",
    )


def _succeed(simulation: Simulation, id_: str) -> None:
    refund = simulation.store.require("refund", id_)
    before = {"status": refund["status"], "pending_reason": refund["pending_reason"]}
    refund = simulation.store.change(
        "refund", id_, status="succeeded", pending_reason=None, _outcome_at=None
    )
    simulation.effect(
        "refund_succeeded",
        id_,
        payment_intent=refund["payment_intent"],
        amount=refund["amount"],
        currency=refund["currency"],
    )
    emit(simulation, "refund.updated", refund, before)


def _outcome(simulation: Simulation, id_: str) -> None:
    """The later outcome of a test card's refund: pending succeeds, succeeded fails."""
    refund = simulation.store.get("refund", id_)
    if refund is None or refund.get("_outcome_at") is None:
        return
    if refund["balance_transaction"] is None:
        _expire(simulation, refund)
    elif refund["status"] == "pending":
        _succeed(simulation, id_)
    else:
        fail(simulation, refund, "expired_or_canceled_card")


def fail(simulation: Simulation, refund: Row, reason: str) -> Row:
    """The bank gave a refund back, or a refund that waited will never be paid."""
    refund = _undo(simulation, refund, "refund_failed", status="failed", failure_reason=reason)
    emit(simulation, "refund.failed", refund)
    return refund


def cancel_in_dashboard(simulation: Simulation, refund: Row) -> Row:
    """A person stopped a card's refund, which the API cannot; no event calls it a failure.

    The refund itself does: "cancellations are a type of refund failure" (docs: refunds).
    """
    changes = {"status": "canceled", "failure_reason": "merchant_request"}
    return _undo(simulation, refund, "refund_canceled", **changes)


def _undo(simulation: Simulation, refund: Row, effect: str, **changes: Any) -> Row:
    """Give back what a refund took, if it took anything yet."""
    store = simulation.store
    id_ = refund["id"]
    if refund["balance_transaction"] is not None:
        original = store.require("balance_transaction", refund["balance_transaction"])
        line = simulation.balances.record(
            refund["_account"],
            "refund_failure",
            id_,
            -original["amount"],
            original["currency"],
            available_on=original["available_on"],
            exchange_rate=original["exchange_rate"],
        )
        changes["failure_balance_transaction"] = line["id"]
    before = {name: refund.get(name) for name in changes}
    refund = store.change("refund", id_, pending_reason=None, _outcome_at=None, **changes)
    charge = store.require("charge", refund["charge"])
    charge = store.change(
        "charge",
        charge["id"],
        amount_refunded=charge["amount_refunded"] - refund["amount"],
        refunded=False,
    )
    simulation.effect(
        effect,
        id_,
        payment_intent=refund["payment_intent"],
        amount=refund["amount"],
        currency=refund["currency"],
        metadata=refund["metadata"],
    )
    emit(simulation, "refund.updated", refund, before)
    early_fraud_warnings.reconsider(simulation, charge)
    return refund


def retrieve(call: Call) -> Row:
    return call.object("refund", "refund")


def update(call: Call) -> Row:
    """POST /v1/refunds/:id: only metadata changes."""
    simulation = call.simulation
    refund = call.object("refund", "refund")
    if "metadata" not in call.params:
        return refund
    before = {"metadata": refund["metadata"]}
    metadata = merged_metadata(refund["metadata"], call.params["metadata"])
    refund = simulation.store.change("refund", refund["id"], metadata=metadata)
    emit(simulation, "refund.updated", refund, before)
    return refund


def cancel(call: Call) -> Row:
    """POST /v1/refunds/:id/cancel: only what waits for the customer can be; cards never do."""
    refund = call.object("refund", "refund")
    raise refused(
        f"Refund {refund['id']} has a status of {refund['status']} and cannot be canceled. Only "
        "refunds with a status of requires_action can be canceled.",
        code="refund_not_cancelable",
    )
