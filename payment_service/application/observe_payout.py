"""Ask Stripe how a payout stands, and write it down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from payment_service.application.core import Core
from payment_service.domain.errors import Busy, Refusal, expert_not_found
from payment_service.domain.payouts import FollowedPayout, Payout, SeenPayout, follow_payout
from payment_service.domain.ports import BalanceEntry, Cause, Reader, Transaction

log = structlog.get_logger(__name__)

_TRIES: Final = 6


@dataclass(frozen=True, slots=True)
class Written:
    """``stale``: somebody else wrote meanwhile, so that what was seen may be older than that."""

    followed: FollowedPayout | None = None

    @property
    def stale(self) -> bool:
        return self.followed is None


async def observe_payout(core: Core, stripe_account_id: str, payout_id: str, cause: Cause) -> str:
    """Read the payout now and apply it; the verdict is for the inbox.

    As with payments, the version is read *before* Stripe is asked: an answer that was overtaken by
    a newer one is not written down. Raises :class:`Busy` while Stripe does not show a line yet.
    """
    expert_id = await core.database.read(lambda reader: reader.expert_of_account(stripe_account_id))
    if expert_id is None:
        return "unknown_object"
    for _ in range(_TRIES):
        known = await core.database.read(_payout, payout_id)
        seen = await core.stripe.payout(stripe_account_id, payout_id)
        if seen is None:
            return "unknown_object"
        version = known.version if known else 0
        written = await core.database.transact(
            save_payout, expert_id, stripe_account_id, seen, version, cause
        )
        if written.followed is None:
            continue
        change, deferred = written.followed.change, written.followed.deferred
        if change is not None:
            core.alarms.payout_changed(change)
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
    seen: SeenPayout,
    version: int,
    cause: Cause,
) -> Written:
    """Keep what Stripe showed, unless the payout has moved on since it was asked."""
    expert = tx.lock_expert(expert_id)
    if expert is None:
        raise expert_not_found(expert_id)
    known = tx.payout(seen.payout_id)
    if (known.version if known else 0) != version:
        return Written()
    followed = follow_payout(
        known, seen, expert_id=expert_id, stripe_account_id=stripe_account_id, now=tx.now
    )
    if followed.change is not None:
        tx.record_payout(followed.change, expert, cause)
    return Written(followed)


async def follow_missing_payouts(
    core: Core, stripe_account_id: str, entries: Sequence[BalanceEntry], cause: Cause
) -> None:
    """Follow the payouts among an account's balance transactions that the books do not have."""
    moved = {entry.balance_transaction_id: entry for entry in entries if entry.payout_id}
    if not moved or not stripe_account_id:
        return
    ours = await core.database.read(lambda reader: reader.ledger_lines(list(moved)))
    named = {line_id for line_id, _ in ours}
    behind = {entry.payout_id for line_id, entry in moved.items() if line_id not in named}
    for payout_id in sorted(behind):
        try:
            await observe_payout(core, stripe_account_id, payout_id, cause)
        except Refusal as refusal:
            log.info("reconciliation_skips", payout=payout_id, reason=refusal.reason)


def _payout(reader: Reader, payout_id: str) -> Payout | None:
    return reader.payout(payout_id)
