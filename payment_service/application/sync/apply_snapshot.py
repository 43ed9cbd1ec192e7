"""Applies a snapshot of a payment: one transaction for RPCs, webhooks and background jobs.

Locks are taken in one order: the payment, then its operation, then the idempotency key or the
expert.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta

from payment_service.application.operations.out_of_band import record_out_of_band
from payment_service.application.operations.outcomes import answer, refuse
from payment_service.application.operations.start import (
    park_repayment,
    start_operation,
    with_current_destination,
)
from payment_service.application.operations.taking_back import is_in_doubt
from payment_service.application.sync.disputes import save_disputes
from payment_service.application.sync.lost_operations import (
    Recovery,
    find_collections,
    recover_lost,
)
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.operation_payloads import TransferPayload
from payment_service.domain.operations import (
    Operation,
    OperationKind,
    OperationPurpose,
    OperationState,
)
from payment_service.domain.payment import Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers, Cause, StoredAnswers
from payment_service.domain.snapshot import PaymentSnapshot
from payment_service.domain.sync.changes import ChangeSet, Discrepancy, SyncContext
from payment_service.domain.sync.derive_changes import derive_changes
from payment_service.domain.sync.derive_dispute_changes import derive_dispute_changes
from payment_service.domain.sync.superseded import check_recovered, shows_no_effect
from payment_service.domain.sync.transfers import without_foreign_transfers


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What applying a snapshot changed."""

    #: The payment had changed since the snapshot was requested: a new snapshot is needed.
    stale: bool = False
    changed: bool = False
    #: The snapshot shows more operations of ours that the books have lost: sync again at once.
    shows_more: bool = False
    #: Stripe does not show every balance transaction yet: sync again later.
    deferred: bool = False
    #: A missing balance transaction ends the open operation.
    operation_deferred: bool = False
    #: Stripe has the open operation and does it later by itself. It must not be sent again.
    accepted: bool = False
    #: The collections of the expert's debt that are at Stripe and not done yet.
    collecting: frozenset[str] = frozenset()
    #: Why the open operation must not be sent, if it must not.
    blocked_by: str = ""
    payment: Payment | None = None
    #: The operation that follows from the changes, leased to this process.
    next_operation: Operation | None = None
    #: An operation that now waits for an operator.
    parked: Operation | None = None
    discrepancies: tuple[Discrepancy, ...] = ()
    #: The events that led to it are closed.
    closed_events: bool = False
    #: The answers that this transaction has stored for callers, by their claims.
    answers: StoredAnswers = field(default_factory=dict)
    #: For the caller only; never stored, never logged.
    client_secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedSnapshot:
    """A snapshot of a payment, and the payment's version from before it was fetched."""

    payment_id: str
    version: int
    snapshot: PaymentSnapshot
    #: Books now what still lacks a balance transaction: an operator does not wait any longer.
    without_lines: bool = False
    #: The events that led to the snapshot. They are closed with it, unless it must be taken again.
    event_ids: tuple[str, ...] = ()


