"""Keeps all that is known about violations in files, because the stack is gone after a run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpc import aio

from chaos.checks import Violation
from chaos.evidence import Evidence, Row
from chaos.report import Report, headline, story
from chaos.simulator import AWAY, Simulator
from marketplace.payments.v1 import explain_pb2, operations_pb2_grpc

#: The most payments of one run about which everything is kept.
_PAYMENTS = 20
#: The most objects of one kind that a payment is assumed to have.
_PAGE = {"limit": "100"}
_IDS = re.compile(r"\b[a-z]{2,4}_\w+")
_TABLES = (
    *("payments", "events", "postings", "movements", "operations", "disputes"),
    *("idempotency_keys", "webhook_events", "discrepancies"),
)
#: Fields that are never written.
_LEFT_OUT = ("client_secret",)


@dataclass(slots=True)
class Finding:
    """One payment, as the service explains it and as Stripe shows it."""

    explained: list[str] = field(default_factory=list)
    at_stripe: dict[str, list[Row]] = field(default_factory=dict)


async def look_up(
    evidence: Evidence,
    violations: Sequence[Violation],
    channel: aio.Channel,
    simulator: Simulator,
) -> dict[str, Finding]:
    """Returns what is known about each payment that a violation is about. The stack must run."""
    concerned = dict.fromkeys(
        payment_id for one in violations for payment_id in payments_of(evidence, one)
    )
    return {
        payment_id: Finding(
            await _explained(channel, payment_id),
            await _at_stripe(evidence, simulator, payment_id),
        )
        for payment_id in list(concerned)[:_PAYMENTS]
    }


def payments_of(evidence: Evidence, violation: Violation) -> list[str]:
    """Returns the payments that a violation names, by any id; or whose expert owes, if it names
    an expert."""
    owner = {row["movement_id"]: row["payment_id"] for row in evidence.movements}
    for row in evidence.payments:
        owner |= {row["payment_id"]: row["payment_id"], row["payment_intent_id"]: row["payment_id"]}
    for row in evidence.operations:
        owner[row["operation_id"]] = row["payment_id"] or _collected_from(row)
    for row in evidence.disputes:
        owner[row["dispute_id"]] = row["payment_id"]
    named = [owner.get(id_) for id_ in (violation.payment_id, *_IDS.findall(violation.what))]
    indebted = {
        row["payment_id"] for row in evidence.postings if row["account"].startswith("expert_debt:")
    }
    named += [
        row["payment_id"]
        for row in evidence.payments
        if row["payment_id"] in indebted and _names(violation.what, row["expert_id"])
    ]
    return list(dict.fromkeys(one for one in named if one))


def _names(sentence: str, expert_id: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(expert_id)}(?![\w-])", sentence) is not None


async def _explained(channel: aio.Channel, payment_id: str) -> list[str]:
    """Returns the payment's story in the service's own sentences."""
    stub = operations_pb2_grpc.OperationsServiceStub(channel)
    request = explain_pb2.ExplainPaymentRequest(id=payment_id, page_size=200)
    told: list[str] = []
    while True:
        try:
            page: explain_pb2.ExplainPaymentResponse
            page = await stub.ExplainPayment(request, timeout=10)
        except aio.AioRpcError as error:
            return [*told, f"not explained: {error.code().name} {error.details()}"]
        told = told or [page.summary]
        for entry in page.entries:
            kind = explain_pb2.StoryEntryKind.Name(entry.kind).removeprefix("STORY_ENTRY_KIND_")
            moment = entry.entry_time.ToDatetime(UTC)
            told.append(f"{moment:%H:%M:%S.%f} {kind.lower()}: {entry.sentence}")
        if not page.next_page_token:
            return [*told, f"next: {page.outlook.waits_for}"]
        request.page_token = page.next_page_token


async def _at_stripe(
    evidence: Evidence, simulator: Simulator, payment_id: str
) -> dict[str, list[Row]]:
    """Returns Stripe's objects of the payment by their kinds, and what happened to them."""
    [payment] = [row for row in evidence.payments if row["payment_id"] == payment_id]
    intent = payment["payment_intent_id"]
    if not intent:
        return {}

    def of_intent(found: Sequence[Row]) -> list[Row]:
        return [row for row in found if row["payment_intent"] == intent]

    charges = await _list(simulator, "/charges", {"payment_intent": intent})
    ids = {row.get("id") for row in charges}
    transfers = [
        row
        for row in evidence.transfers
        if row["transfer_group"] == payment_id or row["source_transaction"] in ids
    ]
    reversals = [
        reversal
        for transfer in transfers
        for reversal in await _list(simulator, f"/transfers/{transfer['id']}/reversals", {})
    ]
    refunds, disputes = of_intent(evidence.refunds), of_intent(evidence.stripe_disputes)
    made = {row.get("id") for row in (*charges, *refunds, *transfers, *reversals, *disputes)}
    return {
        "intents": [row for row in evidence.intents if row["id"] == intent],
        "charges": charges,
        "refunds": refunds,
        "transfers": transfers,
        "reversals": reversals,
        "disputes": disputes,
        "fraud warnings": of_intent(evidence.fraud_warnings),
        "balance transactions": [
            {"account": account, **line}
            for account, line in evidence.lines
            if line.get("source") in made
        ],
        "effects": of_intent(evidence.effects),
    }


async def _list(simulator: Simulator, path: str, params: dict[str, str]) -> list[Row]:
    try:
        page = await simulator.read(path, params={**_PAGE, **params})
    except (*AWAY, ValueError) as error:
        return [{"not read": f"{path}: {error}"}]
    return list(page["data"])


def keep(report: Report, found: dict[str, Finding], log: Path, below: Path) -> Path:
    """Writes everything into a new directory and returns the file to begin with.

    The log of the run's processes is copied beside it.
    """
    moment = datetime.now(UTC)
    directory = below / f"seed-{report.plan.seed}-{moment:%Y%m%dT%H%M%S.%f}"
    directory.mkdir(parents=True)
    file, beside = directory / "violations.txt", directory / "log.txt"
    shutil.copy(log, beside)
    lines = (headline(report), f"the log of its processes: {beside}", "", *_lines(report, found))
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def _lines(report: Report, found: dict[str, Finding]) -> Iterator[str]:
    evidence = report.evidence
    concerned = [(str(one), payments_of(evidence, one)) for one in report.violations]
    yield from (sentence for sentence, _ in concerned)
    for payment_id, finding in found.items():
        yield from ("", f"=== {payment_id}", "")
        yield from (sentence for sentence, about in concerned if payment_id in about)
        yield from ("", "--- as the service explains it", *finding.explained)
        yield ""
        yield from story(report, payment_id)
        yield from ("", "--- at Stripe")
        for kind, objects in finding.at_stripe.items():
            yield from (f"{kind[:-1]} {_text(row)}" for row in objects)
        yield from ("", "--- our rows")
        for table in _TABLES:
            for row in getattr(evidence, table):
                if payment_id in (row.get("payment_id"), _collected_from(row)):
                    yield f"{table} {_text(row)}"


def _collected_from(row: Row) -> str | None:
    """The payment from whose transfer an operation of an expert takes."""
    payload = row.get("payload")
    return payload.get("payment_id") if isinstance(payload, dict) else None


def _text(row: Row) -> str:
    shown = {name: value for name, value in row.items() if name not in _LEFT_OUT}
    return json.dumps(shown, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> str:
    return bytes(value).hex() if isinstance(value, bytes | memoryview) else str(value)
