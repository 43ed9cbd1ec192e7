"""IngestEvent: verify a webhook over its raw bytes, and store it once."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from payment_service.application.app import App
from payment_service.domain.errors import InvalidArgument
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import WebhookEvent
from payment_service.domain.webhook_event import MalformedEvent, envelope_of

#: Stripe's tolerance for old signatures, and ours for clocks that run ahead. Stripe's own library
#: accepts any time in the future.
_OLDEST_SECONDS: Final = 300
_NEWEST_SECONDS: Final = 60
_MAX_SIGNATURES: Final = 16

#: An event with a snapshot of its object, and a thin one of API v2.
_EVENT_OBJECTS: Final = ("event", "v2.core.event")


@dataclass(frozen=True, slots=True)
class WebhookSecrets:
    """The secrets of one endpoint: two while one is being rolled. ``livemode`` must match."""

    secrets: tuple[str, ...]
    livemode: bool


def refused(fault: str) -> InvalidArgument:
    """What can never be right. The fault is for the log and for us; a forger learns nothing new."""
    return InvalidArgument("WEBHOOK_REFUSED", f"the webhook is refused: {fault}", {"fault": fault})


async def ingest_event(
    app: App, endpoint: str, payload: bytes, signature: str, secrets: WebhookSecrets
) -> tuple[str, bool]:
    """Store the event and return its id, and whether it was there already.

    Raises :class:`InvalidArgument` for what can never be right. OK means durable, not applied.
    """
    verify_signature(payload, signature, secrets.secrets, now=time.time())
    event = parse_event(endpoint, payload, livemode=secrets.livemode)
    stored = await app.database.transact(store_event, event)
    app.wake.set()
    return event.event_id, not stored


def store_event(tx: Transaction, event: WebhookEvent) -> bool:
    """False if it was there already."""
    return tx.store_event(event)


def verify_signature(payload: bytes, signature: str, secrets: Sequence[str], *, now: float) -> None:
    """Stripe's scheme: HMAC-SHA256 over ``t.payload``, any ``v1`` of any current secret.

    Written out here because Stripe's library lets future times pass and raises half a dozen kinds
    of errors on hostile input.
    """
    times: list[str] = []
    given: list[bytes] = []
    for part in signature.split(","):
        name, _, value = part.strip().partition("=")
        if name == "t":
            times.append(value)
        elif name == "v1":
            given.append(value.encode("ascii", "replace"))
    if len(times) != 1 or not times[0].isascii() or not times[0].isdigit() or len(times[0]) > 12:
        raise refused("no single time in the signature")
    age = now - int(times[0])
    if age > _OLDEST_SECONDS:
        raise refused("stale")
    if age < -_NEWEST_SECONDS:
        raise refused("from the future")
    if not given or len(given) > _MAX_SIGNATURES:
        raise refused("no v1 signature")
    signed = times[0].encode() + b"." + payload
    right = False
    for secret in secrets:
        wanted = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
        for candidate in given:  # Every one is compared, so that time tells nothing.
            right |= hmac.compare_digest(wanted, candidate)
    if not right:
        raise refused("wrong signature")


def parse_event(endpoint: str, payload: bytes, *, livemode: bool) -> WebhookEvent:
    """The envelope of an event. Only ids are kept: the object is read again when it is applied."""
    try:
        event = json.loads(payload.decode(), parse_int=_small_int)
    except (ValueError, RecursionError):
        raise refused("not JSON") from None
    if not isinstance(event, dict) or event.get("object") not in _EVENT_OBJECTS:
        raise refused("not an event")
    if event.get("livemode") is not livemode:
        raise refused("of the other mode")
    try:
        return envelope_of(endpoint, event, hashlib.sha256(payload).digest())
    except MalformedEvent as odd:
        raise refused(str(odd)) from None


def _small_int(digits: str) -> int:
    """Refuse numbers that no field of Stripe's has, before they cost anything."""
    if len(digits) > 20:
        raise ValueError("a number is too long")
    return int(digits)
