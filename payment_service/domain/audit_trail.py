"""The audit trail: what an event says, the hash that chains a payment's events, and its audit.

An event is hashed together with digests of everything else that was written in the same moment:
the payment's row before and after, and the postings. So a row that is changed behind the service's
back contradicts the chain, and still does when an honest transition has written over it since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Final

from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.disputes import dismissal_id
from payment_service.domain.ledger import Posting
from payment_service.domain.payment import Failure, Payment
from payment_service.domain.ports.records import Cause, StoredEvent, Trail
from payment_service.domain.schedule import SCHEDULE_COLUMNS, Schedule
from payment_service.domain.state_machine import EventKind, Transition
from payment_service.domain.sync.changes import Movement
from payment_service.domain.texts import ERASED, KeptText, seal_of, seals_in

#: This release's way of writing. Each event names its writer's, because during an upgrade two
#: releases write side by side, and the former one does not know the newest fields.
#: To raise it: CONTRIBUTING.md, "A field of Payment".
WRITER: Final = 1
#: The writer that each later field of Payment came with. What is not here, the first writer knew.
_FIELD_WRITERS: Final[Mapping[str, int]] = {}

#: The invariants that an audit checks.
AUDITED: Final = (
    DiscrepancyKind.EVENT_HASHES_CHAIN,
    DiscrepancyKind.ROW_IS_AS_RECORDED,
    DiscrepancyKind.POSTINGS_ARE_AS_RECORDED,
    DiscrepancyKind.MOVEMENTS_ARE_AS_RECORDED,
    DiscrepancyKind.TEXTS_ARE_AS_RECORDED,
)


@dataclass(frozen=True, slots=True)
class AuditFault:
    """The first event of a payment at which its records contradict one another."""

    kind: DiscrepancyKind
    sequence: int
    detail: str

    def __str__(self) -> str:
        return f"event {self.sequence}: {self.detail}"


def event_body(
    transition: Transition, facts: Mapping[str, object], schedule: Schedule, cause: Cause
) -> str:
    """Returns the body of a transition's event: canonical JSON, stored and hashed unchanged.

    ``facts`` are the transition's, with their texts sealed.
    """
    before, after = transition.before, transition.after
    body = {
        "from": before.state.value if before else None,
        "to": after.state.value,
        "amounts": {
            "amount": after.amount,
            "held": after.held,
            "charged": after.charged,
            "captured": after.captured,
            "refunded_after_capture": after.refunded_after_capture,
            "refunded_from_escrow": after.refunded_from_escrow,
            "lost": after.lost + after.lost_held,
            "net_commission": after.net_commission,
            "client_payable": after.client_payable,
            "pending_refund": after.pending_refund,
            "currency": after.currency,
        },
        "facts": dict(facts),
        "by": cause_values(cause),
        "digests": {
            "writer": WRITER,
            "before": row_digest(before, WRITER) if before else "",
            "after": row_digest(after, WRITER),
            "schedule": schedule_digest(schedule),
            "postings": postings_digest(transition.postings),
        },
    }
    return canonical(body)


def cause_values(cause: Cause) -> dict[str, str]:
    """Returns who or what caused a change, as the bodies of events contain it."""
    return {
        "caller": cause.caller,
        "act_for": cause.act_for,
        "rpc": cause.rpc,
        "request_id": cause.request_id,
    }


def cause_in(body: str) -> Cause:
    """Returns the cause that an event's body contains, as far as it contains one.

    The body may be altered: then the trail shows it as it is, with a broken chain.
    """
    try:
        by = json.loads(body)["by"]
        said = {name: str(by.get(name, "")) for name in ("caller", "rpc", "request_id", "act_for")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return Cause("", "")
    return Cause(**said)


def chain_hash(
    former: bytes, payment_id: str, sequence: int, kind: str, time: datetime, body: str
) -> bytes:
    """Returns the SHA-256 of the former hash and everything that the event contains.

    Every part is preceded by its length, so that no two events can be written alike.
    """
    digest = hashlib.sha256(former)
    for part in (payment_id, str(sequence), kind, _moment(time), body):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


def row_digest(payment: Payment, writer: int) -> str:
    """Returns the digest of the fields that this writer knew and that are not empty."""
    return _digest(row_values(payment, writer))


def row_values(payment: Payment, writer: int) -> dict[str, object]:
    """Returns the fields that this writer knew and that are not empty."""
    values = zip(_PAYMENT_FIELDS, _values_of(payment), strict=True)
    # None, "", 0 and no are empty.
    return {
        name: value for name, value in values if value and _FIELD_WRITERS.get(name, 1) <= writer
    }


def schedule_digest(schedule: Schedule) -> str:
    """Returns the digest of the stored times at which jobs examine the payment.

    The times are derived, and a time that is too early does no harm, because each job checks its
    rule again. But a time that somebody moved into the future would keep a deadline from being
    acted on. The times also depend on the policy of the moment, so they cannot be derived again
    later: the event keeps their digest.
    """
    return _digest({name: getattr(schedule, name) for name in SCHEDULE_COLUMNS})


def postings_digest(postings: Iterable[Posting]) -> str:
    """Returns the digest of one event's postings, in any order."""
    return _digest(
        sorted(
            [line.account, line.currency, line.minor_units, line.kind, line.balance_transaction_id]
            for line in postings
        )
    )


