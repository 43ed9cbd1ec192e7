"""Reads Stripe's lists of events, so that nothing depends on webhooks alone.

Webhooks may never arrive: the endpoint is disabled, its secret was rotated, the gateway is down. A
service that never receives one still converges, because it reads the same events from the lists,
and because `poll_stale_payments` syncs payments that have not changed for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.jobs.poll_stale_payments import POLL
from payment_service.application.side_by_side import at_most
from payment_service.application.store_events import store_events, wake_for
from payment_service.application.sync.account import sync_account
from payment_service.domain.errors import Refusal
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import EventCursor, ListedEvents, StoredEvents

log = structlog.get_logger(__name__)

#: Stripe's events may become visible a little out of order, so the place from which the next read
#: continues is always at least this old.
_SETTLING: Final = timedelta(seconds=10)

#: How far back the first read starts, and a read whose place Stripe no longer knows.
_OVERLAP: Final = timedelta(seconds=60)

#: Stripe allows 25 reads a second; a round uses only some of them.
_ACCOUNTS_A_ROUND: Final = 10
_RESTING_A_ROUND: Final = 100
#: One list that is long or slow must not hold up the platform's.
_AT_ONCE: Final = 4


async def poll_events(app: App) -> int:
    """Stores the events of the lists that are due. Each event is stored once."""
    if app.stripe.is_unavailable:
        return 0
    cursors = await app.database.transact(lease_cursors, app.policy)
    await at_most(_AT_ONCE, partial(_poll, app), cursors)
    return 0


async def _poll(app: App, cursor: EventCursor) -> None:
    try:
        since = cursor.seen_until - _OVERLAP
        listed: ListedEvents | None
        if cursor.is_thin:
            listed = ListedEvents(await app.stripe.thin_events(since))
        else:
            listed = await app.stripe.events(cursor.stripe_account_id, cursor.after_event_id, since)
        if listed is None:  # The account has revoked our access.
            await sync_account(app, cursor.stripe_account_id, POLL)
        else:
            stored = await app.database.transact(store_polled, app.policy, cursor, listed)
            wake_for(app, stored)
            if stored.new_ids:
                app.alarms.events_found_by_polling(cursor, len(stored.new_ids))
    except Refusal as refusal:  # The list is due again after its pause.
        log.info("poll_deferred", scope=cursor.scope, reason=refusal.reason)
    except Exception as error:  # noqa: BLE001 - one list must not stop the others
        log.error("poll_failed", scope=cursor.scope, error=type(error).__name__)


def lease_cursors(tx: Transaction, policy: Policy) -> Sequence[EventCursor]:
    """Returns the lists that are due.

    These are the platform's two lists, of events and of thin events, the lists of accounts that are
    not ready or have open payments, and, less often, the lists of accounts that may still pay out
    earnings.
    """
    cursors = [
        *tx.lease_event_cursors(policy.poll_seconds, 0),
        *tx.lease_event_cursors(policy.account_poll_seconds, _ACCOUNTS_A_ROUND),
        *tx.lease_event_cursors(policy.payout_poll_seconds, _ACCOUNTS_A_ROUND, paid_out=True),
    ]
    tx.rest_event_cursors(policy.payout_poll_seconds, _RESTING_A_ROUND)
    return cursors


def store_polled(
    tx: Transaction, policy: Policy, cursor: EventCursor, listed: ListedEvents
) -> StoredEvents:
    """Stores the events that no webhook brought and moves the cursor.

    A list that ends and shows nothing new says that the books know all until now. So a quiet
    platform, and a busy one whose events the webhooks bring first, differ from a database that is
    behind. A list that does not end yet is read on at once. It says so only of books that were new
    before: what old ones have lost may be in the rest.
    """
    events = listed.events
    stored = store_events(tx, policy, events) if events else StoredEvents()
    settled = [event for event in events if event.create_time <= tx.now - _SETTLING]
    after = settled[-1].event_id if settled else cursor.after_event_id
    seen_until = cursor.seen_until
    if not stored.new_ids and not (listed.has_more and tx.catches_up()):
        seen_until = max(seen_until, cursor.lease_time - _SETTLING)
    elif settled:
        # An event may come late, after a list without it has moved the cursor beyond it.
        seen_until = max(seen_until, settled[-1].create_time)
    if settled or cursor.scope == "platform":  # How old the books are is judged by its list.
        tx.advance_event_cursor(cursor.scope, seen_until, after)
    if listed.has_more:
        tx.hasten_event_cursor(cursor.scope)
    return stored
