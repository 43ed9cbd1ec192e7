"""Disputes: a cardholder takes a payment back through the bank, or the bank asks about one first.

A chargeback takes the disputed amount and a fee from the platform at once, and gives the amount
back if evidence wins. Evidence against a chargeback costs a second fee, which a win gives back. An
inquiry (its statuses begin with `warning_`) takes nothing; it is closed, or escalated into a
chargeback, which stays the same dispute (our guess). A hold cannot be disputed.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

from stripe_simulator import early_fraud_warnings
from stripe_simulator.balance import settle
from stripe_simulator.dispute_schemas import EVIDENCE_NAMES
from stripe_simulator.errors import refused
from stripe_simulator.events import emit
from stripe_simulator.rendering import plain
from stripe_simulator.simulation import Call, Simulation, merged_metadata
from stripe_simulator.store import Row

DAY = 86_400
# An inquiry that nobody escalates is over after so long (Stripe's page on how disputes work).
INQUIRY_DAYS = 120
EVIDENCE_CHARACTERS = 150_000

# The networks' own codes for the commonest reasons; other reasons show none.
NETWORK_REASON_CODES = {
    ("visa", "fraudulent"): "10.4",
    ("visa", "duplicate"): "12.6.1",
    ("visa", "product_not_received"): "13.1",
    ("visa", "product_unacceptable"): "13.3",
    ("visa", "credit_not_processed"): "13.6",
    ("mastercard", "fraudulent"): "4837",
    ("mastercard", "duplicate"): "4834",
    ("mastercard", "product_not_received"): "4853",
    ("mastercard", "product_unacceptable"): "4853",
    ("mastercard", "credit_not_processed"): "4853",
}

INQUIRY = ("warning_needs_response", "warning_under_review")
CHARGEBACK = ("needs_response", "under_review")
APPEALED = "appeal_under_review"
UNDER_REVIEW = {
    "needs_response": "under_review",
    "warning_needs_response": "warning_under_review",
}
# What the bank decides if `uncategorized_text` is one of these (docs.stripe.com/testing), for a
# chargeback and for an inquiry. An inquiry has nothing that could be won or lost: both close it
# (our guess). Any other text leaves the decision to the control API.
VERDICTS = {
    "winning_evidence": {"under_review": "win", "warning_under_review": "close_warning"},
    "losing_evidence": {"under_review": "lose", "warning_under_review": "close_warning"},
    "escalate_inquiry_evidence": {"warning_under_review": "escalate"},
}


def register(simulation: Simulation) -> None:
    simulation.due_handlers["dispute"] = lambda id_: _time_has_come(simulation, id_)
    simulation.on_rebuild.append(lambda: _schedule_all(simulation))
    _schedule_all(simulation)


def _schedule_all(simulation: Simulation) -> None:
    for dispute in simulation.store.all("dispute"):
        if dispute["_next_at"] is not None:
            simulation.schedule(dispute["_next_at"], "dispute", dispute["id"])


def _change(simulation: Simulation, dispute: Row, next_at: int | None, **changes: Any) -> Row:
    """Change a dispute, and note when the clock will next have something to do with it."""
    if next_at is not None:
        simulation.schedule(next_at, "dispute", dispute["id"])
    return simulation.store.change("dispute", dispute["id"], _next_at=next_at, **changes)


def _time_has_come(simulation: Simulation, id_: str) -> None:
    dispute = simulation.store.get("dispute", id_)
    if dispute is None or dispute["_next_at"] is None or dispute["_next_at"] > simulation.now():
        return
    unanswered = "lose" if dispute["status"] in CHARGEBACK else "close_warning"
    OUTCOMES[dispute["_verdict"] or unanswered](simulation, dispute)


def _due_by(simulation: Simulation) -> int:
    """The last second of the last day, in UTC, as in every example of Stripe's."""
    days = simulation.now() // DAY + simulation.settings.dispute_response_days
    return days * DAY + DAY - 1


