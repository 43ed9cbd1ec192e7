"""What a check is: a function over the evidence that yields violations and nothing else."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from chaos.evidence import Evidence, Row

Check = Callable[[Evidence], Iterator["Violation"]]


@dataclass(frozen=True, slots=True)
class Violation:
    check: str
    what: str
    payment_id: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.what}" + (f" [{self.payment_id}]" if self.payment_id else "")


CHECKS: dict[str, Check] = {}


def check(given: Callable[[Evidence], Iterator[tuple[str, str]]]) -> Check:
    """Registers a check under its name; it yields (what, payment_id)."""
    name = given.__name__

    def run(evidence: Evidence) -> Iterator[Violation]:
        for what, payment_id in given(evidence):
            yield Violation(name, what, payment_id)

    CHECKS[name] = run
    return run


def violations(evidence: Evidence) -> list[Violation]:
    return [found for check in CHECKS.values() for found in check(evidence)]


def events_of(evidence: Evidence) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for event in evidence.events:
        found[event["payment_id"]].append(event)
    return found


def payment_id_of(evidence: Evidence, intent: str) -> str:
    return str(evidence.payment_of_intent().get(intent, {}).get("payment_id", ""))


def facts_of(event: Row) -> dict[str, Any]:
    """Returns the facts of an event."""
    facts: dict[str, Any] = json.loads(event["body"]).get("facts", {})
    return facts


def failed_refunds_of(evidence: Evidence) -> list[Row]:
    """Returns the refunds that have failed at Stripe after they were accepted here.

    One that never left the platform, and that had failed before anybody saw it, is a refusal: the
    caller was told so, and nothing came back.
    """
    accepted = {
        facts_of(event)["refund_id"]
        for event in evidence.events
        if event["kind"] == "payment.refund_accepted"
    }
    refused = {row["operation_id"] for row in evidence.operations if row["state"] == "REFUSED"}
    return [
        refund
        for refund in evidence.refunds
        if refund["status"] == "failed"
        and (
            refund["balance_transaction"] is not None
            or refund["id"] in accepted
            or not refused & set((refund.get("metadata") or {}).values())
        )
    ]


def operation_of(effect: Row) -> str:
    """The operation of ours that had this effect at Stripe; empty if none of ours did."""
    return str(effect["idempotency_key"] or "").rpartition("-")[0]