def apply_snapshot(
    tx: Transaction, answers: Answers, policy: Policy, fetched: FetchedSnapshot, cause: Cause
) -> SyncResult:
    """Applies a snapshot in one transaction, unless the payment has changed since it was fetched.

    A snapshot from before a change may be older than the books.
    """
    payment = tx.lock_payment_to_sync(fetched.payment_id)
    if payment is None:
        return SyncResult()
    if payment.version != fetched.version:
        return SyncResult(stale=True, payment=payment)
    snapshot = fetched.snapshot
    opened = tx.operation(payment.operation_id) if payment.operation_id else None
    recovery = recover_lost(tx, payment, opened, snapshot, cause)
    payment, operation = recovery.payment, recovery.operation
    context, foreign = _context_of(tx, policy, payment, snapshot, recovery)
    context, changes = _derive(tx, policy, payment, context, without_lines=fetched.without_lines)
    shows_more = bool(recovery.lost) and (recovery.has_recorded or bool(changes.transitions))
    if recovery.lost and operation is None and not shows_more:
        # The books do not allow what this service did: it is booked as if somebody else did it.
        context, foreign = _context_of(tx, policy, payment, snapshot, replace(recovery, lost=()))
        context, changes = _derive(
            tx, policy, payment, context, without_lines=fetched.without_lines
        )
    changes.discrepancies += [*foreign, *recovery.discrepancies]
    disputes = context.dispute_records
    for transition in changes.transitions:
        tx.record(transition, cause)
    for movement in changes.movements:
        tx.add_movement(payment.payment_id, movement)
    stored = save_disputes(tx, answers, disputes, changes, snapshot)
    for discrepancy in changes.discrepancies:
        tx.report(discrepancy)
    _settle_operations(tx, changes, operation)
    if payment.waits_for_funds and not changes.payment.waits_for_funds:
        tx.close_discrepancies(payment.payment_id, DiscrepancyKind.REFUND_WAITS_FOR_FUNDS)
    parked = record_out_of_band(tx, payment, changes, operation)
    if operation is not None and shows_no_effect(operation, changes, context):
        tx.confirm_without_effect(operation.operation_id)
    next_operation = _start_next(tx, policy, changes, operation)
    payment = park_repayment(tx, policy, changes.payment, cause)
    if operation is not None:
        stored |= _answers_of(tx, answers, changes, operation, payment, next_operation)
    if next_operation is not None and next_operation.state is OperationState.PARKED:
        parked, next_operation = next_operation, None
    changed = bool(changes.transitions) or recovery.has_recorded
    closes_events = bool(fetched.event_ids) and not (changes.deferred or shows_more)
    if closes_events:
        verdict = "applied" if changed else "no_change"
        tx.finish_events(fetched.event_ids, "APPLIED", verdict)
    return SyncResult(
        changed=changed,
        shows_more=shows_more,
        deferred=changes.deferred,
        operation_deferred=changes.operation_deferred,
        accepted=changes.accepted,
        collecting=frozenset(changes.collecting),
        blocked_by=changes.blocked_by,
        payment=payment,
        next_operation=next_operation,
        parked=parked,
        discrepancies=tuple(changes.discrepancies),
        closed_events=closes_events,
        answers=stored,
    )


def _settle_operations(tx: Transaction, changes: ChangeSet, operation: Operation | None) -> None:
    """Closes the operations that the changes end: the payment's own, and collections of debt."""
    ended = dict(changes.collected)
    if operation is not None and changes.settled:
        ended[operation.operation_id] = changes.refusal is None
    for operation_id, succeeded in ended.items():
        state = OperationState.SUCCEEDED if succeeded else OperationState.REFUSED
        tx.settle_operation(operation_id, state)


def _answers_of(
    tx: Transaction,
    answers: Answers,
    changes: ChangeSet,
    operation: Operation,
    payment: Payment,
    next_operation: Operation | None,
) -> StoredAnswers:
    """Stores the answer of the operation's caller, if the changes give one."""
    if changes.accepted:
        return answer(tx, answers, operation.claim_id, payment)
    # A lost dispute's reversal answers no caller: the operation that is over answers its own.
    ends = next_operation is None or not next_operation.claim_id
    if not (ends and changes.settled):
        return {}
    if changes.refusal is not None:
        return refuse(tx, answers, operation.claim_id, changes.refusal)
    return answer(tx, answers, operation.claim_id, payment)


def _derive(
    tx: Transaction, policy: Policy, payment: Payment, context: SyncContext, *, without_lines: bool
) -> tuple[SyncContext, ChangeSet]:
    """Returns what the snapshot changes, and the context that decided it.

    Balance transactions that were waited for long enough are overdue: their objects are booked.
    """
    changes = _changes_of(payment, context)
    if not changes.awaiting:
        return context, changes
    patience = timedelta(seconds=0.0 if without_lines else policy.line_patience)
    overdue = tx.await_lines(payment.payment_id, changes.awaiting, patience)
    if not overdue:
        return context, changes
    context = replace(context, overdue=overdue)
    return context, _changes_of(payment, context)


