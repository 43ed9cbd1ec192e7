"""Records a warning for each deadline that is near, so that a caller can act before it passes."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from payment_service.application.app import App
from payment_service.application.fair_queue import process_fairly
from payment_service.application.jobs.act_on_deadlines import DEADLINE
from payment_service.domain import transitions
from payment_service.domain.deadlines import deadline_near
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import JobKind
from payment_service.domain.schedule import may_be_warned

_BATCH: Final = 32


async def warn_of_deadlines(app: App) -> int:
    """Records an event for every deadline that is near. Returns how many payments succeeded."""
    near = await app.database.read(
        lambda reader: reader.payments_due(JobKind.WARN_OF_DEADLINES, _BATCH)
    )
    return await process_fairly(
        app,
        JobKind.WARN_OF_DEADLINES,
        near,
        lambda payment_id: app.database.transact(warn_phase, app.policy, payment_id),
    )


def warn_phase(tx: Transaction, policy: Policy, payment_id: str) -> None:
    """Records the warning, if the payment still needs one."""
    payment = tx.lock_payment(payment_id)
    if payment is None or not may_be_warned(payment):
        return
    near = deadline_near(payment, tx.now, timedelta(seconds=policy.deadline_warning))
    if near is not None:
        warning = transitions.deadline_near(
            payment, near.kind.value, near.time, near.action, tx.now
        )
        tx.record(warning, DEADLINE)
