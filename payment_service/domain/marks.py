"""Marks: what this service writes into the metadata of each object that it makes at Stripe.

They say which installation and which operation made the object, and what the operation asked for.
So a database that has lost the operation can record it again. Stripe limits metadata to 50 keys and
a value to 500 characters, so the operation is cut into parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, Final

from payment_service.domain.operation_payloads import (
    MalformedPayload,
    OperationPayload,
    payload_from_json,
    payload_to_json,
)
from payment_service.domain.operations import (
    PAYLOAD_TYPES,
    Operation,
    OperationKind,
    OperationPurpose,
)
from payment_service.domain.payment import Payment
from payment_service.domain.snapshot import (
    IntentStatus,
    PaymentSnapshot,
    Refund,
    Reversal,
    Transfer,
)

#: A capture changes an intent that has the marks of its creation already.
CAPTURE: Final = "capture_"
_PART: Final = 500
#: Leaves room for the other keys of the metadata.
_MOST_PARTS: Final = 20
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedOperation:
    """An operation as an object at Stripe shows it."""

    operation_id: str
    kind: OperationKind
    purpose: OperationPurpose
    minor_units: int
    payload: OperationPayload
    #: The object that it made, and when (UTC).
    object_id: str
    create_time: datetime


def marks_of(operation: Operation, installation_id: str, prefix: str = "") -> dict[str, str]:
    """Returns the marks of the object that an operation makes.

    They depend on the request alone: Stripe compares them when a request is repeated.
    """
    asked = {
        "kind": operation.kind.value,
        "purpose": operation.purpose.value,
        "minor_units": operation.minor_units,
        "payload": payload_to_json(operation.payload),
    }
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    parts = [text[start : start + _PART] for start in range(0, len(text), _PART)]
    marks = {
        f"{prefix}installation_id": installation_id,
        f"{prefix}operation_id": operation.operation_id,
    }
    if len(parts) <= _MOST_PARTS:
        marks |= {f"{prefix}operation_{number}": part for number, part in enumerate(parts)}
    return marks


def marked_operation(
    metadata: Mapping[str, str],
    installation_id: str,
    object_id: str,
    create_time: datetime | None,
    prefix: str = "",
) -> MarkedOperation | None:
    """Returns the operation that made an object, or None if this installation did not make it.

    None also for marks that cannot be read, so that they are never half understood.
    """
    operation_id = metadata.get(f"{prefix}operation_id", "")
    if not operation_id or metadata.get(f"{prefix}installation_id") != installation_id:
        return None
    parts = (metadata.get(f"{prefix}operation_{part}", "") for part in range(_MOST_PARTS))
    text = "".join(takewhile(bool, parts))
    try:
        asked: dict[str, Any] = json.loads(text)
        kind = OperationKind(asked["kind"])
        return MarkedOperation(
            operation_id=operation_id,
            kind=kind,
            purpose=OperationPurpose(asked["purpose"]),
            minor_units=int(asked["minor_units"]),
            payload=payload_from_json(PAYLOAD_TYPES[kind], asked["payload"]),
            object_id=object_id,
            create_time=create_time or _EARLIEST,
        )
    except (ValueError, KeyError, TypeError, MalformedPayload):
        return None


#: Objects of one second are taken in this order: what is captured can be refunded.
_ORDER: Final = (
    OperationKind.CAPTURE,
    OperationKind.PROMOTE,
    OperationKind.TRANSFER,
    OperationKind.REFUND,
    OperationKind.REVERSE_TRANSFER,
)


def unbooked_operations(
    payment: Payment, snapshot: PaymentSnapshot, booked_ids: frozenset[str], installation_id: str
) -> Sequence[MarkedOperation]:
    """Returns the operations of this installation whose effect is not on the books, oldest first.

    The open operation is among them, if it has taken effect.
    """
    objects: list[tuple[str, Refund | Transfer | Reversal]] = [
        *((one.refund_id, one) for one in snapshot.refunds),
        *((one.transfer_id, one) for one in snapshot.separate_transfers),
        *((one.reversal_id, one) for sent in snapshot.transfers for one in sent.reversals),
    ]
    found = [
        marked_operation(one.metadata, installation_id, object_id, one.create_time)
        for object_id, one in objects
        if object_id not in booked_ids
    ]
    if snapshot.status is IntentStatus.SUCCEEDED and not payment.charged:
        intent = snapshot.payment_intent_id
        found.append(marked_operation(snapshot.metadata, installation_id, intent, None, CAPTURE))
    known = [one for one in found if one is not None and one.kind in _ORDER]
    return sorted(known, key=lambda one: (one.create_time, _ORDER.index(one.kind)))
