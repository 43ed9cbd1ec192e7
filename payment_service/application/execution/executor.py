"""Executes an operation: sends it to Stripe, finds out what became of it, and records that.

The caller's handler, its retry and the recovery job all call :func:`execute` and hold the
operation's lease. What finding, sending and recording mean depends on the object at Stripe, so each
kind has a strategy. An operation that may have been sent before is searched for at Stripe first.
Only what Stripe does not have is sent again, under the same idempotency key while Stripe still
keeps it (23 hours); after that only an operator can have it sent.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any, TypeVar

from payment_service.application.app import App
from payment_service.application.execution.accounts import AccountStrategy
from payment_service.application.execution.collections import CollectionStrategy
from payment_service.application.execution.disputes import DisputeStrategy
from payment_service.application.execution.payments import PaymentStrategy
from payment_service.application.execution.strategy import Strategy
from payment_service.application.operations.lease import ensure_lease, keep_lease
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.errors import Refusal
from payment_service.domain.operations import OF_A_DISPUTE, Operation, OperationKind
from payment_service.domain.ports.records import Cause
from payment_service.domain.ports.stripe import NotSent, Outcome

T = TypeVar("T")


async def execute(app: App, operation: Operation, version: int, cause: Cause) -> SyncResult:
    """Executes a leased operation, and the operations that follow from it.

    Raises :class:`Refusal` if the end is not known yet: the outcome is unknown, nothing was sent,
    or it is parked. What is open then is recorded, and the recovery job continues it.
    """
    strategy = _strategy(app, operation, cause)
    async with keep_lease(app, operation):
        applied = await _execute_step(app, strategy, operation, version, cause)
    try:
        return await execute_followups(app, applied, cause)
    except Refusal:
        if strategy.awaits_followups:
            raise
        return applied


async def sync_and_execute(app: App, payment_id: str, cause: Cause) -> SyncResult:
    """Syncs the payment, and executes the operations that follow from that."""
    return await execute_followups(app, await sync_payment(app, payment_id, cause), cause)


async def execute_followups(app: App, applied: SyncResult, cause: Cause) -> SyncResult:
    """Executes the operation that a sync has recorded, if any, and those that follow from it.

    Returns the last sync's result with the answers that any of them has stored.
    """
    while applied.next_operation is not None:
        operation = applied.next_operation
        version = applied.payment.version if applied.payment else 0
        strategy = _strategy(app, operation, cause)
        async with keep_lease(app, operation):
            followed = await _execute_step(app, strategy, operation, version, cause)
        applied = replace(followed, answers={**applied.answers, **followed.answers})
    return applied


def _strategy(app: App, operation: Operation, cause: Cause) -> Strategy[Any]:
    if operation.kind is OperationKind.CREATE_ACCOUNT:
        return AccountStrategy(app, cause)
    if operation.kind is OperationKind.COLLECT_DEBT:
        return CollectionStrategy(app, cause)
    if operation.kind in OF_A_DISPUTE:
        return DisputeStrategy(app, cause)
    return PaymentStrategy(app, cause)


async def _execute_step(
    app: App, strategy: Strategy[T], operation: Operation, version: int, cause: Cause
) -> SyncResult:
    if operation.tries:
        found = await strategy.find(operation)
        if found.is_closed:
            return found.applied
        version = found.applied.payment.version if found.applied.payment else version
    outcome = await _send(app, strategy, operation, cause)
    return await strategy.record(operation, outcome, version)


async def _send(app: App, strategy: Strategy[T], operation: Operation, cause: Cause) -> Outcome[T]:
    """Sends. A lock or a rate limit at Stripe is waited out a little first."""
    facts = strategy.facts(operation)
    await ensure_lease(app, operation, cause, facts)
    outcome = await strategy.send(operation)
    for pause in app.policy.unsent_pause_seconds:
        if not isinstance(outcome, NotSent):
            break
        await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
        if not await strategy.may_resend_unsent(operation):
            break
        await ensure_lease(app, operation, cause, facts)
        outcome = await strategy.send(operation)
    return outcome
