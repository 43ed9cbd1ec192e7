"""GetExpert: an expert, synced with Stripe when our record is old."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from payment_service.application.app import App
from payment_service.application.sync.account import sync_expert
from payment_service.domain.errors import Refusal, expert_not_found
from payment_service.domain.experts import Expert, ExpertStatus
from payment_service.domain.ports.records import Cause


async def known_expert(app: App, expert_id: str, of_user: str) -> Expert:
    """Returns the expert as recorded. Raises NOT_FOUND for an unknown one, and for one that is not
    ``of_user``, if that is given.
    """
    expert = await app.database.read(lambda reader: reader.expert(expert_id, of_user))
    if expert is None:
        raise expert_not_found(expert_id)
    return expert


async def get_expert(app: App, expert_id: str, cause: Cause) -> Expert:
    """The expert as known here, after asking Stripe if the account is not ready and we know little.

    If Stripe is away, what is known is better than nothing.
    """
    expert = await known_expert(app, expert_id, cause.act_for)
    if expert.status in (ExpertStatus.READY, ExpertStatus.CREATING) or _is_fresh(app, expert):
        return expert
    try:
        return await sync_expert(app, expert_id, cause)
    except Refusal:
        return expert


def _is_fresh(app: App, expert: Expert) -> bool:
    if expert.check_time is None:
        return False
    age = datetime.now(UTC) - expert.check_time
    return age < timedelta(seconds=app.policy.account_freshness)
