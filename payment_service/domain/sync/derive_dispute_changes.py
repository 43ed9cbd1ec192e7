"""Applies the disputes, early fraud warnings and manual reviews of a snapshot.

Called right after ``derive_changes``, on its result: what an operation has just done is booked
before a lost dispute splits what is left. A loss waits until no operation is open on the payment.
Until then the dispute's record says so and keeps the payment frozen, and the job
``lost_disputes`` retries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from payment_service.domain import disputes, guards, plans, transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.disputes import MOST_DISPUTE_LINES, Dispute, Outcome, Stage
from payment_service.domain.ledger import StripeAmount
from payment_service.domain.operations import OperationKind, OperationPurpose
from payment_service.domain.payment import Failure, FreezeReason, State
from payment_service.domain.snapshot import DisputeSnapshot, DisputeTransaction
from payment_service.domain.state_machine import EventKind
from payment_service.domain.sync.changes import ChangeSet, Movement, SyncContext
from payment_service.domain.sync.reversals import (
    continue_reversals,
    next_reversal_id,
    reversal_legs,
)
from payment_service.domain.sync.superseded import abandon, is_at_stripe

#: States in which a card may be authorized and not charged. An issuer may warn of it already.
_AUTHORIZED: Final = frozenset({State.IN_ESCROW, State.CAPTURING, State.CANCELING, State.PROMOTING})


def derive_dispute_changes(changes: ChangeSet, context: SyncContext) -> None:
    """Adds what the snapshot's disputes, early fraud warnings and manual reviews change."""
    payment, snapshot = changes.payment, context.snapshot
    if (snapshot.payment_intent_id, snapshot.minor_units, snapshot.currency) != (
        payment.payment_intent_id,
        payment.amount,
        payment.currency,
    ):
        return  # `derive_changes` has reported it.
    if not payment.charged:
        if snapshot.disputes and not changes.deferred:
            changes.report(DiscrepancyKind.DISPUTE_BEFORE_CAPTURE, snapshot.disputes[0].dispute_id)
        if payment.state in _AUTHORIZED:
            _sync_warnings(changes, context)
            _sync_review(changes, context)
    else:
        for dispute in snapshot.disputes:
            _sync_dispute(changes, dispute, context)
        _sync_warnings(changes, context)
        _sync_review(changes, context)


def _sync_dispute(changes: ChangeSet, dispute: DisputeSnapshot, context: SyncContext) -> None:
    before = context.dispute_records.get(dispute.dispute_id)
    now = context.now
    if before is None:
        record = disputes.opened(changes.payment, dispute, now)
        _change(changes, record, EventKind.DISPUTE_OPENED, context)
    else:
        record = disputes.updated(before, dispute, now)
        if before.stage is Stage.INQUIRY and record.stage is Stage.CHARGEBACK:
            _change(changes, record, EventKind.DISPUTE_ESCALATED, context)
    booked = False
    for place, line in enumerate(dispute.lines):
        if line.balance_transaction_id not in context.booked_ids:
            record = _move_funds(changes, record, dispute.lines[: place + 1], context)
            booked = True
    if booked or (before is not None and before.outcome is not record.outcome):
        _report_unexplained(changes, record, dispute)
    _apply_outcome(changes, before, record, context)


def _report_unexplained(changes: ChangeSet, record: Dispute, dispute: DisputeSnapshot) -> None:
    """Reports lines that a dispute should not have: Stripe documents one withdrawal, one return."""
    count, kept = len(dispute.lines), record.withdrawn - record.reinstated
    withdrawn_in = {line.currency for line in dispute.lines if line.minor_units < 0}
    returned_in = {line.currency for line in dispute.lines if line.minor_units > 0}
    if returned_in - withdrawn_in:
        why = f"took {'/'.join(sorted(withdrawn_in))} and returned {'/'.join(sorted(returned_in))}"
    elif count > MOST_DISPUTE_LINES:
        why = f"has {count} balance transactions: {kept} is withdrawn of {record.amount}"
    elif kept > record.amount:
        why = f"{kept} is withdrawn of {record.amount}"
    elif record.outcome is Outcome.WON and record.taken and returned_in:
        why = f"is won, but {record.taken} of {record.withdrawn} did not come back"
    else:
        return
    changes.report(DiscrepancyKind.DISPUTE_LINES_UNEXPLAINED, f"{record.dispute_id} {why}")


