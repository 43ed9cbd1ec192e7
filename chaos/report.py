"""The result of a run as a table, the history of a payment that went wrong, and what was violated.

What was violated comes last and whole: whoever shows only the end of the output shows that.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chaos.checks import CHECKS, Violation
from chaos.evidence import Evidence, Row
from chaos.plan import KILLS, STOP_REPLICA, Plan

_SHOWN_STORIES = 2
#: Of a payment's row, and of a dispute's.
_SHOWN = (
    *("state", "version", "amount", "held", "captured", "refunded_after_capture", "lost", "frozen"),
    *("waiting_for", "operation_id"),
)
_SHOWN_OF_DISPUTES = ("dispute_id", "status", "amount", "withdrawn", "reinstated", "lost", "fee")


@dataclass(slots=True, kw_only=True)
class Report:
    """The result of a run."""

    plan: Plan
    evidence: Evidence
    violations: list[Violation]
    #: None if it never came to rest.
    converged_after: float | None
    seconds: float
    requests: list[dict[str, object]] = field(default_factory=list)
    #: Where everything about the violations is kept.
    kept: Path | None = None

    @property
    def holds(self) -> bool:
        return not self.violations

    @property
    def kills(self) -> int:
        return sum(self.evidence.injected[kind] for kind in KILLS)

    @property
    def stops(self) -> int:
        return self.evidence.injected[STOP_REPLICA]


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show(report: Report) -> None:
    evidence, history = report.evidence, report.evidence.history
    say()
    say(headline(report))
    rest = report.converged_after
    came = "did not come to rest" if rest is None else f"at rest {rest:.1f} s after healing"
    say(
        f"  {history.operations} calls ({history.operations / report.plan.seconds:.0f}/s), "
        f"{len(evidence.payments)} payments, {len(evidence.effects)} effects, "
        f"{report.kills} SIGKILLs, {report.stops} SIGSTOPs; {came}"
    )
    say(f"  codes: {_counts(history.codes)}")
    say(f"  calls: {_counts(history.by_rpc)}")
    done = Counter(row["kind"] for row in evidence.operations if row["state"] == "SUCCEEDED")
    say(f"  done at Stripe: {_counts(done)}")
    say()
    say("  injected")
    for kind in evidence.armed:
        mark = "" if evidence.injected[kind] >= evidence.least else "   NEVER ENOUGH"
        say(f"    {kind:28s} {evidence.injected[kind]:6d}{mark}")
    say()
    say("  found")
    found: dict[str, int] = {}
    for violation in report.violations:
        found[violation.check] = found.get(violation.check, 0) + 1
    for name in CHECKS:
        say(f"    {name:32s} {found.get(name, 0):6d}{'' if name not in found else '   VIOLATED'}")
    about = dict.fromkeys(v.payment_id for v in report.violations if v.payment_id)
    for payment_id in list(about)[:_SHOWN_STORIES]:
        for line in story(report, payment_id):
            say(f"    {line}")
    conclude(report)


def headline(report: Report) -> str:
    plan = report.plan
    return f"seed {plan.seed}, {plan.seconds:g} s, {report.seconds:.1f} s in all"


def conclude(report: Report) -> None:
    """Says whether all holds. If not, each violation is named whole, after where it is kept."""
    if report.holds:
        say("  all holds")
        return
    where = f"; everything about it is in {report.kept}" if report.kept else ""
    say(f"  seed {report.plan.seed} FAILED{where}")
    for violation in report.violations:
        say(f"  ! {violation}")


def story(report: Report, payment_id: str) -> Iterator[str]:
    """Returns all that is known about one payment, in few lines."""
    evidence = report.evidence
    yield f"--- {payment_id}"
    intent = ""
    for row in _about(evidence.payments, payment_id):
        intent = row["payment_intent_id"] or ""
        yield "row: " + ", ".join(f"{name} {row[name]}" for name in _SHOWN) + f", {intent}"
    for row in _about(evidence.events, payment_id):
        body = json.loads(row["body"])
        yield (
            f"event {row['sequence']} {row['time']:%H:%M:%S.%f} {row['kind']} "
            f"{body['from']} → {body['to']} {body['facts']} by {body['by']['rpc']}"
        )
    ids = [payment_id, *([intent] if intent else [])]
    for row in _about(evidence.operations, payment_id):
        ids.append(row["operation_id"])
        yield (
            f"operation {row['operation_id']} {row['kind']} {row['state']} "
            f"attempt {row['attempt']} tries {row['tries']} {row['last_error']} "
            f"{row['create_time']:%H:%M:%S.%f} {row['minor_units']} {row['payload']}"
        )
    for row in _about(evidence.disputes, payment_id):
        yield "dispute: " + ", ".join(f"{name} {row[name]}" for name in _SHOWN_OF_DISPUTES)
    for row in _about(evidence.discrepancies, payment_id):
        yield f"discrepancy {row['time']:%H:%M:%S.%f} {row['kind']} {row['detail']}"
    yield from _at_stripe(report, intent, ids)
    for entry in evidence.history.entries:
        about = entry.seen is not None and entry.seen.payment_id == payment_id
        if entry.rpc != "GetPayment" and (about or payment_id.encode() in entry.request):
            yield (
                f"call {entry.started:.3f} to {entry.ended:.3f} s {entry.rpc} {entry.key} "
                f"{entry.code} {entry.reason} {entry.seen or ''}"
            )


def _at_stripe(report: Report, intent: str, ids: list[str]) -> Iterator[str]:
    for effect in report.evidence.effects:
        if intent and effect["payment_intent"] == intent:
            yield (
                f"effect {effect['sequence']} {effect['kind']} {effect['amount']} "
                f"{effect['object']} {effect['idempotency_key']} {effect['time']}"
            )
    for request in report.requests:
        text = json.dumps(request)
        if any(id_ in text for id_ in ids):
            yield (
                f"request {request['method']} {request['path']} {request['status']} "
                f"{request['idempotency_key']} fault {request['fault']} "
                f"{request['milliseconds']} ms {request['time']}"
            )


def _about(found: list[Row], payment_id: str) -> Iterator[Row]:
    return (row for row in found if row["payment_id"] == payment_id)


def _counts(counter: dict[str, int]) -> str:
    ranked = sorted(counter.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count}" for name, count in ranked)
