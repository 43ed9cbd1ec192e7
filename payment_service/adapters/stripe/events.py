"""Lists of events, for what no webhook has delivered."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import structlog

from payment_service.adapters.stripe.client import StripeResource
from payment_service.adapters.stripe.fields import Json, flag, items, text
from payment_service.domain.ports.records import ListedEvents, WebhookEvent
from payment_service.domain.webhook_event import (
    ACCOUNT_EVENTS,
    PAYMENT_EVENTS,
    PAYOUT_EVENTS,
    MalformedEvent,
    envelope_of,
)

log = structlog.get_logger(__name__)

#: Ten pages for one call, well within Stripe's limit of reads.
_EVENTS_AT_ONCE: Final = 1000
#: Stripe lists only these, at most twenty types.
_OF_PLATFORM: Final = sorted(PAYMENT_EVENTS)
_OF_ACCOUNTS: Final = sorted(ACCOUNT_EVENTS | PAYOUT_EVENTS)


class Events(StripeResource):
    """Lists events of the platform and of connected accounts."""

    async def events(
        self, stripe_account_id: str, after_event_id: str, since: datetime
    ) -> ListedEvents | None:
        """Returns the events that are acted upon, after a known one, oldest first.

        Without a known one they are those since a time. After a known event at most about a
        thousand are returned; the next call continues from the last of them.
        Returns None if the account has revoked our access.
        """
        read = await self._unless_revoked(self._listed(stripe_account_id, after_event_id, since))
        if read is None:
            return None
        listed, more = read
        envelopes = [_envelope_of_listed(stripe_account_id, event) for event in listed]
        return ListedEvents([one for one in envelopes if one is not None], more)

    async def _listed(
        self, stripe_account_id: str, after_event_id: str, since: datetime
    ) -> tuple[list[Json], bool]:
        """Returns the events as Stripe's JSON, oldest first, and whether there are more."""
        listed: list[Json] = []
        more = False
        if after_event_id:
            after, more = after_event_id, True
            while more and len(listed) < _EVENTS_AT_ONCE:
                page = await self._events_page(stripe_account_id, ending_before=after)
                if page is None:  # Stripe keeps events for thirty days: start again by time.
                    return await self._listed(stripe_account_id, "", since)
                # Newest first, and with `ending_before` the page next to the known event.
                listed += reversed(items(page))
                more = flag(page, "has_more") and bool(items(page))
                after = text(listed[-1], "id") if listed else after
        else:
            created = {"gte": int(since.timestamp())}
            listed = await self._calls.read_all(
                lambda after: self._events_read(stripe_account_id, created=created, **after)
            )
            listed.reverse()
        return listed, more

    async def _events_page(self, stripe_account_id: str, **params: object) -> Json | None:
        """Returns one page, or None if the known event is not kept any more."""
        return await self._calls.read(lambda: self._events_read(stripe_account_id, **params))

    async def _events_read(self, stripe_account_id: str, **params: object) -> Json:
        types = _OF_ACCOUNTS if stripe_account_id else _OF_PLATFORM
        asked = {"limit": 100, "types": types, **params}
        return await self._get("/v1/events", asked, stripe_account_id)


def _envelope_of_listed(stripe_account_id: str, event: Json) -> WebhookEvent | None:
    """Returns the envelope of one listed event, or None if the event is malformed."""
    endpoint = "connect" if stripe_account_id else "platform"
    try:
        return envelope_of(endpoint, event, account_id=stripe_account_id)
    except MalformedEvent as malformed:
        log.warning("malformed_event", fault=str(malformed))
        return None
