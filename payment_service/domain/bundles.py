"""The bundle of one payment: all that proves its history, for a reader without access to the books.

It contains the chain of events, the postings and movements that their digests are of, the row that
the last event left, and, if heads were exported, the proof that they cover the payment. A reader
with the public key needs nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from payment_service.domain.audit_trail import (
    AuditFault,
    canonical,
    first_broken,
    movements_fault,
    postings_fault,
    row_values,
    texts_fault,
)
from payment_service.domain.heads import Heads, Malformed, event_from_line, heads_from_json
from payment_service.domain.ledger import Posting
from payment_service.domain.merkle import leaf_hash, root_by_path
from payment_service.domain.ports.records import StoredEvent, Trail
from payment_service.domain.ports.signing import Verifier
from payment_service.domain.sync.changes import Movement
from payment_service.domain.texts import KeptText

FORMAT: Final = "payment-proof/1"


@dataclass(frozen=True, slots=True)
class Inclusion:
    """The proof that exported heads cover an event: its line, its position, and the path."""

    heads: Heads
    position: int
    line: str
    path: Sequence[bytes]


@dataclass(slots=True)
class Checked:
    """What the check of a bundle has found: what it proves, and what is wrong with it."""

    proven: list[str]
    faults: list[str]


def bundle_of(
    trail: Trail, installation_id: str, inclusion: Inclusion | None, *, with_texts: bool
) -> bytes:
    """Returns the bundle as JSON. Texts are left out unless they are asked for."""
    payment = trail.payment
    writer = json.loads(trail.events[-1].body)["digests"]["writer"]
    bundle: dict[str, Any] = {
        "format": FORMAT,
        "installation_id": installation_id,
        "payment_id": payment.payment_id,
        "row": row_values(payment, writer),
        "events": [
            [event.sequence, event.kind, event.time, event.body, event.hash.hex()]
            for event in trail.events
        ],
        "postings": [
            [
                *(sequence, time, posting.account, posting.minor_units, posting.currency),
                *(posting.kind, posting.balance_transaction_id),
            ]
            for sequence, time, posting in trail.postings
        ],
        "movements": [[one.movement_id, one.kind, one.minor_units] for one in trail.movements],
    }
    if with_texts:
        bundle["texts"] = [
            [sequence, text.name, text.salt.hex(), text.text] for sequence, text in trail.texts
        ]
    if inclusion is not None:
        bundle["heads"] = inclusion.heads.to_json()
        bundle["inclusion"] = {
            "position": inclusion.position,
            "line": inclusion.line,
            "path": [one.hex() for one in inclusion.path],
        }
    return canonical(bundle).encode()


def check_bundle(content: bytes, verifier: Verifier | None) -> Checked:
    """Checks a bundle by itself, without any database. Raises :class:`Malformed`."""
    try:
        bundle = json.loads(content)
        if bundle["format"] != FORMAT:
            raise Malformed(f"the format is not {FORMAT}")
        return _checked(bundle, verifier)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as fault:
        if isinstance(fault, Malformed):
            raise
        raise Malformed("the bundle is incomplete or has a value of another type") from None


def _checked(bundle: Mapping[str, Any], verifier: Verifier | None) -> Checked:
    checked = Checked([], [])
    payment_id = str(bundle["payment_id"])
    events = [
        StoredEvent(payment_id, sequence, kind, datetime.fromisoformat(time), body, _bytes(hash_))
        for sequence, kind, time, body, hash_ in bundle["events"]
    ]
    if not events:
        raise Malformed("the bundle has no event")
    broken = first_broken(b"", 0, events)
    if broken:
        checked.faults.append(f"event {broken} is missing, or is not what was hashed")
        return checked
    checked.proven.append(f"{len(events)} events are an unbroken chain")
    faults = _contradictions(bundle, events)
    checked.faults += [str(fault) for fault in faults]
    if not faults:
        checked.proven.append("row, postings and movements are what the events say")
    _check_inclusion(bundle, events, verifier, checked)
    return checked


def _contradictions(
    bundle: Mapping[str, Any], events: Sequence[StoredEvent]
) -> list[AuditFault | str]:
    bodies = [json.loads(event.body) for event in events]
    postings = [
        (sequence, datetime.fromisoformat(time), Posting(*line))
        for sequence, time, *line in bundle["postings"]
    ]
    movements = [Movement(*movement) for movement in bundle["movements"]]
    texts = [
        (sequence, KeptText(name, _bytes(salt), text))
        for sequence, name, salt, text in bundle.get("texts", ())
    ]
    found: list[AuditFault | str | None] = [
        postings_fault(events, postings, bodies),
        movements_fault(events, movements, bodies),
        texts_fault(texts, bodies),
    ]
    row = hashlib.sha256(canonical(bundle["row"]).encode()).hexdigest()
    if row != bodies[-1]["digests"]["after"]:
        found.append("the row is not the one that the last event left")
    return [fault for fault in found if fault is not None]


def _check_inclusion(
    bundle: Mapping[str, Any],
    events: Sequence[StoredEvent],
    verifier: Verifier | None,
    checked: Checked,
) -> None:
    if "heads" not in bundle:
        checked.proven.append("no exported heads cover the payment yet: only the chain speaks")
        return
    heads, proof = heads_from_json(bundle["heads"]), bundle["inclusion"]
    position, line = int(proof["position"]), str(proof["line"])
    path = [_bytes(one) for one in proof["path"]]
    entry = event_from_line(position, line)
    root = root_by_path(leaf_hash(line.encode()), position - 1, heads.events, path)
    if root != heads.events_root:
        checked.faults.append("the proof does not lead to the root of the heads")
    if heads.installation_id != bundle["installation_id"]:
        checked.faults.append("the heads are of another installation")
    covered = [event for event in events if event.sequence == entry.sequence]
    if entry.payment_id != bundle["payment_id"] or [one.hash for one in covered] != [entry.hash]:
        checked.faults.append(f"event {entry.sequence} is not the one that the heads cover")
    signature = signature_of(heads, verifier)
    if signature.is_wrong:
        checked.faults.append(signature.sentence)
        return
    if not checked.faults:
        checked.proven.append(
            f"events 1 to {entry.sequence} were there when the heads of {heads.time:%Y-%m-%d %H:%M}"
            f" UTC were exported ({signature.sentence})"
        )
        if entry.sequence < len(events):
            checked.proven.append(f"events from {entry.sequence + 1} on are newer than the heads")


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """What is known of the signature of heads."""

    sentence: str
    is_wrong: bool = False


def signature_of(heads: Heads, verifier: Verifier | None) -> SignatureCheck:
    """Returns what the signature of heads is worth. With a public key, no other one will do."""
    if verifier is None:
        said = f"signed by {heads.key_id}; not checked" if heads.signature else "not signed"
        return SignatureCheck(f"{said}: give the public key to have a signature checked")
    if not heads.signature:
        return SignatureCheck("the heads are not signed", is_wrong=True)
    if not verifier.is_signed(heads.signed_bytes, heads.signature):
        return SignatureCheck(f"the signature is not one of key {verifier.key_id}", is_wrong=True)
    return SignatureCheck(f"signed by key {verifier.key_id}")


def _bytes(value: str) -> bytes:
    return bytes.fromhex(value)
