"""Executes an operation: send it to Stripe, find out what came of it, and record that.

The caller's handler, its retry and the recovery job all call :func:`execute` and hold the
operation's lease. An operation that may have been sent before is first looked up at Stripe. Only
what Stripe does not have is sent again, under the same idempotency key while Stripe still keeps it
(23 hours); after that only an operator can have it sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, TypeVar, assert_never

from payment_service.application.app import App
from payment_service.application.operations.lease import keep_lease, renew_lease
from payment_service.application.operations.out_of_band import not_sent_because
from payment_service.application.operations.outcomes import (
    reject_operation,
    reschedule_operation,
    waits_for_expert,
)
from payment_service.application.sync.account import sync_expert
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.application.sync.payment import apply, sync_payment
from payment_service.domain.errors import (
    Busy,
    Exhausted,
    Refusal,
    Unavailable,
    outcome_unknown,
    processor_unavailable,
)
from payment_service.domain.operation_payloads import (
    AcceptancePayload,
    CancelPayload,
    CapturePayload,
    CreateAccountPayload,
    CreateIntentPayload,
    EvidencePayload,
    RefundPayload,
    ReversalPayload,
    TransferPayload,
)
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.payment import Freeze
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause
from payment_service.domain.ports.stripe import (
    Done,
    Misconfigured,
    NewIntent,
    NewTransfer,
    NotSent,
    Outcome,
    Refused,
    Unknown,
)
from payment_service.domain.snapshot import (
    MutationResult,
    PaymentSnapshot,
    Refund,
    Reversal,
    Transfer,
)

#: A lock or a rate limit at Stripe is waited out a little before the caller is bothered.
_NOT_SENT_PAUSES: Final = (0.2, 0.5, 1.0)


#: Stripe's balance transactions may appear a moment after the capture.
_LINES_PAUSES: Final = (0.2, 0.5, 1.0)


_BACK_OFF_FIRST: Final = 0.5


#: Nothing may stay unknown for long once Stripe answers again.
_BACK_OFF_MOST: Final = 5.0


#: Before a refund or a transfer is sent under a *new* key, Stripe is read twice, so far apart.
_BETWEEN_TWO_READS: Final = 61.0


T = TypeVar("T")


Answered = Outcome[PaymentSnapshot] | Outcome[Refund] | Outcome[Reversal] | Outcome[Transfer]


async def execute(app: App, operation: Operation, version: int, cause: Cause) -> SyncResult:
    """Carry out a leased operation of a payment, and the one that follows from it.

    Returns when it is settled. Raises :class:`Refusal` when it is not: the outcome is unknown,
    nothing was sent, or it is parked; the sweep goes on with it.
    """
    async with keep_lease(app, operation):
        applied = await execute_step(app, operation, version, cause)
    return await execute_followups(app, applied, cause)


async def sync_and_execute(app: App, payment_id: str, cause: Cause) -> SyncResult:
    """Read the payment at Stripe, and carry out what follows from that."""
    return await execute_followups(app, await sync_payment(app, payment_id, cause), cause)


async def execute_followups(app: App, applied: SyncResult, cause: Cause) -> SyncResult:
    """Carry out what follows from what was just written down, if anything does."""
    while applied.next_operation is not None:
        version = applied.payment.version if applied.payment else 0
        async with keep_lease(app, applied.next_operation):
            applied = await execute_step(app, applied.next_operation, version, cause)
    return applied


def back_off(tries: int) -> float:
    """Seconds until the next try: doubling, with jitter, so that replicas do not march in step."""
    most = min(_BACK_OFF_MOST, _BACK_OFF_FIRST * 2 ** min(tries, 16))
    return random.uniform(most / 2, most)  # noqa: S311 - jitter


async def execute_step(app: App, operation: Operation, version: int, cause: Cause) -> SyncResult:
    if operation.tries:
        looked = await sync_or_release(app, operation, cause)
        looked = await await_balance_transactions(app, operation, looked, cause)
        if await is_closed(app, operation):
            return looked
        version = looked.payment.version if looked.payment else version
        await check_resend_allowed(app, operation, looked, cause)
    facts = {"payment_id": operation.payment_id}
    outcome = await send_with_retry(app, operation, lambda: _send(app, operation), cause, facts)
    return await record_outcome(app, operation, outcome, version, cause)


async def send_with_retry(
    app: App,
    operation: Operation,
    send: Callable[[], Awaitable[T]],
    cause: Cause,
    facts: Mapping[str, str],
) -> T:
    """Send; what was certainly without effect is sent again a few times, after short pauses."""
    await ensure_lease(app, operation, cause, facts)
    outcome = await send()
    for pause in _NOT_SENT_PAUSES:
        if not isinstance(outcome, NotSent):
            break
        await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
        await ensure_lease(app, operation, cause, facts)
        outcome = await send()
    return outcome


async def record_outcome(
    app: App, operation: Operation, outcome: Answered, version: int, cause: Cause
) -> SyncResult:
    """Write down what Stripe answered."""
    match outcome:
        case Done(PaymentSnapshot() as seen):
            applied = await apply(app, operation.payment_id, seen, version, cause)
            return await await_balance_transactions(app, operation, applied, cause)
        case Done(value):
            made = value if isinstance(value, Refund | Transfer | Reversal) else None
            applied = await sync_or_release(app, operation, cause, made=made)
            return await await_balance_transactions(app, operation, applied, cause)
        case Refused():
            return await confirm_refusal(app, operation, outcome, cause)
        case NotSent():
            state = OperationState.STARTED
            pause = back_off(operation.tries)
            await release(app, operation, outcome.why, cause, pause, state=state, counts=False)
            raise _not_sent(operation, outcome)
        case Unknown():
            await mark_unknown(app, operation, outcome.why, cause, replayed=outcome.replayed)
            raise outcome_unknown(payment_id=operation.payment_id)
        case Misconfigured():
            await release(app, operation, outcome.code, cause, None)
            raise _misconfigured(operation, outcome)
        case _:
            assert_never(outcome)


async def await_balance_transactions(
    app: App, operation: Operation, applied: SyncResult, cause: Cause
) -> SyncResult:
    """Look again while the books moved meanwhile, or Stripe does not show its every line yet."""
    for pause in (0.0, *_LINES_PAUSES):
        if applied.next_operation is not None:
            return applied
        if not (applied.stale or applied.operation_deferred):
            return applied
        await asyncio.sleep(pause)
        applied = await sync_or_release(app, operation, cause)
    if applied.operation_deferred and not await is_closed(app, operation):
        await mark_unknown(app, operation, "balance transactions are not there yet", cause)
        raise outcome_unknown(payment_id=operation.payment_id)
    return applied


async def confirm_refusal(
    app: App, operation: Operation, refused: Refused, cause: Cause
) -> SyncResult:
    """Believe a no only after looking: Stripe also replays a no for what it did after all."""
    applied = await sync_or_release(app, operation, cause)
    applied = await await_balance_transactions(app, operation, applied, cause)
    if not await is_closed(app, operation):
        if waits_for_expert(operation, refused) and applied.payment is not None:
            # So that what we know of the account is what Stripe's refusal was about.
            await sync_expert(app, applied.payment.expert_id, cause)
        told = await app.database.transact(
            reject_operation, app.answers, app.policy, operation, refused, cause
        )
        if told is not None:
            app.alarms.discrepancy(told.payment_id, told.kind)
        if operation.is_repayment:
            app.alarms.operation_parked(operation, refused.code)
    return applied


async def sync_or_release(
    app: App, operation: Operation, cause: Cause, *, made: MutationResult | None = None
) -> SyncResult:
    async with release_lease_on_failure(app, operation, cause):
        return await sync_operation(app, operation, cause, made=made)


@asynccontextmanager
async def release_lease_on_failure(
    app: App, operation: Operation, cause: Cause
) -> AsyncIterator[None]:
    """Where Stripe cannot be read, give the lease back at once, so that others may soon."""
    try:
        yield
    except Refusal as refusal:
        why, pause = refusal.reason.lower(), back_off(operation.tries)
        await release(app, operation, why, cause, pause, counts=False)
        raise


async def sync_operation(
    app: App, operation: Operation, cause: Cause, *, made: MutationResult | None = None
) -> SyncResult:
    """What Stripe has of it by now. An intent that has no id yet is searched only if need be."""
    if operation.kind is not OperationKind.CREATE_INTENT:
        return await sync_payment(app, operation.payment_id, cause, made=made)
    # Under its first key, while Stripe knows it, the same request finds the same intent by itself.
    now = await app.database.transact(database_time)
    burnt = operation.key_spent or operation.attempt > 1
    if burnt or not operation.may_resend(now):
        return await find_created_intent(app, operation, cause)
    payment = await app.database.read(lambda reader: reader.payment(operation.payment_id))
    return SyncResult(payment=payment)


async def find_created_intent(app: App, operation: Operation, cause: Cause) -> SyncResult:
    """Search Stripe for what a creation may have left there."""
    payment = await app.database.read(lambda reader: reader.payment(operation.payment_id))
    seen = await app.stripe.find_intent(operation.operation_id, operation.create_time)
    if payment is None or seen is None:
        return SyncResult(payment=payment)
    return await apply(app, operation.payment_id, seen, payment.version, cause)


async def is_closed(app: App, operation: Operation) -> bool:
    current = await app.database.read(lambda reader: reader.operation(operation.operation_id))
    return current is None or not current.is_open


async def check_resend_allowed(
    app: App, operation: Operation, looked: SyncResult, cause: Cause
) -> None:
    """Stripe does not have it. Raises where it must not be sent now."""
    pays = operation.kind in (OperationKind.CAPTURE, OperationKind.TRANSFER)
    frozen = looked.payment is not None and looked.payment.frozen is not Freeze.NONE
    contested = operation.verify_only or (pays and frozen)
    why = "the payment is contested" if contested else looked.blocked_by
    if why:
        # Parked for an operator, who resumes it as it is or abandons it.
        await release(app, operation, not_sent_because(why), cause, None)
        raise outcome_unknown(payment_id=operation.payment_id)
    if operation.key_spent:
        await ensure_lease(app, operation, cause, {"payment_id": operation.payment_id})
        # The key is burnt: it gives a stored error for 24 hours. A new one is committed first.
        await release(
            app,
            operation,
            "under a new key",
            cause,
            0.0,
            state=OperationState.STARTED,
            next_attempt=True,
            key_spent=False,
        )
        app.wake.set()
        raise outcome_unknown(payment_id=operation.payment_id)


async def ensure_lease(
    app: App, operation: Operation, cause: Cause, facts: Mapping[str, str]
) -> None:
    """Comes right before every request of an operation: whoever slept sends nothing.

    Another may have ended the operation meanwhile, and Stripe may have pruned its key: the same
    request would then act a second time. What was just recorded is sent without asking anybody,
    while its lease cannot have run out by a clock that goes on while we are stopped. Raises, with
    these ``facts``, where nothing may be sent.
    """
    asked, lease = app.database.clock(), app.policy.lease
    just_recorded = not operation.tries and operation.is_surely_held(asked, lease)
    now = operation.lease_until if just_recorded else None
    if now is None:
        now = await app.database.transact(renew_lease, operation, lease)
        if now is None or app.database.clock() - asked >= lease:
            raise outcome_unknown(**facts)
    if not operation.may_resend(now):
        why = "not at Stripe, and too old to be sent again"
        await release(app, operation, why, cause, None)
        raise outcome_unknown(**facts)


async def mark_unknown(
    app: App, operation: Operation, why: str, cause: Cause, *, replayed: bool = False
) -> None:
    lists = (OperationKind.REFUND, OperationKind.REVERSE_TRANSFER, OperationKind.TRANSFER)
    two_reads = replayed and operation.kind in lists
    seconds = _BETWEEN_TWO_READS if two_reads else back_off(operation.tries)
    await release(app, operation, why, cause, seconds, key_spent=True if replayed else None)


async def release(
    app: App,
    operation: Operation,
    why: str,
    cause: Cause,
    seconds: float | None,
    *,
    state: OperationState = OperationState.UNKNOWN,
    next_attempt: bool = False,
    key_spent: bool | None = None,
    counts: bool = True,
) -> None:
    """Give the lease back: to be tried again in so many ``seconds``, or parked with None.

    A try that could not even be made does not count towards parking.
    """
    parked = await app.database.transact(
        reschedule_operation,
        app.policy,
        operation,
        state,
        why,
        seconds,
        cause,
        next_attempt=next_attempt,
        key_spent=key_spent,
        may_park=counts,
        unsure_seconds=_BETWEEN_TWO_READS,
    )
    if parked:
        app.alarms.operation_parked(operation, why)


async def _send(app: App, operation: Operation) -> Answered:
    """The one call to Stripe, under the operation's stored key."""
    stripe, key = app.stripe, operation.stripe_key
    metadata = {"payment_id": operation.payment_id, "operation_id": operation.operation_id}
    match operation.payload:
        case CreateIntentPayload() as intent:
            return await stripe.create_intent(
                key,
                NewIntent(
                    minor_units=operation.minor_units,
                    currency=intent.currency,
                    application_fee=intent.application_fee,
                    destination_account_id=intent.destination_account_id,
                    manual_capture=not intent.automatic_capture,
                    description=intent.description,
                    metadata={
                        **metadata,
                        "client_id": intent.client_id,
                        "expert_id": intent.expert_id,
                        "gig_id": intent.gig_id,
                    },
                ),
            )
        case CapturePayload() as capture:
            return await stripe.capture(
                key,
                capture.payment_intent_id,
                operation.minor_units,
                # Left out, Stripe would collect the whole amount's fee for a partial capture.
                capture.application_fee,
                {"capture_operation_id": operation.operation_id, "notes": capture.notes},
            )
        case CancelPayload() as cancel:
            return await stripe.cancel(key, cancel.payment_intent_id)
        case RefundPayload() as refund:
            return await stripe.refund(
                key,
                refund.payment_intent_id,
                operation.minor_units,
                {
                    **metadata,
                    "destination_account_id": refund.destination_account_id,
                    "reason": refund.reason,
                },
            )
        case TransferPayload() as transfer:
            return await stripe.transfer(
                key,
                NewTransfer(
                    minor_units=operation.capture_split.sent,
                    currency=transfer.currency,
                    destination_account_id=transfer.destination_account_id,
                    charge_id=transfer.charge_id,
                    metadata={**metadata, "notes": transfer.notes},
                ),
            )
        case ReversalPayload() as reversal:
            return await stripe.reverse_transfer(
                key, reversal.transfer_id, reversal.transfer_minor_units, metadata
            )
        case CreateAccountPayload():
            raise AssertionError("accounts are created by execution.accounts")
        case EvidencePayload() | AcceptancePayload():
            raise AssertionError("disputes are answered by execution.disputes")
        case _:
            assert_never(operation.payload)


