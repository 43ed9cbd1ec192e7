"""Reads experts' accounts from Stripe at stored times, although no event asks for it.

Stripe may send no event about an account: accounts of newer platforms may report only by events
that this service does not read. A capture that waits for its expert must continue all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from payment_service.application.app import App
from payment_service.application.fair_queue import isolated
from payment_service.application.jobs.poll_stale_payments import POLL
from payment_service.application.sync.account import sync_expert
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import JobKind

#: Half of a round is for accounts that are ready, so that many of them delay nobody who waits.
_HALF_A_ROUND: Final = 10


async def check_accounts(app: App) -> int:
    """Syncs the experts who are due. Returns how many there were.

    If Stripe cannot be read, an expert is due again after the shortest pause.
    """
    if app.stripe.is_unavailable:
        return 0
    due = await app.database.transact(lease_account_checks, app.policy)
    for expert_id in due:
        await isolated(
            JobKind.CHECK_ACCOUNTS,
            expert_id,
            lambda one: sync_expert(app, one, POLL),
            subject="expert",
        )
    return len(due)


def lease_account_checks(tx: Transaction, policy: Policy) -> Sequence[str]:
    """Returns the experts, and postpones their next turn."""
    pause = policy.waiting_account_seconds
    return [
        *tx.lease_account_checks(pause, _HALF_A_ROUND, ready=False),
        *tx.lease_account_checks(pause, _HALF_A_ROUND, ready=True),
    ]
