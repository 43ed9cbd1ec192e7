"""Applies the disputes and early fraud warnings of a snapshot.

Called right after ``apply_snapshot``, on its result: what an operation has just done is booked
before a lost dispute divides what is left. A loss waits until no operation is open on the payment.
Until then the dispute's record says so and keeps the payment frozen, and the job
``lost_disputes`` retries it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from payment_service.domain import disputes, guards, plans, transitions
from payment_service.domain.disputes import Dispute, Outcome, Stage
from payment_service.domain.ledger import StripeAmount
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import Failure, FreezeReason, State
from payment_service.domain.snapshot import DisputeSnapshot, DisputeTransaction, PaymentSnapshot
from payment_service.domain.state_machine import EventKind
from payment_service.domain.sync.changes import ChangeSet, Movement
from payment_service.domain.sync.money_back import (
    continue_reversals,
    next_reversal_id,
    reversal_legs,
)
from payment_service.domain.sync.superseded import abandon, is_at_stripe

#: Where a card may be authorized and not charged: an issuer may warn of it already.
_AUTHORIZED: Final = frozenset({State.IN_ESCROW, State.CAPTURING, State.CANCELING, State.PROMOTING})


@dataclass(frozen=True, slots=True)
class DisputeContext:
    """What following disputes depends on besides the payment and the observation."""

    #: The payment's disputes as recorded, by their ids.
    records: Mapping[str, Dispute]
    #: The payment's own open operation.
    operation: Operation | None
    #: Ids of the movements that are on the books already.
    booked_ids: frozenset[str]
    #: Of the reversal that a loss may have to begin with.
    next_operation_id: str
    freezes_on_warning: bool
    now: datetime


def derive_dispute_changes(
    changes: ChangeSet, snapshot: PaymentSnapshot, context: DisputeContext
) -> None:
    """Add to ``to`` what the disputes and warnings in ``seen`` change."""
    payment = changes.payment
    if (snapshot.payment_intent_id, snapshot.minor_units, snapshot.currency) != (
        payment.payment_intent_id,
        payment.amount,
        payment.currency,
    ):
        return  # `derive_changes` has reported it.
    if not payment.charged:
        if snapshot.disputes and not changes.deferred:
            changes.report("dispute_before_capture", snapshot.disputes[0].dispute_id)
        if payment.state in _AUTHORIZED:
            _sync_warnings(changes, snapshot, context)
    else:
        for shown in snapshot.disputes:
            _sync_dispute(changes, snapshot, shown, context)
        _sync_warnings(changes, snapshot, context)


def _sync_dispute(
    changes: ChangeSet, snapshot: PaymentSnapshot, shown: DisputeSnapshot, context: DisputeContext
) -> None:
    before = context.records.get(shown.dispute_id)
    now = context.now
    if before is None:
        record = disputes.opened(changes.payment, shown, now)
        _change(changes, record, EventKind.DISPUTE_OPENED, context)
    else:
        record = disputes.updated(before, shown, now)
        if before.stage is Stage.INQUIRY and record.stage is Stage.CHARGEBACK:
            _change(changes, record, EventKind.DISPUTE_ESCALATED, context)
    for line in shown.lines:
        if line.balance_transaction_id not in context.booked_ids:
            record = _move_funds(changes, record, line, context)
    _apply_outcome(changes, snapshot, before, record, context)


def _apply_outcome(
    changes: ChangeSet,
    snapshot: PaymentSnapshot,
    before: Dispute | None,
    record: Dispute,
    context: DisputeContext,
) -> None:
    """What the dispute came to, once: the money lines are on the books by now."""
    former = before.outcome if before else Outcome.OPEN
    ended = record.outcome is not former
    if record.unsettled:
        _abandon_parked(changes, snapshot, record.unsettled, context)
        if not changes.payment.operation_id:
            _apply_loss(changes, snapshot, record, context)
            return
    elif ended and record.outcome in (Outcome.LOST, Outcome.PREVENTED):
        _change(
            changes, record, EventKind.DISPUTE_LOST, context
        )  # Without money; that may yet be seen.
        return
    elif ended and record.outcome is Outcome.WON:
        _change(changes, record, EventKind.DISPUTE_WON, context)
        return
    elif ended and record.outcome is Outcome.CLOSED:
        _change(changes, record, EventKind.DISPUTE_CLOSED, context)
        return
    if before is not None and record != changes.disputes.get(record.dispute_id, before):
        _change(changes, record, EventKind.DISPUTE_UPDATED, context)


def _change(changes: ChangeSet, record: Dispute, kind: EventKind, context: DisputeContext) -> None:
    changes.disputes[record.dispute_id] = record
    changes.take(
        transitions.dispute_changed(
            changes.payment, kind, _facts(record), _frozen(changes, context), context.now
        )
    )


def _move_funds(
    changes: ChangeSet, record: Dispute, line: DisputeTransaction, context: DisputeContext
) -> Dispute:
    """One balance transaction of a dispute: what was taken, or given back, and Stripe's fee."""
    payment = changes.payment
    taken = line.minor_units < 0
    settled = StripeAmount(abs(line.minor_units), line.currency, line.balance_transaction_id)
    part = _in_payment_currency(record, settled, taken=taken)
    fee = StripeAmount(line.fee, line.currency, line.balance_transaction_id)
    word = "dispute_withdrawn" if taken else "dispute_reinstated"
    postings = payment.book.dispute_funds(word, 1 if taken else -1, part, settled, fee)
    # What was written off as lost before (an appeal) is income against that loss.
    after_loss = 0 if taken else min(max(part - record.taken, 0), record.lost)
    if after_loss:
        postings += payment.book.reinstated_after_loss(after_loss)
        changes.report("reinstated_after_loss", f"{record.dispute_id}: {after_loss} came back")
    record = replace(
        record,
        withdrawn=record.withdrawn + (part if taken else 0),
        reinstated=record.reinstated + (0 if taken else part),
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
                "amount": part,
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
    changes.movements.append(Movement(line.balance_transaction_id, word, part))
    return record


def _in_payment_currency(record: Dispute, settled: StripeAmount, *, taken: bool) -> int:
    """What a line means in the payment's currency.

    Where Stripe settles in another one, what it takes is what is contested, and what it gives back
    is what it took: at the rate of then.
    """
    if settled.currency == record.currency:
        return settled.minor_units
    return record.amount if taken else record.withdrawn - record.reinstated


def _abandon_parked(
    changes: ChangeSet, snapshot: PaymentSnapshot, part: int, context: DisputeContext
) -> None:
    """What is parked, and has moved nothing, gives way to the loss of ``part``.

    But for a reversal: the client has what that is to take back from the expert.
    """
    operation, payment = context.operation, changes.payment
    if operation is None or changes.settled or not operation.is_without_effect(context.now):
        return
    if is_at_stripe(operation, snapshot):
        return  # Stripe has it, and will show its line.
    if operation.kind is OperationKind.REVERSE_TRANSFER:
        return
    word = "captured" if operation.kind is OperationKind.TRANSFER else "refunded"
    reason = "the payment was lost in a dispute"
    failure = Failure("charge_disputed", "", reason, context.now)
    abandon(changes, operation, failure, guards.payment_disputed(payment, word), part)


def _apply_loss(
    changes: ChangeSet, snapshot: PaymentSnapshot, record: Dispute, context: DisputeContext
) -> None:
    """Write off what the bank keeps, and begin to take the expert's part back."""
    payment, part = changes.payment, record.unsettled
    loss = plans.plan_loss(payment, part)
    record = replace(record, lost=record.lost + part, update_time=context.now)
    changes.disputes[record.dispute_id] = record
    legs, owed = reversal_legs(changes, snapshot, loss.split.expert_part)
    follows = next_reversal_id(context.next_operation_id, legs, owed)
    changes.take(
        transitions.dispute_lost(
            payment,
            loss.split,
            loss.beyond,
            _facts(record),
            _frozen(changes, context),
            follows,
            context.now,
        )
    )
    continue_reversals(changes, legs, owed, OperationPurpose.LOSS, context.now)


def _sync_warnings(changes: ChangeSet, snapshot: PaymentSnapshot, context: DisputeContext) -> None:
    """Early fraud warnings: each is told of once; the newest that is actionable may freeze."""
    if snapshot.fraud_warnings is None:
        return
    actionable = [warning.warning_id for warning in snapshot.fraud_warnings if warning.actionable]
    current = actionable[-1] if actionable else ""
    for warning in snapshot.fraud_warnings:
        if warning.warning_id in context.booked_ids:
            continue
        facts = {"warning_id": warning.warning_id, "fraud_type": warning.fraud_type}
        _warn(changes, EventKind.FRAUD_WARNING, facts, current, context)
        changes.movements.append(Movement(warning.warning_id, "fraud_warning", 0))
    if changes.payment.fraud_warning_id != current:
        facts = {"warning_id": changes.payment.fraud_warning_id}
        _warn(changes, EventKind.FRAUD_WARNING_OVER, facts, current, context)
    elif _frozen(changes, context) != FreezeReason(
        changes.payment.frozen, changes.payment.frozen_by
    ):
        # The policy is another than when the warning came.
        _warn(changes, EventKind.FRAUD_WARNING_OVER, {"warning_id": current}, current, context)


def _warn(
    changes: ChangeSet,
    kind: EventKind,
    facts: dict[str, str],
    current: str,
    context: DisputeContext,
) -> None:
    frozen = _frozen_with(changes, current, context)
    changes.take(
        transitions.fraud_warned(changes.payment, kind, facts, current, frozen, context.now)
    )


def _frozen(changes: ChangeSet, context: DisputeContext) -> FreezeReason:
    return _frozen_with(changes, changes.payment.fraud_warning_id, context)


def _frozen_with(
    changes: ChangeSet, fraud_warning_id: str, context: DisputeContext
) -> FreezeReason:
    return disputes.freeze_of(
        {**context.records, **changes.disputes}.values(),
        fraud_warning_id,
        context.booked_ids,
        freezes_on_warning=context.freezes_on_warning,
    )


def _facts(record: Dispute) -> dict[str, object]:
    return {
        "dispute_id": record.dispute_id,
        "stage": record.stage.value,
        "status": record.status,
        "reason": record.reason,
        "disputed": record.amount,
    }