def refusal_of(operation: Operation, outcome: NotSent | Unknown | Misconfigured) -> Refusal:
    """What a caller is told while Stripe has said neither yes nor no."""
    match outcome:
        case NotSent():
            return _not_sent(operation, outcome)
        case Misconfigured():
            return _misconfigured(operation, outcome)
        case Unknown():
            return outcome_unknown(payment_id=operation.related_payment_id)


def _not_sent(operation: Operation, outcome: NotSent) -> Refusal:
    facts = {"payment_id": operation.payment_id, "stripe_code": outcome.why}
    if outcome.rate_limited:
        return Exhausted(
            "PROCESSOR_RATE_LIMITED",
            "Stripe's rate limit is reached; ask again later with the same key",
            facts,
        )
    if outcome.why in ("unreachable", "circuit_open"):
        return processor_unavailable(payment_id=operation.payment_id)
    return Busy(
        "OPERATION_IN_PROGRESS",
        "Stripe is busy with this payment; ask again with the same key",
        {**facts, "state": ""},
    )


def _misconfigured(operation: Operation, outcome: Misconfigured) -> Unavailable:
    return Unavailable(
        "PROCESSOR_MISCONFIGURED",
        "Stripe refuses this service's own credentials or requests; an operator is told",
        {
            "payment_id": operation.payment_id,
            "stripe_code": outcome.code,
            "stripe_request_id": outcome.request_id,
        },
    )


def database_time(tx: Transaction) -> datetime:
    """Replicas' clocks may disagree; how old a key is, the database says."""
    return tx.now
