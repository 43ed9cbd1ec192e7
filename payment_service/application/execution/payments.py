"""Executes a payment's operations: create intent, capture, cancel, refund, transfer, reversal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias, assert_never

from payment_service.application.app import App
from payment_service.application.clock import database_time
from payment_service.application.execution.funds import release_accepted, report_missing_funds
from payment_service.application.execution.strategy import Found
from payment_service.application.operations.lease import (
    back_off,
    ensure_lease,
    is_closed,
    release,
    release_lease_on_failure,
)
from payment_service.application.operations.out_of_band import not_sent_because
from payment_service.application.operations.outcomes import park, reject_operation
from payment_service.application.operations.taking_back import why_not_reversed
from payment_service.application.sync.account import sync_expert
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.application.sync.payment import apply, sync_payment
from payment_service.domain.errors import outcome_unknown
from payment_service.domain.marks import CAPTURE, marks_of
from payment_service.domain.operation_payloads import (
    AcceptancePayload,
    CancelPayload,
    CapturePayload,
    CollectionPayload,
    CreateAccountPayload,
    CreateIntentPayload,
    EvidencePayload,
    RefundPayload,
    ReversalPayload,
    TransferPayload,
)
from payment_service.domain.operations import Operation, OperationKind, Retry
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
from payment_service.domain.processor_errors import refusal_of
from payment_service.domain.snapshot import (
    EmptyTransfer,
    MutationResult,
    NothingMade,
    PaymentSnapshot,
    Refund,
    Reversal,
    Transfer,
)
from payment_service.domain.sync.superseded import CATCHES_UP

Made: TypeAlias = PaymentSnapshot | Refund | Reversal | Transfer | EmptyTransfer

#: Stripe may show what these made later than a read: Stripe's lists can lag behind.
_LISTED = (OperationKind.REFUND, OperationKind.REVERSE_TRANSFER, OperationKind.TRANSFER)


@dataclass(frozen=True, slots=True)
class PaymentStrategy:
    """Every outcome is recorded by a sync of the payment."""

    awaits_followups: ClassVar[bool] = True

    app: App
    cause: Cause

    def facts(self, operation: Operation) -> Mapping[str, str]:
        return {"payment_id": operation.payment_id}

    async def find(self, operation: Operation) -> Found:
        applied = await self._sync(operation)
        applied = await self._await_balance_transactions(operation, applied)
        if applied.accepted or await is_closed(self.app, operation):
            return Found(applied, is_closed=True)
        await self._check_resend_allowed(operation, applied)
        return Found(applied, is_closed=False)

    async def send(self, operation: Operation) -> Outcome[Made]:
        return await _send(self.app, operation)

    async def may_resend_unsent(self, operation: Operation) -> bool:
        return await self.app.database.transact(is_unopposed, operation)

    async def record(
        self, operation: Operation, outcome: Outcome[Made], version: int
    ) -> SyncResult:
        match outcome:
            case Done(PaymentSnapshot() as snapshot):
                applied = await apply(self.app, operation.payment_id, snapshot, version, self.cause)
                return await self._await_balance_transactions(operation, applied)
            case Done(made):
                assert not isinstance(made, PaymentSnapshot)
                applied = await self._sync(operation, made=made)
                return await self._await_balance_transactions(operation, applied)
            case Refused():
                return await self._confirm_refusal(operation, outcome)
            case NotSent(why=why):
                pause = back_off(self.app.policy, operation.tries)
                how = Retry(why=why, after=pause, may_be_sent=False, counts=False)
                await release(self.app, operation, how, self.cause)
            case Unknown():
                await self._mark_unknown(operation, outcome.why, spent_key=outcome.replayed)
            case Misconfigured(code=code, said=said):
                how_parked = park(self.app.policy, operation, code, said)
                await release(self.app, operation, how_parked, self.cause)
            case _:
                assert_never(outcome)
        raise refusal_of(outcome, payment_id=operation.payment_id)

    async def _sync(
        self, operation: Operation, *, made: MutationResult | None = None
    ) -> SyncResult:
        async with release_lease_on_failure(self.app, operation, self.cause):
            return await self._sync_operation(operation, made)

    async def _sync_operation(
        self, operation: Operation, made: MutationResult | None
    ) -> SyncResult:
        """Reads what Stripe has of it. An intent without an id is searched for only if need be."""
        app = self.app
        if operation.kind is not OperationKind.CREATE_INTENT:
            return await sync_payment(app, operation.payment_id, self.cause, made=made)
        # Under its first key, while Stripe keeps it, the same request returns the same intent. If
        # it is refused, an earlier try may have made the intent, and Stripe have lost the key.
        now = await app.database.transact(database_time)
        key_is_spent = operation.key_spent or operation.attempt > 1
        was_tried = made is not None and operation.tries > 0
        if key_is_spent or was_tried or not operation.may_resend(now):
            return await find_created_intent(app, operation, self.cause)
        payment = await app.database.read(lambda reader: reader.payment(operation.payment_id))
        return SyncResult(payment=payment)

    async def _await_balance_transactions(
        self, operation: Operation, applied: SyncResult
    ) -> SyncResult:
        """Syncs again while the payment has changed meanwhile or a balance transaction is missing.

        Stripe's balance transactions may appear a moment after the capture.
        """
        for pause in (0.0, *self.app.policy.balance_transaction_pause_seconds):
            if not applied.shows_more:
                if applied.next_operation is not None:
                    return applied
                if not (applied.stale or applied.operation_deferred):
                    return applied
                if applied.accepted:
                    await release_accepted(self.app, operation, applied.payment, self.cause)
                    return applied
            await asyncio.sleep(pause)
            applied = await self._sync(operation)
        if applied.operation_deferred and not await is_closed(self.app, operation):
            await self._mark_unknown(operation, "balance transactions are not there yet")
            raise outcome_unknown(payment_id=operation.payment_id)
        return applied

    async def _check_resend_allowed(self, operation: Operation, applied: SyncResult) -> None:
        """Stripe does not have it. Raises if it must not be sent now."""
        app = self.app
        frozen = applied.payment is not None and applied.payment.frozen is not Freeze.NONE
        disputed = operation.verify_only or (operation.waits_for_freeze and frozen)
        why = "the payment is disputed" if disputed else applied.blocked_by
        if not why and operation.kind is OperationKind.REVERSE_TRANSFER:
            why = await app.database.transact(why_not_reversed, operation)
            if why == CATCHES_UP:
                await self._mark_unknown(operation, why, counts=False)
                raise outcome_unknown(payment_id=operation.payment_id)
        if why:
            # An operator resumes it as it is, or abandons it.
            how = park(app.policy, operation, not_sent_because(why))
            await release(app, operation, how, self.cause)
            raise outcome_unknown(payment_id=operation.payment_id)
        if operation.key_spent:
            await ensure_lease(app, operation, self.cause, self.facts(operation))
            # The key is spent: Stripe returns a stored error for 24 hours. A new key is committed
            # before it is used.
            retry = Retry(why="under a new key", after=0.0, may_be_sent=False, new_key=True)
            await release(app, operation, retry, self.cause)
            app.wake.set()
            raise outcome_unknown(payment_id=operation.payment_id)

    async def _mark_unknown(
        self, operation: Operation, why: str, *, spent_key: bool = False, counts: bool = True
    ) -> None:
        """Gives the lease back for a later try, which finds out first what Stripe has.

        After a spent key, Stripe is read twice, ``Policy.arrival_seconds`` apart, before what its
        lists show only later (a refund, a transfer, a reversal) is sent under a new key.
        """
        policy = self.app.policy
        two_reads = spent_key and operation.kind in _LISTED
        pause = policy.arrival_seconds if two_reads else back_off(policy, operation.tries)
        how = Retry(why=why, after=pause, spent_key=spent_key, counts=counts)
        await release(self.app, operation, how, self.cause)

    async def _confirm_refusal(self, operation: Operation, refused: Refused) -> SyncResult:
        """Believes a refusal only after a sync: Stripe repeats one also for what it did."""
        app, cause = self.app, self.cause
        applied = await self._sync(operation, made=NothingMade(operation.operation_id))
        applied = await self._await_balance_transactions(operation, applied)
        if applied.accepted or await is_closed(app, operation):
            return applied
        if refused.is_about_destination and applied.payment is not None:
            # The record may be older than what Stripe's refusal was about.
            await sync_expert(app, applied.payment.expert_id, cause)
        ended = await app.database.transact(
            reject_operation, app.answers, app.policy, operation, refused, cause
        )
        if ended.discrepancy is not None:
            app.alarms.discrepancy(ended.discrepancy.payment_id, ended.discrepancy.kind)
        if ended.waits_for_funds and operation.tries:
            await report_missing_funds(app, operation)
        if operation.is_repayment:
            app.alarms.operation_parked(operation, refused.code)
        return replace(applied, answers={**applied.answers, **ended.answers})


def is_unopposed(tx: Transaction, operation: Operation) -> bool:
    """Returns whether neither an out-of-band movement nor a freeze is booked against it by now.

    If one is, the operation is released, and the next try reads Stripe and parks it.
    """
    payment = tx.lock_payment(operation.payment_id)
    frozen = payment is not None and payment.frozen is not Freeze.NONE
    return not (operation.waits_for_freeze and frozen) and not tx.out_of_band_since(operation)


async def find_created_intent(app: App, operation: Operation, cause: Cause) -> SyncResult:
    """Searches Stripe for the intent that a creation may have made, and applies it."""
    payment = await app.database.read(lambda reader: reader.payment(operation.payment_id))
    snapshot = await app.stripe.find_intent(operation.operation_id, operation.create_time)
    if payment is None or snapshot is None:
        return SyncResult(payment=payment)
    return await apply(app, operation.payment_id, snapshot, payment.version, cause)


async def _send(app: App, operation: Operation) -> Outcome[Made]:
    """Makes the one call to Stripe, under the operation's stored key."""
    stripe, key = app.stripe, operation.stripe_key
    installation_id = await app.database.installation_id()
    metadata = {"payment_id": operation.payment_id, **marks_of(operation, installation_id)}
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
                    extended_authorization=intent.extended_authorization,
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
                {**marks_of(operation, installation_id, CAPTURE), "notes": capture.notes},
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
        case TransferPayload() if operation.sends_nothing:
            return Done(EmptyTransfer(operation.operation_id))
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
        case CollectionPayload():
            raise AssertionError("debts are collected by execution.collections")
        case CreateAccountPayload():
            raise AssertionError("accounts are created by execution.accounts")
        case EvidencePayload() | AcceptancePayload():
            raise AssertionError("disputes are answered by execution.disputes")
        case _:
            assert_never(operation.payload)
