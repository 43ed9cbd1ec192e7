"""The entries of a story: calls, events, requests to Stripe, webhooks, postings, discrepancies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from payment_service.domain.audit_trail import cause_in
from payment_service.domain.disputes import Dispute
from payment_service.domain.money import Money
from payment_service.domain.operations import (
    Operation,
    OperationKind,
    OperationPurpose,
    OperationState,
)
from payment_service.domain.payment import Payment
from payment_service.domain.ports.records import (
    Cause,
    StoredDiscrepancy,
    StoredEvent,
    StoredPosting,
    WebhookEvent,
)
from payment_service.domain.schedule import Schedule
from payment_service.domain.story.sentences import amounts_of, facts_of, ids_of, sentence_of
from payment_service.domain.sync.changes import Movement

#: How many requests, webhooks or discrepancies a page of a story reads at most.
MOST_ROWS: Final = 500


class EntryKind(StrEnum):
    """What an entry is."""

    CALL = "CALL"
    EVENT = "EVENT"
    STRIPE_REQUEST = "STRIPE_REQUEST"
    STRIPE_OUTCOME = "STRIPE_OUTCOME"
    WEBHOOK = "WEBHOOK"
    POSTINGS = "POSTINGS"
    DISCREPANCY = "DISCREPANCY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened, in a sentence and in its parts."""

    time: datetime
    kind: EntryKind
    name: str
    sentence: str
    ids: Sequence[str] = ()
    amounts: Sequence[Money] = ()
    sequence: int = 0
    cause: Cause | None = None
    postings: Sequence[StoredPosting] = ()


