"""Executes the answers to disputes: evidence and acceptance."""

from __future__ import annotations

from contextlib import suppress

from payment_service.application.app import App
from payment_service.application.execution.executor import (
    back_off,
    execute_followups,
    is_closed,
    refusal_of,
    release,
    release_lease_on_failure,
    send_with_retry,
)
from payment_service.application.operations.lease import keep_lease
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.application.sync.disputes import reject_answer
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.errors import Refusal
from payment_service.domain.operation_payloads import EvidencePayload
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.ports.records import Cause
from payment_service.domain.ports.stripe import (
    Done,
    Misconfigured,
    NotSent,
    Outcome,
    Refused,
    Unknown,
)
from payment_service.domain.snapshot import DisputeSnapshot


async def execute_answer(app: App, operation: Operation, _version: int, cause: Cause) -> SyncResult:
    """Bring a leased answer to its end. Raises :class:`Refusal` while that is not known.

    What follows from it for the expert is begun here too, and finished by the sweep if need be: it
    is nothing that this answer waits for.
    """
    async with keep_lease(app, operation):
        applied = await execute_step(app, operation, cause)
    with suppress(Refusal):  # Written down; the sweep goes on with it.
        await execute_followups(app, applied, cause)
    return applied


async def execute_step(app: App, operation: Operation, cause: Cause) -> SyncResult:
    if operation.tries:
        looked = await sync_dispute(app, operation, cause)
        if await is_closed(app, operation):
            return looked
    facts = {"dispute_id": operation.dispute_id}
    outcome = await send_with_retry(app, operation, lambda: _send(app, operation), cause, facts)
    if isinstance(outcome, Done | Refused):
        # A no is believed only after looking: Stripe also repeats one for what it did after all.
        made = outcome.value if isinstance(outcome, Done) else None
        looked = await sync_dispute(app, operation, cause, made=made)
        if await is_closed(app, operation):
            return looked
        if isinstance(outcome, Refused):
            await app.database.transact(reject_answer, app.answers, operation, outcome, cause)
            return looked
        outcome = Unknown("done, but not shown yet")
    replayed = isinstance(outcome, Unknown) and outcome.replayed
    parks = isinstance(outcome, Misconfigured)
    await release(
        app,
        operation,
        outcome.code if isinstance(outcome, Misconfigured) else outcome.why,
        cause,
        None if parks else back_off(operation.tries),
        # A stored error burns the key: having looked, the next try takes a new one.
        next_attempt=replayed,
        counts=not isinstance(outcome, NotSent),
    )
    raise refusal_of(operation, outcome)


async def sync_dispute(
    app: App, operation: Operation, cause: Cause, *, made: DisputeSnapshot | None = None
) -> SyncResult:
    """Read payment and dispute."""
    async with release_lease_on_failure(app, operation, cause):
        return await sync_payment(app, operation.related_payment_id, cause, made=made)


async def _send(app: App, operation: Operation) -> Outcome[DisputeSnapshot]:
    if operation.kind is OperationKind.ACCEPT_DISPUTE:
        return await app.stripe.accept_dispute(operation.stripe_key, operation.dispute_id)
    answer = operation.payload_as(EvidencePayload)
    return await app.stripe.submit_evidence(
        operation.stripe_key,
        operation.dispute_id,
        answer.evidence,
        submit=answer.submit,
        operation_id=operation.operation_id,
    )
