"""Executes the answers to disputes: evidence and acceptance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from payment_service.application.app import App
from payment_service.application.execution.strategy import Found
from payment_service.application.operations.lease import (
    back_off,
    is_closed,
    release,
    release_lease_on_failure,
)
from payment_service.application.operations.outcomes import park
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.application.sync.disputes import reject_answer
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.operation_payloads import EvidencePayload
from payment_service.domain.operations import Operation, OperationKind, Release, Retry
from payment_service.domain.ports.records import Cause
from payment_service.domain.ports.stripe import (
    Done,
    Misconfigured,
    NotSent,
    Outcome,
    Refused,
    Unknown,
)
from payment_service.domain.processor_errors import refusal_of
from payment_service.domain.snapshot import DisputeSnapshot


@dataclass(frozen=True, slots=True)
class DisputeStrategy:
    """An answer belongs to the dispute and not to the payment's operation.

    So a freeze or an out-of-band movement never forbids to send it. What follows from it for the
    expert is executed too, but the answer does not wait for that: it is recorded, and the recovery
    job continues it.
    """

    awaits_followups: ClassVar[bool] = False

    app: App
    cause: Cause

    def facts(self, operation: Operation) -> Mapping[str, str]:
        return {
            "dispute_id": operation.dispute_id,
            "payment_id": operation.related_payment_id,
        }

    async def find(self, operation: Operation) -> Found:
        applied = await self._sync(operation)
        return Found(applied, await is_closed(self.app, operation))

    async def send(self, operation: Operation) -> Outcome[DisputeSnapshot]:
        return await _send(self.app, operation)

    async def may_resend_unsent(self, operation: Operation) -> bool:
        return True

    async def record(
        self, operation: Operation, outcome: Outcome[DisputeSnapshot], version: int
    ) -> SyncResult:
        app = self.app
        if isinstance(outcome, Done | Refused):
            # A refusal is believed only after a sync: Stripe also repeats one for what it did.
            made = outcome.value if isinstance(outcome, Done) else None
            applied = await self._sync(operation, made=made)
            if await is_closed(app, operation):
                return applied
            if isinstance(outcome, Refused):
                answers = await app.database.transact(
                    reject_answer, app.answers, operation, outcome, self.cause
                )
                return replace(applied, answers={**applied.answers, **answers})
            outcome = Unknown("done, but not visible yet")
        await release(app, operation, self._release_of(operation, outcome), self.cause)
        raise refusal_of(outcome, **self.facts(operation))

    def _release_of(
        self, operation: Operation, outcome: NotSent | Unknown | Misconfigured
    ) -> Release:
        if isinstance(outcome, Misconfigured):
            return park(self.app.policy, operation, outcome.code, outcome.said)
        return Retry(
            why=outcome.why,
            after=back_off(self.app.policy, operation.tries),
            # Stripe was read, so the next try takes a new key in place of a spent one.
            new_key=isinstance(outcome, Unknown) and outcome.replayed,
            counts=not isinstance(outcome, NotSent),
        )

    async def _sync(
        self, operation: Operation, *, made: DisputeSnapshot | None = None
    ) -> SyncResult:
        async with release_lease_on_failure(self.app, operation, self.cause):
            return await sync_payment(self.app, operation.related_payment_id, self.cause, made=made)


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
