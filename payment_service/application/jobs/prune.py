"""Deletes what is kept for a time only: events of Stripe, stored answers, onboarding tokens.

What the books and the audit trail need is kept for ever; so are the callers' keys, because a key
that was forgotten would pay a second time.
"""

from __future__ import annotations

from typing import Final

from payment_service.application.app import App
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy

#: How many rows of a table one transaction deletes.
_BATCH: Final = 500


async def prune(app: App) -> int:
    """Deletes what has become too old. The job runs on one replica, from time to time."""
    if await app.database.transact(lease_pruning, app.policy):
        while await app.database.transact(prune_some, app.policy):
            pass
    return 0


def lease_pruning(tx: Transaction, policy: Policy) -> bool:
    return tx.lease_job("prune", policy.prune_seconds)


def prune_some(tx: Transaction, policy: Policy) -> bool:
    """Deletes a batch of each table. Returns whether there may be more."""
    deleted = (
        tx.prune_webhook_events(policy.webhook_event_retention, _BATCH),
        tx.prune_answers(policy.answer_retention, _BATCH),
        tx.prune_onboarding_tokens(_BATCH),
    )
    return _BATCH in deleted
