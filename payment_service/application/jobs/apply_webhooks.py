"""Applies stored webhook events. An event is a hint to sync, never a command.

Events of one payment, account or payout are applied together by one sync. An event that fails is
retried with growing pauses; after a number of tries it is parked, and an alarm is raised.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.execution.executor import execute_followups
from payment_service.application.operations.lease import back_off
from payment_service.application.side_by_side import at_most
from payment_service.application.sync.account import sync_account
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.application.sync.lost_payments import recover_payment
from payment_service.application.sync.payment import Occasion, apply, sync_payment
from payment_service.application.sync.payout import sync_payout
from payment_service.domain.errors import Busy, Exhausted, NotFound, Refusal, Unavailable
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause, WebhookEvent
from payment_service.domain.ports.tracing import Facts
from payment_service.domain.webhook_event import FRAUD_EVENTS, PAYOUT_EVENTS, is_account_event

log = structlog.get_logger(__name__)

_BATCH: Final = 100
_AT_ONCE: Final = 8

#: How many times more tries an event gets if the reason is an outage, and not the event itself.
_OUTAGE_PATIENCE: Final = 50


async def apply_waiting(app: App) -> int:
    """Applies a batch of waiting events. Returns how many there were."""
    if app.stripe.is_unavailable:  # Every event needs a read from Stripe.
        return 0
    events = await app.database.write(lease_events, app.policy)
    groups: dict[tuple[str, str], list[WebhookEvent]] = defaultdict(list)
    for event in events:
        if event.state == "WAITING":  # What is known by now was applied when it was leased.
            groups[_subject(event)].append(event)

    async def one(key: tuple[str, str]) -> None:
        await _apply_group(app, key, groups[key])

    await at_most(_AT_ONCE, one, groups)
    return len(events)


def _subject(event: WebhookEvent) -> tuple[str, str]:
    """Returns what an event is about. All events of one subject are applied by one sync."""
    if is_account_event(event.type):
        return ("account", event.account_id)
    if event.type in PAYOUT_EVENTS:
        return ("payout", event.object_id)
    return ("payment", event.payment_ref)


async def _apply_group(app: App, key: tuple[str, str], group: Sequence[WebhookEvent]) -> None:
    kind, _ = key
    links = [event.traceparent for event in group if event.traceparent]
    facts: Facts = {"stripe.events": len(group), "stripe.event_type": group[0].type}
    with app.tracer.work(f"apply events of a {kind}", facts, links):
        await _apply(app, key, group)


async def _apply(app: App, key: tuple[str, str], group: Sequence[WebhookEvent]) -> None:
    kind, reference = key
    cause = Cause("stripe", "webhook", group[0].event_id)
    try:
        if kind == "account":
            known = await sync_account(app, reference, cause)
            verdict = "applied" if known else "unknown_object"
        elif kind == "payout":
            verdict = await sync_payout(app, group[0].account_id, reference, cause)
        else:
            verdict = await _apply_to_payment(app, reference, group, cause)
            if not verdict:
                return
    except Refusal as refusal:
        # An outage is not the fault of the event, so the event gets more tries then.
        patience = _OUTAGE_PATIENCE if isinstance(refusal, Unavailable | Exhausted | Busy) else 1
        await _postpone(app, group, refusal.reason, patience)
        return
    except Exception as error:  # noqa: BLE001 - one event that fails must not stop the others
        log.error("webhook_event_failed", error=type(error).__name__, event_id=group[0].event_id)
        await _postpone(app, group, f"unexpected {type(error).__name__}", 1)
        return
    state = "IGNORED" if verdict == "unknown_object" else "APPLIED"
    await app.database.write(finish_events, group, state, verdict)


def lease_events(tx: Transaction, policy: Policy) -> Sequence[WebhookEvent]:
    """Returns events, leased for as long as an operation. A dead replica's events are due then."""
    return tx.lease_webhook_events(policy.lease, policy.event_gathering, _BATCH)


def finish_events(tx: Transaction, group: Sequence[WebhookEvent], state: str, verdict: str) -> None:
    """Records what became of the events."""
    tx.finish_events([event.event_id for event in group], state, verdict)


async def _apply_to_payment(
    app: App, reference: str, group: Sequence[WebhookEvent], cause: Cause
) -> str:
    """Returns what came of the events, or "" if the sync has closed them with that."""
    applied = await _sync(app, reference, group, cause)
    if applied is None:
        return "unknown_object"
    if applied.payment is not None and not applied.payment.payment_intent_id:
        applied = await _adopt_intent(app, applied, group, cause)
    # The event may have settled the first leg of an operation; the next leg is executed now.
    await execute_followups(app, applied, cause)
    if applied.deferred or applied.stale or applied.shows_more:
        raise Busy("DEFERRED", "something else must be settled first")
    if applied.closed_events:
        return ""
    return "applied" if applied.changed else "no_change"


async def _sync(
    app: App, reference: str, group: Sequence[WebhookEvent], cause: Cause
) -> SyncResult | None:
    """Syncs the payment of the reference; returns None if there is no such payment."""
    is_ours = reference.startswith("pay_")
    payment_id = (
        reference
        if is_ours
        else await app.database.read(lambda reader: reader.payment_of(reference))
    )
    if payment_id is None:
        return None
    occasion = Occasion(
        warned=any(event.type in FRAUD_EVENTS for event in group),
        event_ids=tuple(event.event_id for event in group),
    )
    try:
        return await sync_payment(app, payment_id, cause, occasion=occasion)
    except NotFound:
        # It has the mark of a payment: perhaps of one that this database has lost.
        recovered = await _recover(app, group, cause)
    if recovered is None:
        return None
    return await sync_payment(app, recovered, cause, occasion=occasion)


async def _recover(app: App, group: Sequence[WebhookEvent], cause: Cause) -> str | None:
    for intent in {event.payment_intent_id for event in group if event.payment_intent_id}:
        recovered = await recover_payment(app, intent, cause)
        if recovered is not None and recovered.payment_id:
            return recovered.payment_id
    return None


async def _adopt_intent(
    app: App, applied: SyncResult, group: Sequence[WebhookEvent], cause: Cause
) -> SyncResult:
    """Adopts the intent that an event names, if the answer to its creation never arrived."""
    payment = applied.payment
    intents = {event.payment_intent_id for event in group if event.payment_intent_id}
    if payment is None or len(intents) != 1:
        return applied
    snapshot = await app.stripe.observe(intents.pop())
    if snapshot is None or snapshot.metadata.get("payment_id") != payment.payment_id:
        return applied
    if not snapshot.accepts_cards:  # Its creation counts as refused.
        return applied
    return await apply(app, payment.payment_id, snapshot, payment.version, cause)


async def _postpone(app: App, group: Sequence[WebhookEvent], why: str, patience: int) -> None:
    most = app.policy.tries_before_parking * patience
    parked = await app.database.transact(postpone_events, app.policy, group, why, most)
    for event_id in parked:
        app.alarms.event_parked(event_id, why)


def postpone_events(
    tx: Transaction, policy: Policy, group: Sequence[WebhookEvent], why: str, most: int
) -> list[str]:
    """Schedules the events for another try, or parks them. Returns the ids of the parked ones."""
    parked = []
    for event in group:
        seconds = None if event.attempts >= most else back_off(policy, event.attempts)
        if tx.postpone_event(event.event_id, why, seconds) and seconds is None:
            parked.append(event.event_id)
    return parked
