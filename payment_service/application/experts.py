"""GetExpert and SetCommission."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from payment_service.application.core import Core
from payment_service.application.refresh_expert import refresh_expert
from payment_service.domain.errors import Refusal, expert_not_found
from payment_service.domain.experts import Expert, ExpertStatus
from payment_service.domain.ports import Cause, Transaction


async def get_expert(core: Core, expert_id: str, cause: Cause) -> Expert:
    """The expert as known here, after asking Stripe if the account is not ready and we know little.

    If Stripe is away, what is known is better than nothing.
    """
    expert = await core.database.read(lambda reader: reader.expert(expert_id))
    if expert is None:
        raise expert_not_found(expert_id)
    if expert.status in (ExpertStatus.READY, ExpertStatus.CREATING) or _is_fresh(core, expert):
        return expert
    try:
        return await refresh_expert(core, expert_id, cause)
    except Refusal:
        return expert


def _is_fresh(core: Core, expert: Expert) -> bool:
    if expert.check_time is None:
        return False
    age = datetime.now(UTC) - expert.check_time
    return age < timedelta(seconds=core.policy.account_freshness)


async def set_commission(core: Core, expert_id: str, basis_points: int, cause: Cause) -> Expert:
    """The rate of future payments; those that were initiated keep theirs."""
    return await core.database.transact(save_commission, expert_id, basis_points, cause)


def save_commission(tx: Transaction, expert_id: str, basis_points: int, cause: Cause) -> Expert:
    expert = tx.lock_expert(expert_id)
    if expert is None:
        raise expert_not_found(expert_id)
    if expert.commission_basis_points == basis_points:
        return expert
    after = replace(
        expert,
        commission_basis_points=basis_points,
        version=expert.version + 1,
        update_time=tx.now,
    )
    tx.save_expert(after, "expert.commission_set", cause)
    return after
