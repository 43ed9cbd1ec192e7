"""The sentence of each event of the trail.

A sentence is a template over the event's facts. ``{name}`` is a fact; amounts are written as money.
A part in ``[…]`` is left out if one of its facts is absent, empty or zero. An event of a newer
release, or one whose body was altered, still gets a sentence: nothing here raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from payment_service.domain.money import Money
from payment_service.domain.ports.records import StoredEvent
from payment_service.domain.state_machine import EventKind
from payment_service.domain.texts import texts_to_show

#: Stands for a fact that the event should have and does not.
NOT_KNOWN: Final = "(not known)"

_K = EventKind
SENTENCES: Final[Mapping[EventKind, str]] = {
    _K.INITIATED: "The payment of {amount} was initiated[ for “{description}”].",
    _K.INTENT_CREATED: "Stripe knows the payment as {payment_intent_id}. The client can pay now.",
    _K.CREATION_REFUSED: "The payment was not created at Stripe ({code}). It is canceled.",
    _K.ATTEMPT_FAILED: (
        "The client tried to pay, and it failed ({code}[, {decline_code}]). The client may try "
        "again."
    ),
    _K.ATTEMPT_RESTARTED: "The client tries to pay again.",
    _K.AUTHORIZED: (
        "The client's bank has reserved {held} on the card[ (charge {charge_id})]. Nothing was "
        "taken yet."
    ),
    _K.EXPIRE_TIME_KNOWN: "Stripe says until when the money can be held[: {expire_time}].",
    _K.CAPTURE_STARTED: (
        "A capture of {amount} was begun[; {debt_offset} of it pays the expert's debt]."
        "[ Notes: “{notes}”.]"
    ),
    _K.CAPTURE_REFUSED: "The capture was refused ({code}). Everything is as before it.",
    _K.CAPTURED: (
        "{amount} was captured: {commission} is commission and the remainder is the expert's"
        "[, less {debt_offset} that pays the expert's debt]"
        "[. {released} was released to the client]"
        "[ (charge {charge_id})][ (transfer {transfer_id})]."
    ),
    _K.CAPTURED_OUT_OF_BAND: (
        "Somebody captured {amount} at Stripe, not by this service; {commission} is commission"
        "[ (charge {charge_id})][ (transfer {transfer_id})]."
    ),
    _K.CAPTURE_ABANDONED: (
        "The capture was abandoned. It had no effect at Stripe.[ Reason: “{reason}”.]"
    ),
    _K.CHARGED: (
        "The card was charged {amount}. The platform holds the money[ (charge {charge_id})]."
        "[ {released} was released to the client.]"
    ),
    _K.CHARGED_OUT_OF_BAND: (
        "Somebody charged the card {amount} at Stripe, not by this service[ (charge {charge_id})]. "
        "The platform holds the money."
    ),
    _K.PROMOTE_STARTED: "The card is to be charged {amount}, so that the hold does not expire.",
    _K.PROMOTE_REFUSED: "The charge ahead of the deadline was refused ({code}).",
    _K.TRANSFERRED_OUT_OF_BAND: (
        "Somebody sent {amount} to the expert at Stripe, not by this service ({transfer_id}). It "
        "is the platform's loss until an operator decides."
    ),
    _K.DEADLINE_NEAR: "A deadline is near: {deadline} at {time}. The action then: {action}.",
    _K.DEADLINE_PASSED: (
        "A deadline has passed: {deadline} at {time}.[ The action was refused: {refused}.]"
    ),
    _K.CANCEL_STARTED: "A cancellation was begun.[ Reason: “{reason}”.]",
    _K.CANCEL_REFUSED: "The cancellation was refused ({code}). Everything is as before it.",
    _K.CANCELED: "The payment was canceled ({reason}).[ {released} was released to the client.]",
    _K.EXPIRED: "The payment expired ({reason}).[ {released} was released to the client.]",
    _K.REFUND_STARTED: (
        "A refund of {amount} was begun[: {from_payable} of what a failed refund left payable]"
        "[, {from_escrow} out of escrow][, {commission} of commission]"
        "[, {expert_amount} of the expert's part].[ Reason: “{reason}”.]"
    ),
    _K.REFUND_REFUSED: "The refund was refused ({code}). Everything is as before it.",
    _K.REFUND_ACCEPTED: (
        "Stripe has accepted the refund of {amount} ({refund_id}) and pays it when the platform's "
        "balance covers it."
    ),
    _K.PENDING_REFUND_FAILED: (
        "Stripe will not pay the refund of {amount} ({code}). The client is still owed it."
    ),
    _K.CLIENT_REFUNDED: (
        "{amount} went back to the client ({refund_id})[: {from_payable} was payable before]"
        "[, {from_pending} waited for funds][, {from_escrow} out of escrow]"
        "[, {commission} out of commission][, {expert_amount} of the expert's part]."
    ),
    _K.TRANSFER_REVERSED: "{amount} was taken back from the expert ({reversal_id}).",
    _K.EXPERT_DEBT_RECORDED: (
        "{amount} could not be taken back from the expert[ ({code})]. The expert owes it."
    ),
    _K.DEBT_COLLECTED: "{amount} of the expert's debt was collected ({reversal_id}).",
    _K.REFUNDED_OUT_OF_BAND: (
        "Somebody refunded {amount} at Stripe, not by this service ({refund_id})[; {expert_amount} "
        "of it is the platform's loss until an operator decides]."
    ),
    _K.REVERSED_OUT_OF_BAND: (
        "Somebody took {amount} back from the expert at Stripe, not by this service "
        "({reversal_id})."
    ),
    _K.FEE_REFUNDED_OUT_OF_BAND: (
        "Somebody paid {amount} of the commission back to the expert at Stripe, not by this "
        "service ({fee_refund_id})."
    ),
    _K.REFUND_FAILED: (
        "The refund of {amount} came back from the client's bank ({refund_id}). The client is "
        "owed it again."
    ),
    _K.REFUND_FAILED_UNBOOKED: (
        "A refund of {amount} was sent and came back before it was on the books ({refund_id})."
    ),
    _K.CLIENT_REPAID: "The client was paid {amount} again after a failed refund ({refund_id}).",
    _K.REPAYMENT_DUE: (
        "A repayment of {amount} to the client was recorded. It waits for an operator."
    ),
    _K.REPAYMENT_ABANDONED: "The repayment was abandoned.[ Reason: “{reason}”.]",
    _K.CLIENT_PAYABLE_SETTLED: (
        "{amount} that the client was owed is settled outside of Stripe.[ Reason: “{reason}”.]"
    ),
    _K.PROCESSOR_FEE: "Stripe's fee is known: {fee}.",
    _K.DISPUTE_OPENED: (
        "The client's bank has opened a dispute about {disputed} ({dispute_id}, {reason})."
    ),
    _K.DISPUTE_ESCALATED: "The inquiry {dispute_id} became a chargeback of {disputed}.",
    _K.DISPUTE_UPDATED: "The dispute {dispute_id} changed: {status}.",
    _K.DISPUTE_FUNDS_WITHDRAWN: (
        "Stripe took {amount} from the platform for the dispute {dispute_id}[, and a fee of {fee}]."
    ),
    _K.DISPUTE_FUNDS_REINSTATED: (
        "Stripe gave {amount} back to the platform for the dispute {dispute_id}."
        "[ {after_loss} of it was written off before.]"
    ),
    _K.DISPUTE_WON: "The dispute {dispute_id} was won.",
    _K.DISPUTE_LOST: (
        "The dispute {dispute_id} was lost: {amount}[, {from_payable} of what was payable to the "
        "client][, {from_escrow} out of escrow][, {commission} out of commission]"
        "[, {expert_amount} of the expert's part][, {beyond} as the platform's loss]."
    ),
    _K.DISPUTE_CLOSED: "The inquiry {dispute_id} was closed. Nothing was taken.",
    _K.DISPUTE_ANSWER_STARTED: "An answer to the dispute {dispute_id} was begun[ ({answer})].",
    _K.DISPUTE_ANSWER_REFUSED: "The answer to the dispute {dispute_id} was refused[ ({code})].",
    _K.FRAUD_WARNING: (
        "The card's issuer warns of fraud ({warning_id}[, {fraud_type}]). The payment may be "
        "frozen."
    ),
    _K.FRAUD_WARNING_OVER: "The fraud warning {warning_id} freezes the payment no more, or anew.",
    _K.FRAUD_WARNING_DISMISSED: (
        "An operator has dismissed the fraud warning {warning_id}.[ Reason: “{reason}”.]"
    ),
    _K.REVIEW_OPENED: "Stripe reviews the charge ({review_id}). It cannot be captured meanwhile.",
    _K.REVIEW_CLOSED: "Stripe's review {review_id} is closed.",
    _K.WAITING_CHANGED: (
        "What the payment waits for has changed[: the {waiting_for}][ ({waiting_reason})][; {why}]."
    ),
    _K.ADJUSTED: (
        "Two people corrected the books ({adjustment_id}, ticket {ticket}), proposed by "
        "{proposed_by}.[ Reason: “{reason}”.]"
    ),
}

#: The facts that are amounts in minor units.
_AMOUNTS: Final = (
    *("amount", "held", "commission", "expert_amount", "debt_offset", "released", "sent"),
    *("from_escrow", "from_payable", "from_pending", "disputed", "beyond", "after_loss", "fee"),
)
#: The facts that are ids of Stripe or of this service.
_IDS: Final = (
    *("payment_intent_id", "charge_id", "transfer_id", "refund_id", "reversal_id"),
    *("fee_refund_id", "dispute_id", "warning_id", "review_id", "balance_transaction_id"),
    *("operation_id", "adjustment_id"),
)
_OPTIONAL: Final = re.compile(r"\[([^\]]*)\]")
_FACT: Final = re.compile(r"\{(\w+)\}")


def facts_of(event: StoredEvent) -> dict[str, Any]:
    """Returns the facts of an event with its amounts and its texts; {} for a body of another kind.

    The facts come before the amounts that the payment had after the event.
    """
    try:
        body = json.loads(event.body)
        facts = {**body.get("amounts", {}), **body.get("facts", {})}
        return {**facts, **texts_to_show(event.body, event.texts)}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def sentence_of(kind: str, facts: Mapping[str, Any], currency: str) -> str:
    """Returns what happened, in a sentence."""
    template = SENTENCES.get(EventKind(kind)) if kind in set(EventKind) else None
    if template is None:
        return f"{kind} happened, which this release does not know."

    def part(match: re.Match[str]) -> str:
        needed = _FACT.findall(match[1])
        return match[1] if all(facts.get(name) for name in needed) else ""

    def fact(match: re.Match[str]) -> str:
        return _written(match[1], facts, currency)

    return _FACT.sub(fact, _OPTIONAL.sub(part, template))


def amounts_of(kind: str, facts: Mapping[str, Any], currency: str) -> list[Money]:
    """Returns the amounts that the sentence mentions, in its order."""
    return [
        Money(facts[name], _currency(name, facts, currency))
        for name in _mentioned(kind)
        if name in _AMOUNTS and isinstance(facts.get(name), int) and facts[name]
    ]


def ids_of(facts: Mapping[str, Any]) -> list[str]:
    """Returns the ids among the facts."""
    return [facts[name] for name in _IDS if isinstance(facts.get(name), str) and facts[name]]


def _mentioned(kind: str) -> list[str]:
    return _FACT.findall(SENTENCES[EventKind(kind)]) if kind in set(EventKind) else []


def _written(name: str, facts: Mapping[str, Any], currency: str) -> str:
    value = facts.get(name)
    if name in _AMOUNTS and isinstance(value, int):
        return str(Money(value, _currency(name, facts, currency)))
    return str(value) if isinstance(value, str | int) and value != "" else NOT_KNOWN


def _currency(name: str, facts: Mapping[str, Any], currency: str) -> str:
    """Returns the currency of an amount: Stripe's fee is in the one in which it settled."""
    if name != "fee":
        return currency
    return str(facts.get("fee_currency") or facts.get("currency") or currency)