def _apply_outcome(
    changes: ChangeSet, before: Dispute | None, record: Dispute, context: SyncContext
) -> None:
    """Applies the dispute's outcome once. Its balance transactions are on the books by now."""
    former = before.outcome if before else Outcome.OPEN
    ended = record.outcome is not former
    if record.unsettled:
        _abandon_parked(changes, record.unsettled, context)
        if not changes.payment.operation_id:
            _apply_loss(changes, record, context)
            return
    elif ended and record.outcome in (Outcome.LOST, Outcome.PREVENTED):
        # Nothing was withdrawn so far; a later balance transaction may still show it.
        _change(changes, record, EventKind.DISPUTE_LOST, context)
        return
    elif ended and record.outcome is Outcome.WON:
        _change(changes, record, EventKind.DISPUTE_WON, context)
        return
    elif ended and record.outcome is Outcome.CLOSED:
        _change(changes, record, EventKind.DISPUTE_CLOSED, context)
        return
    if before is not None and record != changes.disputes.get(record.dispute_id, before):
        _change(changes, record, EventKind.DISPUTE_UPDATED, context)


def _change(changes: ChangeSet, record: Dispute, kind: EventKind, context: SyncContext) -> None:
    changes.disputes[record.dispute_id] = record
    changes.take(
        transitions.dispute_changed(
            changes.payment, kind, _facts(record), _frozen(changes, context), context.now
        )
    )


def _move_funds(
    changes: ChangeSet,
    record: Dispute,
    lines: Sequence[DisputeTransaction],
    context: SyncContext,
) -> Dispute:
    """Books the last of these lines of a dispute: a withdrawal or a reinstatement, and the fee."""
    payment, line = changes.payment, lines[-1]
    taken = line.minor_units < 0
    settled = StripeAmount(abs(line.minor_units), line.currency, line.balance_transaction_id)
    amount = disputes.moved_by(record, lines)
    fee = StripeAmount(line.fee, line.currency, line.balance_transaction_id)
    word = "dispute_withdrawn" if taken else "dispute_reinstated"
    postings = payment.book.dispute_funds(word, 1 if taken else -1, amount, settled, fee)
    # After an appeal: what was written off before is now income against that loss.
    after_loss = 0 if taken else min(max(amount - record.taken, 0), record.lost)
    if after_loss:
        postings += payment.book.reinstated_after_loss(after_loss)
        changes.report(
            DiscrepancyKind.REINSTATED_AFTER_LOSS, f"{record.dispute_id}: {after_loss} came back"
        )
    record = replace(
        record,
        withdrawn=record.withdrawn + (amount if taken else 0),
        reinstated=record.reinstated + (0 if taken else amount),
        lost=record.lost - after_loss,
        fee=record.fee + line.fee,
        fee_currency=line.currency,
        update_time=context.now,
    )
    changes.disputes[record.dispute_id] = record
    changes.take(
        transitions.dispute_funds_moved(
            payment,
            {
                **_facts(record),
                "amount": amount,
                "fee": line.fee,
                "fee_currency": line.currency,
                "balance_transaction_id": line.balance_transaction_id,
                **({"after_loss": after_loss} if after_loss else {}),
            },
            postings,
            _frozen(changes, context),
            context.now,
            taken=taken,
        )
    )
    changes.movements.append(Movement(line.balance_transaction_id, word, amount))
    return record


def _abandon_parked(changes: ChangeSet, disputed_amount: int, context: SyncContext) -> None:
    """Abandons a parked operation that has moved nothing, so that the loss need not wait for it.

    A reversal is not abandoned: the client has the money that it takes back from the expert.
    """
    operation, payment = context.operation, changes.payment
    if operation is None or changes.settled or not operation.is_without_effect(context.now):
        return
    if is_at_stripe(operation, context.snapshot):
        return  # Its balance transaction will follow.
    if operation.kind is OperationKind.REVERSE_TRANSFER:
        return
    word = "captured" if operation.kind is OperationKind.TRANSFER else "refunded"
    reason = "the payment was lost in a dispute"
    failure = Failure("charge_disputed", "", reason, context.now)
    refusal = guards.payment_disputed(payment, word)
    abandon(changes, operation, failure, refusal, disputed_amount)