def begin(simulation: Simulation, charge: Row, amount: int, reason: str, *, inquiry: bool) -> Row:
    """The bank reports a dispute of a captured charge; `amount` is in the charge's currency."""
    card = charge["payment_method_details"]["card"]
    code = NETWORK_REASON_CODES.get((card["brand"], reason))
    due_by = _due_by(simulation)
    dispute = simulation.store.insert(
        "dispute",
        {
            "id": simulation.new_id("dp_1"),
            "object": "dispute",
            "amount": amount,
            "charge": charge["id"],
            "created": simulation.now(),
            "currency": charge["currency"],
            "enhanced_eligibility_types": [],
            "evidence": {**dict.fromkeys(EVIDENCE_NAMES), "enhanced_evidence": {}},
            "evidence_details": {
                "due_by": due_by,
                "enhanced_eligibility": {},
                "has_evidence": False,
                "past_due": False,
                "submission_count": 0,
                "submission_method": "not_submitted",
            },
            "intended_submission_method": "manual",
            "is_charge_refundable": inquiry,
            "livemode": False,
            "metadata": {},
            "network_reason_code": code,
            "payment_intent": charge["payment_intent"],
            "payment_method_details": {
                "card": {
                    "brand": card["brand"],
                    "case_type": "inquiry" if inquiry else "chargeback",
                    "network": card["network"],
                    "network_reason_code": code,
                },
                "type": "card",
            },
            "reason": reason,
            "status": "warning_needs_response" if inquiry else "needs_response",
            "_account": charge["_account"],
            # Ids of the balance transactions: what was withdrawn, then what was reinstated.
            "_lines": [],
            # What countering it has cost, in the settlement currency.
            "_countered_fee": 0,
            "_verdict": None,
            "_next_at": None,
        },
    )
    charge = simulation.store.change("charge", charge["id"], disputed=True)
    next_at = _inquiry_ends(dispute) if inquiry else due_by
    lines = [] if inquiry else [_withdraw(simulation, dispute, charge)]
    dispute = _change(simulation, dispute, next_at, _lines=lines)
    _effect(simulation, "dispute_opened", dispute)
    emit(simulation, "charge.dispute.created", dispute)
    if lines:
        emit(simulation, "charge.dispute.funds_withdrawn", dispute)
    early_fraud_warnings.reconsider(simulation, charge)
    return dispute


def _inquiry_ends(dispute: Row) -> int:
    created: int = dispute["created"]
    return created + INQUIRY_DAYS * DAY


def _withdraw(simulation: Simulation, dispute: Row, charge: Row) -> str:
    """Take the amount and the fee from the platform; the id of the line."""
    # A refund that waits for the platform's money fails now.
    simulation.schedule(simulation.now(), "refund_funds", charge["id"])
    settled, currency, exchange_rate = settle(simulation, dispute["amount"], dispute["currency"])
    line = simulation.balances.record(
        dispute["_account"],
        "adjustment",
        dispute["id"],
        -settled,
        currency,
        available_on=charge["_available_on"],
        fee_details=_fee(simulation.settings.dispute_fee, currency),
        description=f"Chargeback withdrawal for {charge['id']}",
        exchange_rate=exchange_rate,
        reporting_category="dispute",
    )
    return str(line["id"])


def _reinstate(simulation: Simulation, dispute: Row) -> list[str]:
    """Give back what is still withdrawn, the fee only where the switch says so."""
    rows = [simulation.store.require("balance_transaction", id_) for id_ in dispute["_lines"]]
    taken = rows[0]
    withdrawn = -sum(row["amount"] for row in rows if row["currency"] == taken["currency"])
    fee = -taken["fee"] if simulation.settings.dispute_fee_returned else 0
    if withdrawn <= 0 and not fee:
        return []
    line = simulation.balances.record(
        dispute["_account"],
        "adjustment",
        dispute["id"],
        max(withdrawn, 0),
        taken["currency"],
        available_on=taken["available_on"],
        fee_details=_fee(fee, taken["currency"]),
        description=f"Chargeback reversal for {dispute['charge']}",
        exchange_rate=taken["exchange_rate"],
        reporting_category="dispute_reversal",
    )
    return [str(line["id"])]


def adjust(simulation: Simulation, dispute: Row, amount: int, currency: str | None) -> Row:
    """Add a further line, as Stripe does for a currency conversion; negative takes.

    Stripe documents two lines at most, and users report more. Which event tells of one is our
    guess.
    """
    if not dispute["_lines"]:
        raise ValueError("the dispute has withdrawn nothing yet")
    first = simulation.store.require("balance_transaction", dispute["_lines"][0])
    line = simulation.balances.record(
        dispute["_account"],
        "adjustment",
        dispute["id"],
        amount,
        currency or first["currency"],
        available_on=first["available_on"],
        description=f"Chargeback adjustment for {dispute['charge']}",
        reporting_category="dispute" if amount < 0 else "dispute_reversal",
    )
    lines = [*dispute["_lines"], str(line["id"])]
    changed = _change(simulation, dispute, dispute["_next_at"], _lines=lines)
    _effect(simulation, "dispute_adjusted", changed)
    moved = "withdrawn" if amount < 0 else "reinstated"
    emit(simulation, f"charge.dispute.funds_{moved}", changed)
    return changed