def _changes_of(payment: Payment, context: SyncContext) -> ChangeSet:
    changes = derive_changes(payment, context)
    if _concerns_disputes(payment, context.snapshot):
        derive_dispute_changes(changes, context)
    check_recovered(changes, context)
    return changes


def _concerns_disputes(payment: Payment, snapshot: PaymentSnapshot) -> bool:
    review_id = snapshot.charge.review_id if snapshot.charge else ""
    return (
        bool(snapshot.disputes)
        or snapshot.fraud_warnings is not None
        or review_id != payment.review_id
    )


def _context_of(
    tx: Transaction,
    policy: Policy,
    payment: Payment,
    snapshot: PaymentSnapshot,
    recovery: Recovery,
) -> tuple[SyncContext, list[Discrepancy]]:
    """Reads what decides how the snapshot changes the payment. Requires the payment's lock.

    What lost operations have made is left out: it is booked when they are recorded again, and the
    open operation is not sent before. The context has the payment's own transfers only. The others
    are returned to be reported, each once.
    """
    operation, booked_ids = recovery.operation, recovery.booked_ids
    snapshot = recovery.visible(snapshot)
    # Derived from what leads to it, so that a restored database gives it the same id.
    next_operation_id = tx.operation_id_for(payment.operation_id or payment.payment_id, "next")
    disputes = tx.disputes_of(payment.payment_id) if _concerns_disputes(payment, snapshot) else ()
    foreign: list[Discrepancy] = []
    if any(one.transfer_id not in booked_ids for one in snapshot.separate_transfers):
        account_ids = tx.account_ids_of(payment.expert_id)
        known = {*booked_ids, payment.operation_id} - {""}
        snapshot, foreign = without_foreign_transfers(snapshot, payment, account_ids, known)
    collections = find_collections(tx, payment, snapshot, recovery)
    # Only a part of a converted transfer depends on the parts before it.
    is_converted = any(one.currency != payment.currency for one in snapshot.transfers)
    context = SyncContext(
        snapshot=snapshot.without(collections.postponed),
        operation=operation,
        booked_ids=booked_ids,
        reversed_amounts=tx.reversed_amounts(payment.payment_id) if is_converted else {},
        collections=collections.found,
        recovered=collections.recorded,
        out_of_band=(
            *(tx.out_of_band_since(operation).values() if operation else ()),
            *recovery.moved_beside(next_operation_id),
        ),
        next_operation_id=next_operation_id,
        installation_id=tx.installation_id,
        holding_limit=timedelta(seconds=policy.holding_limit),
        dispute_records={record.dispute_id: record for record in disputes},
        freezes_on_warning=policy.freeze_on_fraud_warning,
        now=tx.now,
    )
    return context, [one for one in foreign if not tx.is_reported(one)]


def _start_next(
    tx: Transaction, policy: Policy, changes: ChangeSet, operation: Operation | None
) -> Operation | None:
    """Records the operation that follows from the changes, if there is one."""
    wanted = changes.next_operation
    if wanted is None:
        return None
    continues = operation is not None and wanted.purpose is not OperationPurpose.LOSS
    payload = wanted.payload
    takes_back = wanted.kind is OperationKind.REVERSE_TRANSFER
    if isinstance(payload, TransferPayload):
        payload = with_current_destination(tx, changes.payment, payload)
    return start_operation(
        tx,
        policy,
        kind=wanted.kind,
        purpose=wanted.purpose,
        payment_id=changes.payment.payment_id,
        minor_units=wanted.minor_units,
        payload=payload,
        # The caller gets the answer when this operation is over, not before.
        claim_id=operation.claim_id if operation is not None and continues else "",
        operation_id=next(
            transition.after.operation_id
            for transition in reversed(changes.transitions)
            if transition.after.operation_id
        ),
        parked=bool(wanted.parked),
        last_error=wanted.parked,
        searched_first=takes_back and is_in_doubt(tx, changes.payment, wanted.minor_units),
    )