def _apply_loss(changes: ChangeSet, record: Dispute, context: SyncContext) -> None:
    """Writes off what the bank keeps, and plans to take the expert's amount back."""
    payment, amount = changes.payment, record.unsettled
    loss = plans.plan_loss(payment, amount)
    record = replace(record, lost=record.lost + amount, update_time=context.now)
    changes.disputes[record.dispute_id] = record
    legs, debt = reversal_legs(changes, context, loss.split.expert_amount)
    changes.take(
        transitions.dispute_lost(
            payment,
            loss.split,
            loss.beyond,
            facts=_facts(record),
            frozen=_frozen(changes, context),
            next_operation_id=next_reversal_id(context.loss_operation_id(record), legs, debt),
            now=context.now,
        )
    )
    continue_reversals(changes, legs, debt, OperationPurpose.LOSS, context.now)


def _sync_warnings(changes: ChangeSet, context: SyncContext) -> None:
    """Records each early fraud warning once. The newest actionable one may freeze the payment."""
    warnings = context.snapshot.fraud_warnings
    if warnings is None:
        return
    actionable = [warning.warning_id for warning in warnings if warning.actionable]
    current = actionable[-1] if actionable else ""
    for warning in warnings:
        if warning.warning_id in context.booked_ids:
            continue
        facts = {"warning_id": warning.warning_id, "fraud_type": warning.fraud_type}
        _warn(changes, EventKind.FRAUD_WARNING, facts, current, context)
        changes.movements.append(Movement(warning.warning_id, "fraud_warning", 0))
    recorded = FreezeReason(changes.payment.frozen, changes.payment.frozen_by)
    if changes.payment.fraud_warning_id != current:
        facts = {"warning_id": changes.payment.fraud_warning_id}
        _warn(changes, EventKind.FRAUD_WARNING_OVER, facts, current, context)
    elif _frozen(changes, context) != recorded:
        # The policy has changed since the warning came.
        _warn(changes, EventKind.FRAUD_WARNING_OVER, {"warning_id": current}, current, context)


def _sync_review(changes: ChangeSet, context: SyncContext) -> None:
    """Records that Radar's manual review of the charge was opened or closed."""
    charge = context.snapshot.charge
    current = charge.review_id if charge else ""
    if changes.payment.review_id == current:
        return
    frozen = disputes.freeze_of(
        {**context.dispute_records, **changes.disputes}.values(),
        changes.payment.fraud_warning_id,
        context.booked_ids,
        freezes_on_warning=context.freezes_on_warning,
        review_id=current,
    )
    changes.take(transitions.review_changed(changes.payment, current, frozen, context.now))


def _warn(
    changes: ChangeSet,
    kind: EventKind,
    facts: dict[str, str],
    current: str,
    context: SyncContext,
) -> None:
    frozen = _frozen_with(changes, current, context)
    changes.take(
        transitions.fraud_warned(changes.payment, kind, facts, current, frozen, context.now)
    )


def _frozen(changes: ChangeSet, context: SyncContext) -> FreezeReason:
    return _frozen_with(changes, changes.payment.fraud_warning_id, context)


def _frozen_with(changes: ChangeSet, fraud_warning_id: str, context: SyncContext) -> FreezeReason:
    return disputes.freeze_of(
        {**context.dispute_records, **changes.disputes}.values(),
        fraud_warning_id,
        context.booked_ids,
        freezes_on_warning=context.freezes_on_warning,
        review_id=changes.payment.review_id,
    )


def _facts(record: Dispute) -> dict[str, object]:
    return {
        "dispute_id": record.dispute_id,
        "stage": record.stage.value,
        "status": record.status,
        "reason": record.reason,
        "disputed": record.amount,
    }
