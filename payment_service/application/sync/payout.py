"""Fetches a payout from Stripe and records it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.sync.account import sync_account
from payment_service.domain.errors import Busy, Refusal, expert_not_found
from payment_service.domain.payouts import (
    Payout,
    PayoutChangeSet,
    PayoutSnapshot,
    apply_payout_snapshot,
)
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import Cause
from payment_service.domain.ports.stripe import BalanceEntry

log = structlog.get_logger(__name__)


_TRIES: Final = 6


@dataclass(frozen=True, slots=True)
class PayoutSync:
    """``stale``: the payout was changed meanwhile, so the snapshot may be older than the record."""

    changes: PayoutChangeSet | None = None

    @property
    def stale(self) -> bool:
        return self.changes is None


async def sync_payout(app: App, stripe_account_id: str, payout_id: str, cause: Cause) -> str:
    """Fetches the payout and applies it. The returned verdict is for the stored webhook event.

    As with payments, the version is read *before* Stripe is asked: an answer that was overtaken by
    a newer one is not written down. Raises :class:`Busy` while Stripe does not show a line yet.
    """
    expert_id = await app.database.read(lambda reader: reader.expert_of_account(stripe_account_id))
    if expert_id is None:
        return "unknown_object"
    for _ in range(_TRIES):
        known = await app.database.read(_payout, payout_id)
        seen = await app.stripe.payout(stripe_account_id, payout_id)
        if seen is None:
            # If the account has revoked our access, that is recorded.
            await sync_account(app, stripe_account_id, cause)
            return "unknown_object"
        version = known.version if known else 0
        written = await app.database.transact(
            save_payout, expert_id, stripe_account_id, seen, version, cause
        )
        if written.changes is None:
            continue
        change, deferred = written.changes.change, written.changes.deferred
        if change is not None:
            app.alarms.payout_changed(change)
        if deferred:
            raise Busy("DEFERRED", "Stripe does not show the payout's balance transaction yet")
        return "no_change" if change is None else "applied"
    raise Busy(
        "CONCURRENT_CHANGE", "the payout keeps changing; ask again", {"payout_id": payout_id}
    )


def save_payout(
    tx: Transaction,
    expert_id: str,
    stripe_account_id: str,
    seen: PayoutSnapshot,
    version: int,
    cause: Cause,
) -> PayoutSync:
    """Applies a snapshot, unless the payout has changed since it was fetched."""
    expert = tx.lock_expert(expert_id)
    if expert is None:
        raise expert_not_found(expert_id)
    known = tx.payout(seen.payout_id)
    if (known.version if known else 0) != version:
        return PayoutSync()
    changes = apply_payout_snapshot(
        known, seen, expert_id=expert_id, stripe_account_id=stripe_account_id, now=tx.now
    )
    if changes.change is not None:
        tx.record_payout(changes.change, expert, cause)
    return PayoutSync(changes)


async def sync_missing_payouts(
    app: App, stripe_account_id: str, entries: Sequence[BalanceEntry], cause: Cause
) -> None:
    """Syncs the payouts among an account's balance transactions that are not booked yet."""
    moved = {entry.balance_transaction_id: entry for entry in entries if entry.payout_id}
    if not moved or not stripe_account_id:
        return
    ours = await app.database.read(lambda reader: reader.ledger_lines(list(moved)))
    named = {line_id for line_id, _ in ours}
    behind = {entry.payout_id for line_id, entry in moved.items() if line_id not in named}
    for payout_id in sorted(behind):
        try:
            await sync_payout(app, stripe_account_id, payout_id, cause)
        except Refusal as refusal:
            log.info("reconciliation_skips", payout=payout_id, reason=refusal.reason)


def _payout(reader: Reader, payout_id: str) -> Payout | None:
    return reader.payout(payout_id)