def _countered_fee(simulation: Simulation, dispute: Row, amount: int) -> None:
    """Take the fee for countering a dispute, or give it back: a line with neither source nor fee.

    It is not among the dispute's own lines, and only its description says what it is. How Stripe
    words the return is our guess.
    """
    if not amount:
        return
    taken = simulation.store.require("balance_transaction", dispute["_lines"][0])
    day = datetime.datetime.fromtimestamp(simulation.now(), datetime.UTC).date()
    returned = "" if amount > 0 else "Reversal "
    simulation.balances.record(
        dispute["_account"],
        "adjustment",
        None,
        -amount,
        taken["currency"],
        description=f"Card Dispute Countered Fee {returned}({day})",
        reporting_category="fee",
    )


def _fee(amount: int, currency: str) -> list[dict[str, Any]]:
    if amount == 0:
        return []
    return [
        {
            "amount": amount,
            "application": None,
            "currency": currency,
            "description": "Dispute fee",
            "type": "stripe_fee",
        }
    ]


def _effect(simulation: Simulation, kind: str, dispute: Row) -> None:
    simulation.effect(
        kind,
        dispute["id"],
        payment_intent=dispute["payment_intent"],
        amount=dispute["amount"],
        currency=dispute["currency"],
        metadata=dispute["metadata"],
    )


def _emit_updated(simulation: Simulation, before: Row, dispute: Row) -> None:
    shown = plain(simulation, dispute)
    previous = {
        name: value
        for name, value in plain(simulation, before).items()
        if name not in ("evidence", "evidence_details") and shown[name] != value
    }
    # Of the nested hashes Stripe names only the fields that changed.
    for name in ("evidence", "evidence_details"):
        inner = {key: old for key, old in before[name].items() if shown[name][key] != old}
        if inner:
            previous[name] = inner
    emit(simulation, "charge.dispute.updated", dispute, previous)


# What the bank does ------------------------------------------------------------------------------


def _require_status(dispute: Row, statuses: tuple[str, ...]) -> None:
    if dispute["status"] not in statuses:
        raise refused(
            f"This dispute has a status of {dispute['status']}. Only a dispute with one of the "
            f"following statuses can do this: {', '.join(statuses)}."
        )


def escalate(simulation: Simulation, dispute: Row) -> Row:
    """An inquiry becomes a chargeback, to be answered anew; `submission_count` goes on."""
    _require_status(dispute, INQUIRY)
    charge = simulation.store.require("charge", dispute["charge"])
    due_by = _due_by(simulation)
    details = dispute["payment_method_details"]
    changed = _change(
        simulation,
        dispute,
        due_by,
        evidence_details={**dispute["evidence_details"], "due_by": due_by},
        is_charge_refundable=False,
        payment_method_details={**details, "card": {**details["card"], "case_type": "chargeback"}},
        status="needs_response",
        _lines=[_withdraw(simulation, dispute, charge)],
        _verdict=None,
    )
    _effect(simulation, "dispute_escalated", changed)
    _emit_updated(simulation, dispute, changed)
    emit(simulation, "charge.dispute.funds_withdrawn", changed)
    return changed


def win(simulation: Simulation, dispute: Row) -> Row:
    """The money comes back, and the charge can be refunded again (the latter is our guess)."""
    _require_status(dispute, (*CHARGEBACK, APPEALED))
    reinstated = _reinstate(simulation, dispute)
    _countered_fee(simulation, dispute, -dispute["_countered_fee"])
    changed = _change(
        simulation,
        dispute,
        None,
        is_charge_refundable=True,
        status="won",
        _lines=[*dispute["_lines"], *reinstated],
        _countered_fee=0,
    )
    _effect(simulation, "dispute_won", changed)
    _emit_updated(simulation, dispute, changed)
    if reinstated:
        emit(simulation, "charge.dispute.funds_reinstated", changed)
    emit(simulation, "charge.dispute.closed", changed)
    return changed


def lose(simulation: Simulation, dispute: Row) -> Row:
    _require_status(dispute, (*CHARGEBACK, APPEALED))
    return _close(simulation, dispute, "lost", "dispute_lost")


def appeal(simulation: Simulation, dispute: Row) -> Row:
    """Whoever was beaten has the bank look again; what was won is taken once more (our guess)."""
    _require_status(dispute, ("won", "lost"))
    lines = dispute["_lines"]
    if dispute["status"] == "won":
        charge = simulation.store.require("charge", dispute["charge"])
        lines = [*lines, _withdraw(simulation, dispute, charge)]
    changed = _change(
        simulation, dispute, None, is_charge_refundable=False, status=APPEALED, _lines=lines
    )
    _effect(simulation, "dispute_appealed", changed)
    _emit_updated(simulation, dispute, changed)
    if len(lines) > len(dispute["_lines"]):
        emit(simulation, "charge.dispute.funds_withdrawn", changed)
    return changed


def close_warning(simulation: Simulation, dispute: Row) -> Row:
    _require_status(dispute, INQUIRY)
    return _close(simulation, dispute, "warning_closed", "inquiry_closed")


