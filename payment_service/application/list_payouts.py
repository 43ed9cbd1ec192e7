"""ListPayouts: an expert's payouts as written down, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from payment_service.application.app import App
from payment_service.application.get_expert import known_expert
from payment_service.domain.payouts import Payout, PayoutState


async def list_payouts(
    app: App,
    expert_id: str,
    of_user: str,
    states: Sequence[PayoutState],
    before: tuple[datetime, str] | None,
    limit: int,
) -> Sequence[Payout]:
    """Returns one page by keyset. Raises NOT_FOUND for an unknown expert."""
    await known_expert(app, expert_id, of_user)
    return await app.database.read(lambda reader: reader.payouts(expert_id, states, before, limit))
