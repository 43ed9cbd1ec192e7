"""Stores webhook events, and wakes the job that applies them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from payment_service.application.app import App
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import StoredEvents, WebhookEvent


async def store_and_wake(app: App, events: Sequence[WebhookEvent]) -> StoredEvents:
    """Stores the events that are not there already. When it returns, they are durable."""
    stored = await app.database.write(store_events, app.policy, events)
    wake_for(app, stored)
    return stored


def wake_for(app: App, stored: StoredEvents) -> None:
    """Wakes the job that applies events, when the events have waited as long as they should."""
    loop, policy = asyncio.get_running_loop(), app.policy
    if stored.has_due and not policy.event_gathering:
        app.wake.set()
    elif stored.has_due:
        loop.call_later(policy.event_gathering, app.wake.set)
    if stored.has_expected:
        loop.call_later(policy.own_event_patience, app.wake.set)


def store_events(tx: Transaction, policy: Policy, events: Sequence[WebhookEvent]) -> StoredEvents:
    """Stores the events that are not there already."""
    return tx.store_events(events, policy.own_event_patience, policy.event_gathering)
