"""Disputes: recorded as Stripe shows them, and frozen, divided and answered once."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from chaos.checks.arithmetic import commission_of, losses_of
from chaos.checks.registry import check, events_of, facts_of, operation_of, payment_id_of
from chaos.evidence import Evidence, Row
from marketplace.payments.v1 import disputes_pb2

_OUTCOMES = {"won": "WON", "lost": "LOST", "warning_closed": "CLOSED"}


def _moved(dispute: Row) -> tuple[int, int, int]:
    """What Stripe took over a dispute and gave back of it, in its currency, and its fee."""
    taken = back = fee = 0
    for line in dispute["balance_transactions"]:
        # If Stripe converts, it takes the disputed amount, and returns the same.
        same = line["currency"] == dispute["currency"]
        part = abs(line["amount"]) if same else dispute["amount"]
        taken += part if line["amount"] < 0 else 0
        back += part if line["amount"] > 0 else 0
        fee += line["fee"]
    return taken, back, fee


def _is_inquiry(dispute: Row) -> bool:
    return str(dispute["status"]).startswith("warning_")


@check
def disputes_are_as_at_stripe(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Each on record, with what was taken, returned, charged and lost: all of it, or nothing."""
    ours = {row["dispute_id"]: row for row in evidence.disputes}
    for dispute in evidence.stripe_disputes:
        payment_id = payment_id_of(evidence, dispute["payment_intent"])
        row = ours.pop(dispute["id"], None)
        if row is None:
            yield f"{dispute['id']} is not on record", payment_id
            continue
        taken, back, fee = _moved(dispute)
        wanted: dict[str, Any] = {
            "payment_id": payment_id,
            "charge_id": dispute["charge"],
            "status": dispute["status"],
            "stage": "INQUIRY" if _is_inquiry(dispute) else "CHARGEBACK",
            "outcome": _OUTCOMES.get(dispute["status"], "OPEN"),
            "amount": dispute["amount"],
            "withdrawn": taken,
            "reinstated": back,
            "lost": taken - back if dispute["status"] == "lost" else 0,
            "fee": fee,
            "has_evidence": dispute["evidence_details"]["has_evidence"],
            "submission_count": dispute["evidence_details"]["submission_count"],
            "operation_id": "",
        }
        for name, value in wanted.items():
            if row[name] != value:
                yield f"{dispute['id']}: {name} is {row[name]}, not {value}", payment_id
    for row in ours.values():
        yield f"{row['dispute_id']} is on our side alone", row["payment_id"]


