"""Folds new postings into the running balances, so that a sum costs the same after years."""

from __future__ import annotations

from typing import Final

from payment_service.application.app import App
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy

#: How many postings one transaction folds; it takes some tens of milliseconds.
_BATCH: Final = 20_000


async def fold_balances(app: App) -> int:
    """Folds one batch. Returns whether there is more."""
    return int(await app.database.transact(fold_some, app.policy))


def fold_some(tx: Transaction, policy: Policy) -> bool:
    """Folds some postings of the closed span. Returns whether there are more."""
    return tx.fold_postings(policy.slow_job_interval, policy.fold_seconds, _BATCH)
