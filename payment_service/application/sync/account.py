"""Fetches an expert's account from Stripe and records it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from payment_service.application.app import App
from payment_service.domain.errors import Busy, expert_not_found
from payment_service.domain.experts import Account, Expert, ExpertStatus
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause
from payment_service.domain.schedule import account_check_due_time

_TRIES: Final = 6


async def sync_expert(app: App, expert_id: str, cause: Cause) -> Expert:
    """Returns the expert with the account as Stripe shows it now. Webhooks may be late or lost."""
    for _ in range(_TRIES):
        expert = await app.database.read(lambda reader: reader.expert(expert_id))
        if expert is None:
            raise expert_not_found(expert_id)
        if not expert.account.stripe_account_id:
            return expert
        account = await app.stripe.account(expert.account.stripe_account_id)
        saved = await app.database.transact(
            save_account, app.policy, expert_id, account, expert.version, cause
        )
        if saved is not None:
            if _has_new_deadline(expert, saved):
                app.alarms.requirements_announced(saved)
            return saved
    raise Busy(
        "CONCURRENT_CHANGE", "the expert keeps changing; ask again", {"expert_id": expert_id}
    )


async def sync_account(app: App, stripe_account_id: str, cause: Cause) -> bool:
    """Syncs an expert's present or former account. Returns False if no expert has or had it."""
    expert_id = await app.database.read(lambda reader: reader.expert_of_account(stripe_account_id))
    if expert_id is None:
        return False
    expert = await sync_expert(app, expert_id, cause)
    if expert.account.stripe_account_id != stripe_account_id:
        account = await app.stripe.account(stripe_account_id)
        await app.database.transact(
            save_former_account, expert_id, stripe_account_id, account, cause
        )
    return True


def save_account(
    tx: Transaction,
    policy: Policy,
    expert_id: str,
    account: Account | None,
    version: int,
    cause: Cause,
) -> Expert | None:
    """Records what Stripe showed. Returns None if the expert has changed since it was fetched.

    ``account`` None means that the account is no longer ours to see: deauthorized.
    """
    expert = tx.lock_expert(expert_id)
    if expert is None:
        raise expert_not_found(expert_id)
    if expert.version != version:  # By a payout, perhaps: what was seen of the account is lost.
        return None
    deauthorized = account is None
    seen = expert.account if account is None else account
    changed = seen != expert.account or deauthorized != expert.deauthorized
    after = replace(
        expert,
        account=seen,
        deauthorized=deauthorized,
        check_time=tx.now,
        version=expert.version + 1 if changed else expert.version,
        update_time=tx.now if changed else expert.update_time,
    )
    after = with_next_check(tx, policy, after)
    kind = "expert.account_changed"
    if _has_new_deadline(expert, after):
        kind = "expert.requirements_announced"
    tx.save_expert(after, kind if changed else "", cause)
    return after


def _has_new_deadline(before: Expert, after: Expert) -> bool:
    """Whether Stripe wants something by a time that it has named now, while the account works."""
    deadline = after.account.first_deadline
    works = after.status is ExpertStatus.READY
    return works and deadline is not None and deadline != before.account.first_deadline


def with_next_check(tx: Transaction, policy: Policy, expert: Expert) -> Expert:
    """Returns a locked expert, whose account was just read, with the time of the next read."""
    captures_wait = tx.captures_wait_for(expert.expert_id)
    due = account_check_due_time(expert, tx.now, policy, captures_wait=captures_wait)
    return replace(expert, check_due_time=due)


def save_former_account(
    tx: Transaction, expert_id: str, stripe_account_id: str, account: Account | None, cause: Cause
) -> None:
    """Records whether Stripe still shows a former account. Nothing else of it matters.

    ``account`` None means that it does not.
    """
    expert = tx.lock_expert(expert_id)
    deauthorized = account is None
    if expert is None or not tx.see_former_account(stripe_account_id, deauthorized=deauthorized):
        return
    tx.save_expert(
        replace(expert, version=expert.version + 1, update_time=tx.now),
        f"expert.former_account_{'deauthorized' if deauthorized else 'connected'}",
        cause,
        former_account_id=stripe_account_id,
    )