def _close(simulation: Simulation, dispute: Row, status: str, effect: str) -> Row:
    dispute = _change(simulation, dispute, None, status=status)
    _effect(simulation, effect, dispute)
    emit(simulation, "charge.dispute.closed", dispute)
    return dispute


OUTCOMES: dict[str, Callable[[Simulation, Row], Row]] = {
    "escalate": escalate,
    "win": win,
    "lose": lose,
    "appeal": appeal,
    "close_warning": close_warning,
}


# What refunds have to know -----------------------------------------------------------------------


def _of_charge(simulation: Simulation, charge: str, statuses: tuple[str, ...]) -> list[Row]:
    rows = simulation.store.select("dispute", {"charge": charge})
    return [row for row in rows if row["status"] in statuses]


def is_charged_back(simulation: Simulation, charge: str) -> bool:
    return bool(_of_charge(simulation, charge, (*CHARGEBACK, APPEALED, "lost")))


def is_open(simulation: Simulation, charge: str) -> bool:
    return bool(_of_charge(simulation, charge, (*INQUIRY, *CHARGEBACK)))


def refunded_in_full(simulation: Simulation, charge: Row) -> None:
    """Nothing is left to ask about: an inquiry ends (that it does so at once is our guess)."""
    for dispute in _of_charge(simulation, charge["id"], INQUIRY):
        emptied = simulation.store.change("dispute", dispute["id"], is_charge_refundable=False)
        with simulation.unasked():
            close_warning(simulation, emptied)


# What the platform does --------------------------------------------------------------------------


def retrieve(call: Call) -> Row:
    return call.object("dispute", "dispute")


def update(call: Call) -> Row:
    """POST /v1/disputes/:id: evidence is submitted unless `submit=false` only stages it.

    Submission is final. That metadata alone submits nothing, though `submit` is documented to be
    true by default, is our guess.
    """
    simulation = call.simulation
    dispute = call.object("dispute", "dispute")
    given = call.get("evidence")
    submits = call.get("submit", given is not None)
    next_at = dispute["_next_at"]
    changes: dict[str, Any] = {}
    if "intended_submission_method" in call.params:
        changes["intended_submission_method"] = call.params["intended_submission_method"]
    if "metadata" in call.params:
        changes["metadata"] = merged_metadata(dispute["metadata"], call.params["metadata"])
    if given is not None or submits:
        if dispute["status"] not in UNDER_REVIEW:
            raise refused(
                f"This dispute has a status of {dispute['status']}, so that no evidence can be "
                "submitted for it any more."
            )
        evidence = {**dispute["evidence"], **(given or {})}
        texts = [evidence[name] for name in EVIDENCE_NAMES if evidence[name] is not None]
        if sum(map(len, texts)) > EVIDENCE_CHARACTERS:
            raise refused(
                "The combined character count of all evidence is limited to "
                f"{EVIDENCE_CHARACTERS:,}.",
                param="evidence",
            )
        changes["evidence"] = evidence
        changes["evidence_details"] = {**dispute["evidence_details"], "has_evidence": bool(texts)}
        if submits:
            if not texts:
                raise refused("There is no evidence that could be submitted.", param="evidence")
            next_at = _submitted(simulation, dispute, changes)
    changed = _change(simulation, dispute, next_at, **changes)
    if given is not None or submits:
        _effect(simulation, "evidence_submitted" if submits else "evidence_staged", changed)
    if changes:
        _emit_updated(simulation, dispute, changed)
    return changed


def _submitted(simulation: Simulation, dispute: Row, changes: dict[str, Any]) -> int | None:
    """Fill in what a submission changes; when the bank decides, if that is known."""
    details = changes["evidence_details"]
    details["past_due"] = simulation.now() > details["due_by"]
    details["submission_count"] += 1
    details["submission_method"] = "manual"
    if dispute["status"] == "needs_response":
        fee = simulation.settings.dispute_countered_fee
        _countered_fee(simulation, dispute, fee)
        changes["_countered_fee"] = fee
    status = changes["status"] = UNDER_REVIEW[dispute["status"]]
    text = (changes["evidence"]["uncategorized_text"] or "").strip()
    verdict = changes["_verdict"] = VERDICTS.get(text, {}).get(status)
    if verdict is not None:
        return simulation.now() + simulation.settings.dispute_review_seconds
    return _inquiry_ends(dispute) if status in INQUIRY else None


def close(call: Call) -> Row:
    """POST /v1/disputes/:id/close: the platform accepts the chargeback as lost."""
    dispute = call.object("dispute", "dispute")
    _require_status(dispute, ("needs_response",))
    return _close(call.simulation, dispute, "lost", "dispute_accepted")