@dataclass(frozen=True, slots=True)
class StoredOperation:
    """An operation, with when it was settled."""

    operation: Operation
    settle_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What is stored of a payment, between the events of one page."""

    payment: Payment
    schedule: Schedule
    #: From when on and until when the page shows what has no event; None is open.
    since: datetime | None = None
    until: datetime | None = None
    #: Of the events before the page, as many as matter to a call that goes over it, in their order.
    former_causes: Sequence[Cause] = ()
    events: Sequence[StoredEvent]
    has_more: bool = False
    left_out: bool = False
    postings: Sequence[StoredPosting] = ()
    operations: Sequence[StoredOperation] = ()
    movements: Sequence[Movement] = ()
    webhooks: Sequence[WebhookEvent] = ()
    #: Stripe's events that caused events of the page, and that have an entry of their own.
    kept_event_ids: Collection[str] = ()
    discrepancies: Sequence[StoredDiscrepancy] = ()
    #: As they are now, whatever the page: for what comes next.
    open_operations: Sequence[Operation] = ()
    open_discrepancies: Sequence[StoredDiscrepancy] = ()
    waiting_webhooks: Sequence[WebhookEvent] = ()
    disputes: Sequence[Dispute] = ()
    #: What the expert owes in the payment's currency.
    expert_debt: int = 0
    now: datetime


@dataclass(slots=True)
class _Line:
    """An entry with its place: by time, then by what causes what."""

    place: tuple[datetime, int, int, int]
    entry: Entry = field(compare=False)


#: Of one moment: an outcome of Stripe is the reason of an event, an event that of a request.
_OUTCOME, _TRAIL, _REQUEST, _FOUND = range(4)

_REQUESTS: Final[Mapping[OperationKind, str]] = {
    OperationKind.CREATE_INTENT: "create the payment of {amount}",
    OperationKind.CAPTURE: "capture {amount}",
    OperationKind.CANCEL: "cancel the payment",
    OperationKind.REFUND: "refund {amount} to the client",
    OperationKind.PROMOTE: "charge the card {amount} ahead of the deadline",
    OperationKind.TRANSFER: "transfer {amount}, less what is kept back, to the expert",
    OperationKind.REVERSE_TRANSFER: "take {amount} back from the expert",
    OperationKind.COLLECT_DEBT: "collect {amount} of the expert's debt",
    OperationKind.CREATE_ACCOUNT: "create the expert's account",
    OperationKind.SUBMIT_EVIDENCE: "submit evidence to the client's bank",
    OperationKind.ACCEPT_DISPUTE: "accept the dispute",
}
_PURPOSES: Final[Mapping[OperationPurpose, str]] = {
    OperationPurpose.REQUESTED: "a caller asked for it",
    OperationPurpose.DEADLINE: "a deadline came",
    OperationPurpose.REMAINDER: "a final capture left it in escrow",
    OperationPurpose.REPAYMENT: "an earlier refund failed",
    OperationPurpose.LOSS: "a dispute was lost",
    OperationPurpose.DEBT: "the expert owes it",
}
_STATES: Final[Mapping[OperationState, str]] = {
    OperationState.STARTED: "It is being sent",
    OperationState.UNKNOWN: "Stripe's answer is not known, and recovery asks again",
    OperationState.PARKED: "It is parked",
}
VERDICTS: Final[Mapping[str, str]] = {
    "applied": "it changed something",
    "no_change": "everything was on the books before",
    "unknown_object": "its object is not of this service",
    "not_acted_upon": "this service does not act on events of this type",
}
_JOBS: Final[Mapping[str, str]] = {
    "deadline": "The job that acts on deadlines",
    "poll": "The job that reads from Stripe what no webhook has brought",
    "collect_debts": "The job that collects debts",
    "recovery": "The recovery job",
    "reconciliation": "The reconciliation",
    "recover-after-restore": "The recovery after a restore",
}


def entries_of(records: Records) -> list[Entry]:
    """Returns what happened, oldest first."""
    beside = [*_requests(records), *_webhooks(records), *_discrepancies(records)]
    lines = [*_trail(records), *(line for line in beside if _is_shown(line.entry.time, records))]
    return [line.entry for line in sorted(lines, key=lambda line: line.place)]


def _is_shown(time: datetime, records: Records) -> bool:
    """Returns whether a time is between the events of the page."""
    since, until = records.since, records.until
    return (since is None or time >= since) and (until is None or time < until)


def _trail(records: Records) -> Iterable[_Line]:
    """Yields each call before its first event, and each event before its postings."""
    payment = records.payment
    seen = set(records.former_causes)
    former = records.former_causes[-1] if records.former_causes else None
    lines: dict[int, list[StoredPosting]] = {}
    for posting in records.postings:
        sequence = posting.transaction_id.rpartition(":")[2]
        lines.setdefault(int(sequence), []).append(posting)
    for event in records.events:
        cause = cause_in(event.body)
        place = (event.time, _TRAIL, event.sequence)
        # A job has no request id: it acts anew whenever something else came between.
        is_new = cause not in seen if cause.request_id else cause != former
        if is_new and cause.caller and cause.request_id not in records.kept_event_ids:
            yield _Line((*place, 0), _call(cause, event))
        seen.add(cause)
        former = cause
        facts = facts_of(event)
        yield _Line(
            (*place, 1),
            Entry(
                time=event.time,
                kind=EntryKind.EVENT,
                name=event.kind,
                sentence=sentence_of(event.kind, facts, payment.currency),
                ids=ids_of(facts),
                amounts=amounts_of(event.kind, facts, payment.currency),
                sequence=event.sequence,
            ),
        )
        if event.sequence in lines:
            yield _Line((*place, 2), _posted(event, lines[event.sequence]))


def _call(cause: Cause, event: StoredEvent) -> Entry:
    if cause.caller == "stripe":
        said = f"Stripe's event {cause.request_id} was applied."
    elif cause.rpc in _JOBS:
        said = f"{_JOBS[cause.rpc]} acted."
    else:
        whom = f" for the user {cause.act_for}" if cause.act_for else ""
        request = f" (request {cause.request_id})" if cause.request_id else ""
        said = f"{cause.caller} called {cause.rpc}{whom}{request}."
    return Entry(time=event.time, kind=EntryKind.CALL, name=cause.rpc, sentence=said, cause=cause)


def _posted(event: StoredEvent, postings: Sequence[StoredPosting]) -> Entry:
    """Says what changed on each account, debits first. What only passed through is left out."""
    sums: dict[tuple[str, str], int] = {}
    for one in postings:
        account = (one.posting.account, one.posting.currency)
        sums[account] = sums.get(account, 0) + one.posting.minor_units
    sides = []
    for side, sign in (("debit", 1), ("credit", -1)):
        parts = [
            f"{account} {Money(abs(total), currency)}"
            for (account, currency), total in sums.items()
            if total * sign > 0
        ]
        sides.append(f"{side} {', '.join(parts)}" if parts else "")
    said = "; ".join(filter(None, sides)) or "nothing stays on any account"
    return Entry(
        time=event.time,
        kind=EntryKind.POSTINGS,
        name="postings",
        sentence=f"The books: {said}.",
        sequence=event.sequence,
        postings=postings,
        ids=sorted(
            {one.posting.balance_transaction_id for one in postings} - {""},
        ),
    )


def _requests(records: Records) -> Iterable[_Line]:
    made: dict[str, list[str]] = {}
    for movement in records.movements:
        made.setdefault(movement.operation_id, []).append(movement.movement_id)
    for stored in records.operations:
        operation = stored.operation
        place = (operation.create_time, _REQUEST, 0, 0)
        yield _Line(place, _request(operation, records.payment))
        if stored.settle_time is not None:
            ids = made.get(operation.operation_id, []) or _object_ids(operation, records.payment)
            place = (stored.settle_time, _OUTCOME, 0, 0)
            yield _Line(place, _outcome(operation, stored.settle_time, ids))


def _request(operation: Operation, payment: Payment) -> Entry:
    amount = Money(operation.minor_units, payment.currency)
    what = request_of(operation, payment.currency)
    state = ""
    if operation.is_open:
        error = f" ({operation.last_error})" if operation.last_error else ""
        tries = f"{operation.tries} {'try' if operation.tries == 1 else 'tries'}"
        state = f" {_STATES[operation.state]}, after {tries}{error}."
    return Entry(
        time=operation.create_time,
        kind=EntryKind.STRIPE_REQUEST,
        name=operation.kind.value,
        sentence=(
            f"Request to Stripe: {what}, because {_PURPOSES[operation.purpose]} "
            f"(idempotency key {operation.stripe_key}).{state}"
        ),
        ids=[operation.operation_id],
        amounts=[amount] if amount.minor_units else [],
    )


def request_of(operation: Operation, currency: str) -> str:
    """Returns what an operation asks Stripe for, as the end of a sentence."""
    amount = Money(operation.minor_units, currency)
    return _REQUESTS[operation.kind].format(amount=amount)


def _outcome(operation: Operation, time: datetime, ids: Sequence[str]) -> Entry:
    kind = operation.kind.value.replace("_", " ")
    if operation.state is OperationState.SUCCEEDED:
        shown = f" ({', '.join(ids)})" if ids else ""
        said = f"Stripe did it: {kind}{shown}."
    else:
        why = operation.last_error or "without a reason"
        said = f"Nothing came of it: {kind} was refused or abandoned ({why})."
    done = ids if operation.state is OperationState.SUCCEEDED else ()
    return Entry(
        time=time,
        kind=EntryKind.STRIPE_OUTCOME,
        name=operation.kind.value,
        sentence=said,
        ids=[operation.operation_id, *done],
    )


def _object_ids(operation: Operation, payment: Payment) -> list[str]:
    """Returns the object of a request that made no movement."""
    if operation.kind in (OperationKind.CAPTURE, OperationKind.PROMOTE):
        return [payment.charge_id] if payment.charge_id else []
    if operation.kind in (OperationKind.CREATE_INTENT, OperationKind.CANCEL):
        return [payment.payment_intent_id] if payment.payment_intent_id else []
    return [operation.dispute_id] if operation.dispute_id else []


def _webhooks(records: Records) -> Iterable[_Line]:
    for event in records.webhooks:
        if event.receive_time is None:
            continue
        about = f" about {event.object_id}" if event.object_id else ""
        said = VERDICTS.get(event.verdict, event.verdict)
        if event.state == "WAITING":
            said = "it waits to be applied"
        elif event.state == "PARKED":
            said = f"it could not be applied and is parked ({event.last_error})"
        yield _Line(
            (event.receive_time, _OUTCOME, 0, 0),
            Entry(
                time=event.receive_time,
                kind=EntryKind.WEBHOOK,
                name=event.type,
                sentence=f"Stripe's event {event.type}{about} came ({event.event_id}): {said}.",
                ids=[event.event_id, *([event.object_id] if event.object_id else [])],
            ),
        )


def _discrepancies(records: Records) -> Iterable[_Line]:
    for stored in records.discrepancies:
        kind = stored.discrepancy.kind.value
        end = "It is open."
        if stored.resolve_time is not None:
            by = stored.resolved_by
            end = f"{by} resolved it." if by else "It closed by itself."
        yield _Line(
            (stored.time, _FOUND, 0, 0),
            Entry(
                time=stored.time,
                kind=EntryKind.DISCREPANCY,
                name=kind,
                sentence=f"A discrepancy was found: {kind}, {stored.discrepancy.detail}. {end}",
                ids=[stored.discrepancy_id],
            ),
        )
