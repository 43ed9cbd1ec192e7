"""The envelope of one of Stripe's events: which objects it speaks of, and whether we act on it.

Only ids are kept. The object itself is read again when the event is applied, and may hold a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from payment_service.domain.operations import OperationKind
from payment_service.domain.ports.records import WebhookEvent

#: What is acted upon, and what the webhook endpoints are registered for. Stripe often sends several
#: events for one fact; here is one of them for each (decision 78). Stripe's list of events takes at
#: most twenty types.
PAYMENT_EVENTS: Final = frozenset(
    {
        "payment_intent.amount_capturable_updated",
        "payment_intent.succeeded",
        "payment_intent.payment_failed",
        "payment_intent.canceled",
        "charge.updated",
        "charge.dispute.created",
        "charge.dispute.updated",
        "charge.dispute.closed",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.funds_reinstated",
        "radar.early_fraud_warning.created",
        "radar.early_fraud_warning.updated",
        "review.opened",
        "review.closed",
        "refund.created",
        "refund.updated",
        "refund.failed",
        "transfer.created",
        "transfer.reversed",
        "application_fee.refunded",
    }
)


ACCOUNT_EVENTS: Final = frozenset(
    {"account.updated", "account.application.deauthorized", "capability.updated"}
)


_ALWAYS_ACTED_UPON: Final = PAYMENT_EVENTS | ACCOUNT_EVENTS


#: What API v2 says of accounts, in thin events: which account, and nothing else of it.
THIN_ACCOUNT_EVENTS: Final = frozenset(
    {
        "v2.core.account.closed",
        "v2.core.account.created",
        "v2.core.account.updated",
        "v2.core.account[configuration.merchant].capability_status_updated",
        "v2.core.account[configuration.merchant].updated",
        "v2.core.account[configuration.recipient].capability_status_updated",
        "v2.core.account[configuration.recipient].updated",
        "v2.core.account[defaults].updated",
        "v2.core.account[future_requirements].updated",
        "v2.core.account[identity].updated",
        "v2.core.account[requirements].updated",
    }
)


#: Of connected accounts only: the platform's own payouts are the operators' affair.
PAYOUT_EVENTS: Final = frozenset(
    {"payout.created", "payout.updated", "payout.paid", "payout.failed", "payout.canceled"}
)


#: Of these the charge itself shows nothing: the warnings are asked for where one of them came.
FRAUD_EVENTS: Final = frozenset(
    {"radar.early_fraud_warning.created", "radar.early_fraud_warning.updated"}
)


#: What an event says of the request that caused it, and of nothing else, by the operation that sent
#: the request. An operation succeeds when a snapshot from after its request is in the books, so the
#: event is known then. What changes later at Stripe (``refund.updated``, ``charge.updated``) is not
#: in this list, whatever its event names as its cause.
EFFECTS_OF: Final[Mapping[OperationKind, frozenset[str]]] = {
    OperationKind.CAPTURE: frozenset({"payment_intent.succeeded", "transfer.created"}),
    OperationKind.PROMOTE: frozenset({"payment_intent.succeeded"}),
    OperationKind.CANCEL: frozenset({"payment_intent.canceled"}),
    OperationKind.REFUND: frozenset({"refund.created"}),
    OperationKind.TRANSFER: frozenset({"transfer.created"}),
    OperationKind.REVERSE_TRANSFER: frozenset({"transfer.reversed"}),
    OperationKind.COLLECT_DEBT: frozenset({"transfer.reversed"}),
}
#: The types that a request of this service may have caused.
EFFECTS: Final = frozenset().union(*EFFECTS_OF.values())
#: `Operation.stripe_key`: the operation, and the number of its attempt.
OPERATION_KEY: Final = re.compile(r"(op_[0-9a-f]{32})-([0-9]{1,9})")


#: In the year 6325; from 10000 on no time can be stored.
_NEVER: Final = 2**37


class MalformedEvent(ValueError):
    """Not an event as Stripe sends them; the text says what is odd."""


def envelope_of(
    endpoint: str, event: Mapping[str, Any], payload_sha256: bytes = b"", account_id: str = ""
) -> WebhookEvent:
    """Returns the envelope. ``account_id`` names the account whose list of events it came from.

    Raises :class:`MalformedEvent`.
    """
    if event.get("object") == "v2.core.event":
        return _thin_envelope_of(endpoint, event, payload_sha256)
    event_id, kind = _text(event, "id"), _text(event, "type")
    if not event_id.startswith("evt_") or not kind:
        raise MalformedEvent("without id or type")
    created = event.get("created")
    if not isinstance(created, int) or not 0 <= created < _NEVER:
        raise MalformedEvent("without time")
    data = event.get("data")
    shown = data.get("object") if isinstance(data, Mapping) else None
    if not isinstance(shown, Mapping):
        raise MalformedEvent("without object")
    account = account_id or _text(event, "account") or _account_of(kind, shown)
    request = event.get("request")
    request = request if isinstance(request, Mapping) else {}
    request_key = _text(request, "idempotency_key")
    acted_upon = kind in _ALWAYS_ACTED_UPON or (kind in PAYOUT_EVENTS and account)
    return WebhookEvent(
        event_id=event_id,
        endpoint=endpoint,
        type=kind,
        object_id=_text(shown, "id"),
        account_id=account,
        payment_intent_id=_intent_of(shown),
        payment_ref=reference_of(shown),
        payload_sha256=payload_sha256,
        create_time=datetime.fromtimestamp(created, UTC),
        state="WAITING" if acted_upon else "IGNORED",
        verdict="" if acted_upon else "not_acted_upon",
        request_key=request_key,
        own_key=request_key if _tells_of_request(kind, request) else "",
    )


def _tells_of_request(kind: str, request: Mapping[str, Any]) -> bool:
    """Returns whether an event may say no more than what one request of ours did.

    Stripe leaves the request's id out of an event that it causes later by itself.
    """
    by_request = bool(_text(request, "id")) and kind in EFFECTS
    return by_request and OPERATION_KEY.fullmatch(_text(request, "idempotency_key")) is not None


def _thin_envelope_of(
    endpoint: str, event: Mapping[str, Any], payload_sha256: bytes
) -> WebhookEvent:
    """Returns the envelope of an event that names its object and does not show it."""
    event_id, kind = _text(event, "id"), _text(event, "type")
    if not event_id.startswith("evt_") or not kind:
        raise MalformedEvent("without id or type")
    related = event.get("related_object")
    shown = related if isinstance(related, Mapping) else {}
    object_id = _text(shown, "id")
    acted_upon = kind in THIN_ACCOUNT_EVENTS and object_id.startswith("acct_")
    return WebhookEvent(
        event_id=event_id,
        endpoint=endpoint,
        type=kind,
        object_id=object_id,
        account_id=object_id if acted_upon else "",
        payment_intent_id="",
        payment_ref="",
        payload_sha256=payload_sha256,
        create_time=_moment(event.get("created")),
        state="WAITING" if acted_upon else "IGNORED",
        verdict="" if acted_upon else "not_acted_upon",
    )


def _moment(created: object) -> datetime:
    """Returns a time that v2 writes as text, RFC 3339 with its offset."""
    try:
        moment = datetime.fromisoformat(created) if isinstance(created, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise MalformedEvent("without time")
    return moment.astimezone(UTC)


def is_account_event(kind: str) -> bool:
    """Returns whether an event is a reason to read its account again."""
    return kind in ACCOUNT_EVENTS | THIN_ACCOUNT_EVENTS


def _text(value: Mapping[str, Any], name: str) -> str:
    """Returns an id, or "" for what cannot be one of ours.

    Several systems can share one account at Stripe, and a text of theirs may be anything.
    """
    found = value.get(name)
    if not isinstance(found, str) or len(found) > 255 or "\x00" in found or not found.isascii():
        return ""
    return found


def _intent_of(shown: Mapping[str, Any]) -> str:
    if shown.get("object") == "payment_intent":
        return _text(shown, "id")
    return _text(shown, "payment_intent")


def reference_of(shown: Mapping[str, Any]) -> str:
    """By which the payment is found. Our own id comes first: it is known before Stripe's."""
    metadata = shown.get("metadata")
    ours = _text(metadata, "payment_id") if isinstance(metadata, Mapping) else ""
    for candidate in (ours, _text(shown, "transfer_group")):
        if candidate.startswith("pay_"):
            return candidate
    if shown.get("object") == "application_fee":
        # Its `charge` is the connected account's payment; the platform's charge stands here.
        return _text(shown, "originating_transaction") or _text(shown, "charge")
    if shown.get("object") == "transfer":
        # Of ours by now only if it draws on our charge under a label that somebody has chosen.
        return _text(shown, "source_transaction") or _text(shown, "id")
    if shown.get("object") in ("dispute", "radar.early_fraud_warning", "review"):
        return _intent_of(shown) or _text(shown, "charge")
    return _intent_of(shown) or _text(shown, "id")


def _account_of(kind: str, shown: Mapping[str, Any]) -> str:
    if kind not in ACCOUNT_EVENTS:
        return ""
    return _text(shown, "id") if shown.get("object") == "account" else _text(shown, "account")
