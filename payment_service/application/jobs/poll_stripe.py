"""Polls Stripe, so that nothing depends on webhooks alone.

Webhooks may never arrive: the endpoint is disabled, its secret was rotated, the gateway is down. A
service that never receives one still converges, because it reads Stripe's list of events and syncs
payments of which nothing was heard for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.fair_queue import isolated
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.errors import Refusal
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause, EventCursor, JobKind, WebhookEvent

log = structlog.get_logger(__name__)


POLL: Final = Cause("payment_service", "poll")


#: Stripe's events may become visible a little out of order: the place from which the next reading
#: goes on is never younger than this.
_SETTLING: Final = timedelta(seconds=10)


#: How far back the first reading goes, and one whose place Stripe has forgotten.
_OVERLAP: Final = timedelta(seconds=60)


#: Stripe allows 25 reads a second; a round of the poller takes a part of that.
_ACCOUNTS_A_ROUND: Final = 10


_PAYMENTS_A_ROUND: Final = 20


async def poll_events(app: App) -> int:
    """Read the lists that are due into the inbox, which keeps each event once."""
    if app.stripe.is_unavailable:
        return 0
    for watch in await app.database.transact(lease_cursors, app.policy):
        try:
            events = await app.stripe.events(
                watch.stripe_account_id, watch.after_event_id, watch.seen_until - _OVERLAP
            )
            if await app.database.transact(store_polled, watch, events):
                app.wake.set()
        except Refusal as refusal:  # Its time will come again.
            log.info("poll_unsettled", scope=watch.scope, reason=refusal.reason)
        except Exception as error:  # noqa: BLE001 - one list must not stop the others
            log.error("poll_failed", scope=watch.scope, error=type(error).__name__)
    return 0


def lease_cursors(tx: Transaction, policy: Policy) -> Sequence[EventCursor]:
    """Whose lists are due: the platform's, those of accounts with onboarding or open money, and
    more seldom those whose earnings may be on their way to a bank."""
    return [
        *tx.lease_watches(policy.poll_seconds, 0),
        *tx.lease_watches(policy.account_poll_seconds, _ACCOUNTS_A_ROUND),
        *tx.lease_watches(policy.payout_poll_seconds, _ACCOUNTS_A_ROUND, paid_out=True),
    ]


def store_polled(tx: Transaction, watch: EventCursor, events: Sequence[WebhookEvent]) -> int:
    """Keep the events that no webhook brought, and move on; how many were new."""
    new = sum(tx.store_event(event) for event in events)
    settled = [event for event in events if event.create_time <= tx.now - _SETTLING]
    if settled:
        tx.move_watch(watch.scope, settled[-1].create_time, settled[-1].event_id)
    if new:
        log.info("events_found_by_asking", scope=watch.scope, count=new)
    return new


async def poll_stale_payments(app: App) -> int:
    """Ask Stripe directly about open payments that nothing was heard of for long."""
    if app.stripe.is_unavailable:
        return 0
    for payment_id in await app.database.transact(lease_stale_payments, app.policy):
        await isolated(JobKind.QUIET_PAYMENTS, payment_id, lambda one: sync_payment(app, one, POLL))
    return 0


def lease_stale_payments(tx: Transaction, policy: Policy) -> Sequence[str]:
    return tx.lease_quiet_payments(policy.quiet_seconds, _PAYMENTS_A_ROUND)
