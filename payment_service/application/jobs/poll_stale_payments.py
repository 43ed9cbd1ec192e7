"""Syncs open payments that have not changed for a while, although no event asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from payment_service.application.app import App
from payment_service.application.fair_queue import isolated
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause, JobKind

POLL: Final = Cause("payment_service", "poll")

#: Stripe allows 25 reads a second; a round uses only some of them.
_PAYMENTS_A_ROUND: Final = 20


async def poll_stale_payments(app: App) -> int:
    """Syncs the payments that are due to be polled."""
    if app.stripe.is_unavailable:
        return 0
    for payment_id in await app.database.transact(lease_stale_payments, app.policy):
        await isolated(
            JobKind.POLL_STALE_PAYMENTS, payment_id, lambda one: sync_payment(app, one, POLL)
        )
    return 0


def lease_stale_payments(tx: Transaction, policy: Policy) -> Sequence[str]:
    """Returns the payments, and postpones their next poll."""
    return tx.lease_stale_payments(policy.quiet_seconds, _PAYMENTS_A_ROUND)
