"""SetCommission: the commission of an expert's future payments."""

from __future__ import annotations

from dataclasses import replace

from payment_service.application.app import App
from payment_service.domain.errors import expert_not_found
from payment_service.domain.experts import Expert
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause


async def set_commission(app: App, expert_id: str, basis_points: int, cause: Cause) -> Expert:
    """The rate of future payments; those that were initiated keep theirs."""
    return await app.database.transact(save_commission, expert_id, basis_points, cause)


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
