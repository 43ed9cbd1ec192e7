"""Lists of events, for what no webhook has delivered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import structlog

from payment_service.adapters.stripe.client import StripeResource
from payment_service.domain.ports.records import WebhookEvent
from payment_service.domain.webhook_event import MalformedEvent, envelope_of

log = structlog.get_logger(__name__)

#: Ten pages for one call, well within Stripe's limit of reads.
_EVENTS_AT_ONCE: Final = 1000


class Events(StripeResource):
    """Lists events of the platform and of connected accounts."""

    async def events(
        self, stripe_account_id: str, after_event_id: str, since: datetime
    ) -> Sequence[WebhookEvent] | None:
        """Returns the events after a known one, oldest first. Without one, those since a time.

        After a known event at most a thousand are returned; the next call continues from the last
        of them. The JSON is read without the SDK's objects, because creating a large number of them
        would block the event loop. Returns None if the account has revoked our access.
        """
        listed = await self._unless_revoked(self._listed(stripe_account_id, after_event_id, since))
        if listed is None:
            return None
        envelopes = [_envelope_of_listed(stripe_account_id, event) for event in listed]
        return [envelope for envelope in envelopes if envelope is not None]

    async def _listed(
        self, stripe_account_id: str, after_event_id: str, since: datetime
    ) -> list[dict[str, Any]]:
        """Returns the events as Stripe's JSON, oldest first."""
        listed: list[dict[str, Any]] = []
        if after_event_id:
            after, more = after_event_id, True
            while more and len(listed) < _EVENTS_AT_ONCE:
                page = await self._events_page(stripe_account_id, ending_before=after)
                if page is None:  # Stripe keeps events for thirty days: start again by time.
                    return await self._listed(stripe_account_id, "", since)
                # Newest first, and with `ending_before` the page next to the known event.
                listed += reversed(page["data"])
                more = page["has_more"] and bool(page["data"])
                after = listed[-1]["id"] if listed else after
        else:
            created = {"gte": int(since.timestamp())}
            page = await self._events_page(stripe_account_id, created=created)
            while page is not None and page["data"]:
                listed += page["data"]
                if not page["has_more"]:
                    break
                page = await self._events_page(
                    stripe_account_id, created=created, starting_after=listed[-1]["id"]
                )
            listed.reverse()
        return listed

    async def _events_page(self, stripe_account_id: str, **params: Any) -> dict[str, Any] | None:
        """Returns one page as Stripe's JSON, or None if the known event is not kept any more."""
        if stripe_account_id:
            params["stripe_account"] = stripe_account_id
        response = await self._calls.read(
            lambda: self._client.raw_request_async("get", "/v1/events", limit=100, **params)
        )
        return None if response is None else dict(response.data)


def _envelope_of_listed(stripe_account_id: str, event: dict[str, Any]) -> WebhookEvent | None:
    """Returns the envelope of one listed event, or None if the event is malformed."""
    endpoint = "connect" if stripe_account_id else "platform"
    try:
        return envelope_of(endpoint, event, account_id=stripe_account_id)
    except MalformedEvent as malformed:
        log.warning("malformed_event", fault=str(malformed))
        return None
