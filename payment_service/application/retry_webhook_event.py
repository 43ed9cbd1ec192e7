"""RetryWebhookEvent: an operator has a parked webhook event applied again."""

from __future__ import annotations

from payment_service.application.app import App
from payment_service.domain.errors import Precondition, webhook_event_not_found
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import WebhookEvent


async def retry_webhook_event(app: App, event_id: str) -> WebhookEvent:
    """Makes a parked webhook event due now. Raises :class:`Refusal`."""
    event = await app.database.transact(unpark_event, event_id)
    app.wake.set()
    if event is not None:
        return event
    known = await app.database.read(lambda reader: reader.webhook_event(event_id))
    if known is None:
        raise webhook_event_not_found(event_id)
    raise Precondition(
        "WRONG_STATE",
        f"the event is {known.state}; only a parked one is retried",
        {"event_id": event_id, "state": known.state, "allowed_states": "PARKED"},
    )


def unpark_event(tx: Transaction, event_id: str) -> WebhookEvent | None:
    return tx.retry_event(event_id)
