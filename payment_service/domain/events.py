"""The audit trail: what an event says, and the hash that chains a payment's events."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

from payment_service.domain.escrow import Transition
from payment_service.domain.ports import Cause


def event_body(transition: Transition, cause: Cause) -> str:
    """What the audit trail keeps of a transition: canonical JSON, stored and hashed as it is."""
    after = transition.after
    body = {
        "from": transition.before.state.value if transition.before else None,
        "to": after.state.value,
        "amounts": {
            "amount": after.amount,
            "held": after.held,
            "captured": after.captured,
            "refunded": after.refunded,
            "lost": after.lost + after.lost_held,
            "net_commission": after.net_commission,
            "client_owed": after.client_owed,
            "currency": after.currency,
        },
        "facts": dict(transition.facts),
        "by": {"caller": cause.caller, "rpc": cause.rpc, "request_id": cause.request_id},
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def chain_hash(
    former: bytes, payment_id: str, sequence: int, kind: str, time: datetime, body: str
) -> bytes:
    """SHA-256 over the former hash and everything that the event says.

    Every part is preceded by its length, so that no two events can be written alike.
    """
    digest = hashlib.sha256(former)
    moment = time.astimezone(UTC).isoformat(timespec="microseconds")
    for part in (payment_id, str(sequence), kind, moment, body):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()