def first_broken(former: bytes, after: int, events: Sequence[StoredEvent]) -> int:
    """Returns the first sequence after ``after`` whose event is missing or altered; 0 if none.

    ``former`` is the hash of the event before.
    """
    for expected, event in enumerate(events, after + 1):
        right = chain_hash(
            former, event.payment_id, event.sequence, event.kind, event.time, event.body
        )
        if event.sequence != expected or right != event.hash:
            return expected
        former = event.hash
    return 0


def audit(trail: Trail) -> list[AuditFault]:
    """Compares everything that is stored of a payment with its chain; each check's first fault.

    A broken chain vouches for nothing, so nothing else is held against it.
    """
    fault = _chain_fault(trail)
    if fault is not None:
        return [fault]
    bodies = [json.loads(event.body) for event in trail.events]
    if not all("digests" in body for body in bodies):
        return []  # Begun before events had digests: it has its chain alone.
    faults = (
        _row_fault(trail, bodies),
        postings_fault(trail.events, trail.postings, bodies),
        movements_fault(trail.events, trail.movements, bodies),
        texts_fault(trail.texts, bodies) or _description_fault(trail, bodies),
    )
    return [found for found in faults if found is not None]


def _chain_fault(trail: Trail) -> AuditFault | None:
    payment, events = trail.payment, trail.events
    broken = first_broken(b"", 0, events)
    if broken:
        return AuditFault(
            DiscrepancyKind.EVENT_HASHES_CHAIN, broken, "is missing, or is not what was hashed"
        )
    if len(events) != payment.version:
        at = min(len(events), payment.version) + 1
        return AuditFault(
            DiscrepancyKind.EVENT_HASHES_CHAIN,
            at,
            f"{len(events)} events for version {payment.version}",
        )
    if events[-1].hash != trail.head_hash:
        return AuditFault(
            DiscrepancyKind.EVENT_HASHES_CHAIN,
            len(events),
            "is not the head that the payment names",
        )
    return None


def _row_fault(trail: Trail, bodies: Sequence[Any]) -> AuditFault | None:
    """Compares the rows that the events left, and the present row with the last of them.

    Two writers' digests are over different fields, so they are not compared with each other. What
    a newer release has written, only that release can check.
    """
    former, writer = "", bodies[0]["digests"]["writer"]
    for sequence, body in enumerate(bodies, 1):
        same_writer = body["digests"]["writer"] == writer
        writer = body["digests"]["writer"]
        if same_writer and body["digests"]["before"] != former:
            return AuditFault(
                DiscrepancyKind.ROW_IS_AS_RECORDED,
                sequence,
                "found a row that the event before had not left",
            )
        former = body["digests"]["after"]
    if writer > WRITER:
        return None
    if row_digest(trail.payment, writer) != former:
        return AuditFault(
            DiscrepancyKind.ROW_IS_AS_RECORDED, len(bodies), "left another row than there is now"
        )
    if schedule_digest(trail.schedule) != bodies[-1]["digests"]["schedule"]:
        return AuditFault(
            DiscrepancyKind.ROW_IS_AS_RECORDED,
            len(bodies),
            "left another schedule than there is now",
        )
    return None


def postings_fault(
    events: Sequence[StoredEvent],
    postings: Sequence[tuple[int, datetime, Posting]],
    bodies: Sequence[Any],
) -> AuditFault | None:
    """Compares the postings with the digests in the events."""
    posted: dict[int, list[Posting]] = {}
    times = {event.sequence: event.time for event in events}
    for sequence, time, posting in postings:
        if times.get(sequence) != time:
            return AuditFault(
                DiscrepancyKind.POSTINGS_ARE_AS_RECORDED, sequence, "has a posting of another time"
            )
        posted.setdefault(sequence, []).append(posting)
    for sequence, body in enumerate(bodies, 1):
        if postings_digest(posted.get(sequence, ())) != body["digests"]["postings"]:
            return AuditFault(
                DiscrepancyKind.POSTINGS_ARE_AS_RECORDED,
                sequence,
                "posted other lines than there are now",
            )
    return None


