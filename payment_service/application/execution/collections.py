"""Executes COLLECT_DEBT operations: a transfer reversal that pays what an expert owes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from payment_service.application.app import App
from payment_service.application.clock import database_time
from payment_service.application.execution.strategy import Found
from payment_service.application.operations.lease import (
    back_off,
    ensure_lease,
    is_closed,
    release,
    release_lease_on_failure,
)
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.errors import outcome_unknown
from payment_service.domain.marks import marks_of
from payment_service.domain.operation_payloads import CollectionPayload
from payment_service.domain.operations import Operation, OperationState, Retry
from payment_service.domain.ports.database import Transaction
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
from payment_service.domain.snapshot import Reversal


@dataclass(frozen=True, slots=True)
class CollectionStrategy:
    """A collection belongs to the expert, and leaves the payment's own operation alone.

    While it is open it reserves its part of the debt, so that no capture keeps that back too. It
    is never parked: what Stripe refuses stays debt, and is collected another time.
    """

    awaits_followups: ClassVar[bool] = False

    app: App
    cause: Cause

    def facts(self, operation: Operation) -> Mapping[str, str]:
        return {"payment_id": operation.related_payment_id}

    async def find(self, operation: Operation) -> Found:
        app = self.app
        applied = await self._sync(operation)
        if await is_closed(app, operation):
            return Found(applied, is_closed=True)
        if operation.operation_id in applied.collecting:
            pause = app.policy.debt_check_longest_seconds
            how = Retry(why="the reversal is not done yet", after=pause, counts=False)
            await release(app, operation, how, self.cause)
            return Found(applied, is_closed=True)
        now = await app.database.transact(database_time)
        if not operation.may_resend(now):
            await app.database.transact(end_collection, operation, "not at Stripe")
            return Found(applied, is_closed=True)
        if operation.key_spent:
            await ensure_lease(app, operation, self.cause, self.facts(operation))
            how = Retry(
                why="under a new key", after=0.0, may_be_sent=False, new_key=True, counts=False
            )
            await release(app, operation, how, self.cause)
            raise outcome_unknown(**self.facts(operation))
        return Found(applied, is_closed=False)

    async def send(self, operation: Operation) -> Outcome[Reversal]:
        app, collection = self.app, operation.payload_as(CollectionPayload)
        marks = marks_of(operation, await app.database.installation_id())
        return await app.stripe.reverse_transfer(
            operation.stripe_key,
            collection.transfer_id,
            collection.transfer_minor_units,
            {"payment_id": collection.payment_id, **marks},
        )

    async def may_resend_unsent(self, operation: Operation) -> bool:
        return True

    async def record(
        self, operation: Operation, outcome: Outcome[Reversal], version: int
    ) -> SyncResult:
        app = self.app
        if isinstance(outcome, Done | Refused):
            # A refusal is believed only after a sync: Stripe also repeats one for what it did.
            applied = await self._sync(operation)
            if await is_closed(app, operation):
                return applied
            if isinstance(outcome, Refused):
                await app.database.transact(end_collection, operation, outcome.code)
                return applied
            outcome = Unknown("done, but not visible yet")
        await release(app, operation, self._retry_of(operation, outcome), self.cause)
        raise refusal_of(outcome, **self.facts(operation))

    def _retry_of(self, operation: Operation, outcome: NotSent | Unknown | Misconfigured) -> Retry:
        policy = self.app.policy
        pause = back_off(policy, operation.tries)
        match outcome:
            case NotSent(why=why):
                return Retry(why=why, after=pause, may_be_sent=False, counts=False)
            case Unknown(why=why, replayed=replayed):
                # Stripe's lists can lag behind: two reads before it is sent under a new key.
                after = policy.arrival_seconds if replayed else pause
                return Retry(why=why, after=after, spent_key=replayed, counts=False)
            case Misconfigured(code=code):
                return Retry(why=code, after=policy.debt_check_first_seconds, counts=False)

    async def _sync(self, operation: Operation) -> SyncResult:
        async with release_lease_on_failure(self.app, operation, self.cause):
            return await sync_payment(self.app, operation.related_payment_id, self.cause)


def end_collection(tx: Transaction, operation: Operation, why: str) -> None:
    """Ends a collection without effect, unless another holder has the lease by now."""
    current = tx.operation(operation.operation_id)
    if current is not None and current.is_held_by(operation):
        tx.settle_operation(operation.operation_id, OperationState.REFUSED, why)