@check
def losses_are_divided_right(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Held money first, then what was captured, by the commission's rule; in facts, amounts and
    postings. What it took is what is on the dispute's and on the payment's row."""
    bodies = {
        (event["payment_id"], event["sequence"]): json.loads(event["body"])
        for event in evidence.events
    }
    payments = {row["payment_id"]: row for row in evidence.payments}
    posted: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for row in evidence.postings:
        if row["payment_id"]:
            posted[row["payment_id"], row["sequence"]][row["account"]] += row["minor_units"]
    of_dispute: Counter[str] = Counter()
    of_payment: Counter[tuple[str, str]] = Counter()
    for loss in losses_of(evidence):
        payment = payments[loss.payment_id]
        of_dispute[loss.dispute_id] += loss.amount
        of_payment[loss.payment_id, "lost_held"] += loss.held
        of_payment[loss.payment_id, "lost"] += loss.captured
        body, former = (bodies.get((loss.payment_id, loss.sequence - n), {}) for n in (0, 1))
        wanted = {
            "from_payable": loss.owed,
            "from_escrow": loss.held,
            "commission": loss.commission,
            "expert_amount": loss.expert,
            "beyond": loss.beyond,
        }
        found = {name: body["facts"].get(name) for name in wanted}
        if found != wanted:
            yield f"the loss of {loss.amount} is divided {found}, not {wanted}", loss.payment_id
        before, after = former["amounts"], body["amounts"]
        net = (
            after["captured"]
            - after["refunded_after_capture"]
            - of_payment[loss.payment_id, "lost"]
        )
        rate = payment["commission_basis_points"]
        moved = {
            "held": before["held"] - loss.held,
            "lost": before["lost"] + loss.held + loss.captured,
            "net_commission": commission_of(net, rate, loss.currency),
        }
        stands = {**before, **moved}
        if {name: after[name] for name in moved} != moved or after["captured"] != stands[
            "captured"
        ]:
            yield (
                f"after a loss of {loss.amount} it stands at {after}, not {stands}",
                loss.payment_id,
            )
        lines = {
            f"client_payable:{loss.payment_id}": loss.owed,
            f"escrow:{loss.payment_id}": loss.held,
            "commission": loss.commission,
            f"expert_debt:{payment['expert_id']}": loss.expert,
            "losses": loss.beyond,
            f"dispute_hold:{loss.payment_id}": -loss.amount,
        }
        lines = {account: sum_ for account, sum_ in lines.items() if sum_}
        if dict(posted[loss.payment_id, loss.sequence]) != lines:
            booked = dict(posted[loss.payment_id, loss.sequence])
            yield f"a loss is booked {booked}, not {lines}", loss.payment_id
    for row in evidence.disputes:
        if row["lost"] != of_dispute[row["dispute_id"]]:
            what = f"{row['dispute_id']} lost {row['lost']}, events {of_dispute[row['dispute_id']]}"
            yield what, row["payment_id"]
    for payment in evidence.payments:
        for name in ("lost_held", "lost"):
            if payment[name] != of_payment[payment["payment_id"], name]:
                right = of_payment[payment["payment_id"], name]
                yield f"{name} is {payment[name]}, not {right}", payment["payment_id"]


@check
def contested_money_is_on_the_books(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What the bank holds undecided is in the dispute hold account, and every fee is a fee."""
    sums: Counter[tuple[str, str]] = Counter()
    for row in evidence.postings:
        if row["account"].startswith(("dispute_hold:", "dispute_fee")):
            sums[row["account"], row["currency"].strip()] += row["minor_units"]
    wanted: Counter[tuple[str, str]] = Counter()
    for dispute in evidence.stripe_disputes:
        taken, back, _ = _moved(dispute)
        if dispute["status"] not in _OUTCOMES:
            payment_id = payment_id_of(evidence, dispute["payment_intent"])
            wanted[f"dispute_hold:{payment_id}", dispute["currency"].upper()] += taken - back
        for line in dispute["balance_transactions"]:
            wanted["dispute_fee", line["currency"].upper()] += line["fee"]
    booked = {row["balance_transaction_id"] for row in evidence.postings}
    for _, line in evidence.lines:
        if (
            line.get("source", "") is None and line["id"] in booked
        ):  # The fee for countering a dispute.
            wanted["dispute_fee", line["currency"].upper()] -= line["net"]
    for account, currency in sums.keys() | wanted.keys():
        total, due = sums[account, currency], wanted[account, currency]
        if total != due:
            yield (
                f"{account} stands at {total} {currency}, not at {due}",
                account.partition(":")[2],
            )


@check
def what_is_contested_is_frozen(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """At rest a payment is frozen by the strictest dispute or warning that is open at Stripe."""
    frozen: dict[str, tuple[str, str]] = {}
    released = {
        facts_of(event).get("warning_id")
        for event in evidence.events
        if event["kind"] == "payment.fraud_warning_dismissed"
    }
    for warning in evidence.fraud_warnings:  # The newest first.
        intent = warning["payment_intent"]
        if warning["actionable"] and intent not in frozen:
            held = warning["id"] not in released
            frozen[intent] = ("FRAUD_WARNING", warning["id"]) if held else ("NONE", "")
    for is_inquiry in (True, False):
        for dispute in evidence.stripe_disputes:
            if dispute["status"] not in _OUTCOMES and _is_inquiry(dispute) == is_inquiry:
                stage = "INQUIRY" if is_inquiry else "CHARGEBACK"
                frozen[dispute["payment_intent"]] = (stage, dispute["id"])
    for payment in evidence.payments:
        wanted = frozen.get(payment["payment_intent_id"], ("NONE", ""))
        if payment["state"] in ("CANCELED", "EXPIRED"):
            wanted = ("NONE", "")  # Nothing is left that could be kept from being captured.
        if (payment["frozen"], payment["frozen_by"]) != wanted:
            is_ = f"{payment['frozen']} by {payment['frozen_by']}"
            yield f"is frozen {is_}; Stripe shows {wanted}", payment["payment_id"]


@check
def nothing_begins_while_frozen(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Between the events that open and end a dispute, no capture begins, and in a chargeback no
    refund. What was begun before may end."""
    for payment_id, events in events_of(evidence).items():
        stages: dict[str, str] = {}
        warning, was_disputed = "", False
        for event in events:
            kind, facts = event["kind"].removeprefix("payment."), facts_of(event)
            if kind in ("dispute_opened", "dispute_escalated"):
                stages[facts["dispute_id"]] = facts["stage"]
                was_disputed = True
            elif kind in ("dispute_won", "dispute_lost", "dispute_closed"):
                stages.pop(facts["dispute_id"], None)
            elif kind == "fraud_warning" and not was_disputed and not _is_over(event):
                warning = facts["warning_id"]
            elif kind in ("fraud_warning_over", "fraud_warning_dismissed"):
                warning = ""
            elif kind == "capture_started" and (stages or warning):
                by = ", ".join([*stages, *([warning] if warning else [])])
                yield f"event {event['sequence']} begins a capture in spite of {by}", payment_id
            elif kind == "refund_started" and "CHARGEBACK" in stages.values():
                by = ", ".join(stages)
                yield f"event {event['sequence']} begins a refund in spite of {by}", payment_id


def _is_over(event: Row) -> bool:
    """Returns whether all was refunded, so that a warning has no effect any more."""
    amounts = json.loads(event["body"])["amounts"]
    back = amounts["refunded_after_capture"] + amounts.get("refunded_from_escrow", 0)
    return bool(amounts.get("charged")) and back >= amounts["charged"]


def _words_of(evidence: Evidence, operation: Row) -> dict[str, str]:
    """Returns the evidence of an answer. A settled operation keeps no words: its call has them."""
    kept: dict[str, str] = operation["payload"]["evidence"]
    keys = {
        row["key"]
        for row in evidence.idempotency_keys
        if row.get("operation_id") == operation["operation_id"]
    }
    for entry in evidence.history.entries:
        # A call with other words under the same key was refused.
        if entry.rpc == "SubmitEvidence" and entry.key in keys and entry.code != "ALREADY_EXISTS":
            given = disputes_pb2.SubmitEvidenceRequest.FromString(entry.request).evidence
            return {field.name: str(value) for field, value in given.ListFields()}
    return kept


@check
def evidence_is_given_once(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Each answer at Stripe is one of ours, on its dispute, word for word, and none is missing."""
    operations = {row["operation_id"]: row for row in evidence.operations}
    kinds = {
        "evidence_submitted": ("submit_evidence", True),
        "evidence_staged": ("submit_evidence", False),
        "dispute_accepted": ("accept_dispute", None),
    }
    submitted: Counter[str] = Counter()
    said: dict[str, Row] = {}
    for effect in evidence.effects:
        if effect["kind"] not in kinds:
            continue
        what = f"{effect['kind']} of {effect['object']}"
        payment_id = payment_id_of(evidence, effect["payment_intent"])
        operation = operations.get(operation_of(effect))
        if operation is None:
            yield f"{what} is no operation of ours", payment_id
            continue
        kind = (operation["kind"], operation["payload"].get("submit"))
        if kind != kinds[effect["kind"]] or operation["dispute_id"] != effect["object"]:
            yield f"{what} by {kind} of {operation['dispute_id']}", payment_id
        if effect["kind"] == "dispute_accepted":
            continue
        submitted[effect["object"]] += effect["kind"] == "evidence_submitted"
        said[effect["object"]] = {
            **said.get(effect["object"], {}),
            **_words_of(evidence, operation),
        }
    for dispute in evidence.stripe_disputes:
        payment_id = payment_id_of(evidence, dispute["payment_intent"])
        count = dispute["evidence_details"]["submission_count"]
        if count != submitted[dispute["id"]]:
            what = f"{dispute['id']} was answered {count} times, by us {submitted[dispute['id']]}"
            yield what, payment_id
        shown = {name: text for name, text in dispute["evidence"].items() if text}
        if shown != said.get(dispute["id"], {}):
            yield (
                f"{dispute['id']} was told {sorted(shown)}, which is not what was said",
                payment_id,
            )
