"""Retries captures that wait for the expert's account, once the account can be paid."""

from __future__ import annotations

from typing import Final

from payment_service.application.app import App
from payment_service.application.fair_queue import process_fairly
from payment_service.application.jobs.recover_operations import RECOVERY
from payment_service.application.resume_operation import sync_and_unpark
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import JobKind
from payment_service.domain.schedule import may_retry_capture

_BATCH: Final = 32


async def retry_waiting_captures(app: App) -> int:
    """Resumes the captures whose expert can be paid again."""

    async def resume(payment_id: str) -> None:
        operation_id = await app.database.transact(capture_to_retry, app.policy, payment_id)
        # The operation may be abandoned, or resumed by another replica, before this call: then it
        # is not parked any more, and the call is refused.
        if operation_id:
            await sync_and_unpark(app, operation_id, payment_id, RECOVERY)

    waiting = await app.database.read(lambda reader: reader.payments_waiting_for_experts(_BATCH))
    await process_fairly(app, JobKind.RETRY_WAITING_CAPTURES, waiting, resume)
    return 0


def capture_to_retry(tx: Transaction, policy: Policy, payment_id: str) -> str:
    """Returns the id of the parked capture, or an empty string if it is not to be tried now."""
    payment = tx.lock_payment(payment_id)
    expert = tx.expert(payment.expert_id) if payment else None
    if payment is None or expert is None:
        return ""
    return payment.operation_id if may_retry_capture(payment, expert, tx.now, policy) else ""
