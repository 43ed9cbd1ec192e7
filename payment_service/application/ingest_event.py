"""IngestEvent: verify a webhook over its raw bytes, and store it once."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from payment_service.application.app import App
from payment_service.application.store_events import store_and_wake
from payment_service.domain.errors import InvalidArgument
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

    secrets: tuple[str, ...] = field(repr=False)
    livemode: bool


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of an authentic webhook. With a verdict, nothing was stored."""

    event_id: str = ""
    duplicate: bool = False
    #: In which of Stripe's lists the event is, too.
    list_name: str = ""
    #: Why there is nothing to store: ``odd``, ``other_mode`` or ``not_an_event``.
    verdict: str = ""


class Ignored(Exception):
    """An authentic webhook that is no event of ours; it is acknowledged, and counted."""

    def __init__(self, verdict: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict


def refused(fault: str) -> InvalidArgument:
    """A wrong signature. The fault is for the log and for us; a forger learns nothing new."""
    return InvalidArgument("WEBHOOK_REFUSED", f"the webhook is refused: {fault}", {"fault": fault})


async def ingest_event(
    app: App, endpoint: str, payload: bytes, signature: str, secrets: WebhookSecrets
) -> Ingested:
    """Store the event once. A result without a verdict means durable, not applied.

    Raises :class:`InvalidArgument` for a wrong signature alone. Stripe would send anything else
    that is refused again for three days, and then disable the endpoint.
    """
    verify_signature(payload, signature, secrets.secrets, now=time.time())
    try:
        event = parse_event(endpoint, payload, livemode=secrets.livemode)
    except Ignored as ignored:
        return Ingested(verdict=ignored.verdict)
    event = replace(event, traceparent=app.tracer.traceparent())
    is_new = await app.gathered_events.store(event, partial(store_and_wake, app))
    return Ingested(event.event_id, duplicate=not is_new, list_name=event.list_name)


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
    """The envelope of an event. Only ids are kept: the object is read again when it is applied.

    Raises :class:`Ignored`. A live Connect endpoint gets the events of test mode, too.
    """
    try:
        event = json.loads(payload.decode(), parse_int=_int_or_text)
    except (ValueError, RecursionError):
        raise Ignored("not_an_event") from None
    if not isinstance(event, dict) or event.get("object") not in _EVENT_OBJECTS:
        raise Ignored("not_an_event")
    if event.get("livemode") is not livemode:
        raise Ignored("other_mode" if isinstance(event.get("livemode"), bool) else "odd")
    try:
        return envelope_of(endpoint, event, hashlib.sha256(payload).digest())
    except MalformedEvent:
        raise Ignored("odd") from None


def _int_or_text(digits: str) -> Any:
    """Leaves a number that no field of ours has as text, before it costs anything."""
    return int(digits) if len(digits) <= 20 else digits