def movements_fault(
    events: Sequence[StoredEvent], movements: Sequence[Movement], bodies: Sequence[Any]
) -> AuditFault | None:
    """Compares the refunds and reversals of the events with the movements on the books.

    A refund that was canceled before it moved anything has no event: its two movements cancel
    out.
    """
    there = {one.movement_id: [one.kind, one.minor_units] for one in movements}
    recorded: dict[str, list[Any]] = {}
    for event, body in zip(events, bodies, strict=True):
        for movement_id, *what in _movements_of(event.kind, body["facts"]):
            recorded[movement_id] = what
            if there.get(movement_id) != what:
                return AuditFault(
                    DiscrepancyKind.MOVEMENTS_ARE_AS_RECORDED,
                    event.sequence,
                    f"tells of {movement_id} otherwise",
                )
    for movement_id in sorted(there.keys() - recorded.keys()):
        refund_id = movement_id.removesuffix(_FAILED)
        refund, failure = there.get(refund_id), there.get(refund_id + _FAILED)
        bounced = refund is not None and failure == ["refund_failure", refund[1]]
        if not bounced or refund_id in recorded or refund_id + _FAILED in recorded:
            return AuditFault(
                DiscrepancyKind.MOVEMENTS_ARE_AS_RECORDED,
                len(bodies),
                f"nothing tells of {movement_id}",
            )
    return None


def _movements_of(kind: str, facts: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    if kind in (EventKind.REFUND_FAILED, EventKind.REFUND_FAILED_UNBOOKED):
        refund_id, amount = facts["refund_id"], facts["amount"]
        made = [(refund_id, "refund", amount)] if kind == EventKind.REFUND_FAILED_UNBOOKED else []
        return [*made, (f"{refund_id}{_FAILED}", "refund_failure", amount)]
    if kind in _DISPUTE_LINES:
        return [(facts["balance_transaction_id"], _DISPUTE_LINES[kind], facts["amount"])]
    if kind == EventKind.FRAUD_WARNING:
        return [(facts["warning_id"], "fraud_warning", 0)]
    if kind == EventKind.FRAUD_WARNING_DISMISSED:
        return [(dismissal_id(facts["warning_id"]), "fraud_warning_release", 0)]
    for name, movement in _MOVEMENTS.items():
        if facts.get(name):
            # Of a captured part less may have been sent on: commission and debt stay.
            return [(facts[name], movement, facts.get("sent", facts["amount"]))]
    return []


def texts_fault(texts: Sequence[tuple[int, KeptText]], bodies: Sequence[Any]) -> AuditFault | None:
    """Compares the texts that are kept with their hashes. One that is not kept was erased."""
    seals = [seals_in(body["facts"]) for body in bodies]
    for sequence, text in texts:
        if sequence > len(seals) or seals[sequence - 1].get(text.name) != seal_of(text):
            return AuditFault(
                DiscrepancyKind.TEXTS_ARE_AS_RECORDED, sequence, f"has another {text.name}"
            )
    return None


def _description_fault(trail: Trail, bodies: Sequence[Any]) -> AuditFault | None:
    kept = {text.name: text.text for sequence, text in trail.texts if sequence == 1}
    erased = ERASED if "description" in seals_in(bodies[0]["facts"]) else ""
    if trail.payment.description != kept.get("description", erased):
        return AuditFault(DiscrepancyKind.TEXTS_ARE_AS_RECORDED, 1, "has another description")
    return None


_FAILED: Final = ":failed"


_MOVEMENTS: Final = {
    "refund_id": "refund",
    "reversal_id": "reversal",
    "fee_refund_id": "fee_refund",
    "transfer_id": "transfer",
}


_DISPUTE_LINES: Final[Mapping[str, str]] = {
    EventKind.DISPUTE_FUNDS_WITHDRAWN: "dispute_withdrawn",
    EventKind.DISPUTE_FUNDS_REINSTATED: "dispute_reinstated",
}


#: The description is somebody's words, which can be erased. Its seal is in the first event.
_PAYMENT_FIELDS: Final = [field.name for field in fields(Payment) if field.name != "description"]
_values_of: Final = attrgetter(*_PAYMENT_FIELDS)


def _digest(value: object) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: object) -> str:
    """Returns JSON that is the same for the same value."""
    return _CANONICAL.encode(value)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, Failure):
        return asdict(value)
    raise TypeError(f"{value!r} has no canonical form")


_CANONICAL: Final = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain
)


def _moment(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds")
