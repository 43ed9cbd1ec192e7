"""From the disputes and fraud warnings that Stripe shows to what changes here.

Called right after ``follow``, on what that came to: so what an operation under way has just done is
on the books before a lost dispute divides what is left. A loss waits until nothing is under way on
the payment; its record says so (``Dispute.unsettled``), keeps the payment frozen meanwhile, and
``sweep.settle_lost_disputes`` comes back for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from payment_service.domain import disputes, escrow, plans
from payment_service.domain.disputes import Dispute, Outcome, Stage
from payment_service.domain.escrow import Failure, Frozen, Kind, State
from payment_service.domain.follow import go_on_reversing, goes_on_with, reversal_legs
from payment_service.domain.followed import Followed, Movement
from payment_service.domain.give_way import give_up, is_shown
from payment_service.domain.ledger import Settled
from payment_service.domain.observation import DisputeLine, Observation, ShownDispute
from payment_service.domain.operations import Operation, OperationKind

#: Where a card may be authorized and not charged: an issuer may warn of it already.
_AUTHORIZED: Final = frozenset({State.IN_ESCROW, State.CAPTURING, State.CANCELING, State.PROMOTING})


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What following disputes depends on besides the payment and the observation."""

    #: The payment's disputes as recorded, by their ids.
    records: Mapping[str, Dispute]
    #: The payment's own open operation.
    operation: Operation | None
    #: Ids of the movements that are on the books already.
    known: frozenset[str]
    #: Of the reversal that a loss may have to begin with.
    next_operation_id: str
    freezes_on_warning: bool
    now: datetime


def follow_disputes(to: Followed, seen: Observation, given: Circumstances) -> None:
    """Add to ``to`` what the disputes and warnings in ``seen`` change."""
    payment = to.payment
    if (seen.payment_intent_id, seen.minor_units, seen.currency) != (
        payment.payment_intent_id,
        payment.amount,
        payment.currency,
    ):
        return  # `follow` has reported it.
    if not payment.charged:
        if seen.disputes and not to.deferred:
            to.report("dispute_of_a_hold", seen.disputes[0].dispute_id)
        if payment.state in _AUTHORIZED:
            _follow_warnings(to, seen, given)
    else:
        for shown in seen.disputes:
            _follow_one(to, seen, shown, given)
        _follow_warnings(to, seen, given)


def _follow_one(to: Followed, seen: Observation, shown: ShownDispute, given: Circumstances) -> None:
    before = given.records.get(shown.dispute_id)
    now = given.now
    if before is None:
        record = disputes.opened(to.payment, shown, now)
        _change(to, record, Kind.DISPUTE_OPENED, given)
    else:
        record = disputes.followed(before, shown, now)
        if before.stage is Stage.INQUIRY and record.stage is Stage.CHARGEBACK:
            _change(to, record, Kind.DISPUTE_ESCALATED, given)
    for line in shown.lines:
        if line.balance_transaction_id not in given.known:
            record = _move_funds(to, record, line, given)
    _conclude(to, seen, before, record, given)


def _conclude(
    to: Followed,
    seen: Observation,
    before: Dispute | None,
    record: Dispute,
    given: Circumstances,
) -> None:
    """What the dispute came to, once: the money lines are on the books by now."""
    former = before.outcome if before else Outcome.OPEN
    ended = record.outcome is not former
    if record.unsettled:
        _make_way(to, seen, record.unsettled, given)
        if not to.payment.operation_id:
            _lose(to, seen, record, given)
            return
    elif ended and record.outcome in (Outcome.LOST, Outcome.PREVENTED):
        _change(to, record, Kind.DISPUTE_LOST, given)  # Without money; that may yet be seen.
        return
    elif ended and record.outcome is Outcome.WON:
        _change(to, record, Kind.DISPUTE_WON, given)
        return
    elif ended and record.outcome is Outcome.CLOSED:
        _change(to, record, Kind.DISPUTE_CLOSED, given)
        return
    if before is not None and record != to.disputes.get(record.dispute_id, before):
        _change(to, record, Kind.DISPUTE_UPDATED, given)


def _change(to: Followed, record: Dispute, kind: Kind, given: Circumstances) -> None:
    to.disputes[record.dispute_id] = record
    to.take(escrow.dispute_changed(to.payment, kind, _facts(record), _frozen(to, given), given.now))


def _move_funds(to: Followed, record: Dispute, line: DisputeLine, given: Circumstances) -> Dispute:
    """One balance transaction of a dispute: what was taken, or given back, and Stripe's fee."""
    payment = to.payment
    taken = line.minor_units < 0
    settled = Settled(abs(line.minor_units), line.currency, line.balance_transaction_id)
    part = _in_payment_currency(record, settled, taken=taken)
    fee = Settled(line.fee, line.currency, line.balance_transaction_id)
    word = "dispute_withdrawn" if taken else "dispute_reinstated"
    postings = payment.book.dispute_funds(word, 1 if taken else -1, part, settled, fee)
    # What was written off as lost before (an appeal) is income against that loss.
    after_loss = 0 if taken else min(max(part - record.taken, 0), record.lost)
    if after_loss:
        postings += payment.book.reinstated_after_loss(after_loss)
        to.report("reinstated_after_loss", f"{record.dispute_id}: {after_loss} came back")
    record = replace(
        record,
        withdrawn=record.withdrawn + (part if taken else 0),
        reinstated=record.reinstated + (0 if taken else part),
        lost=record.lost - after_loss,
        fee=record.fee + line.fee,
        fee_currency=line.currency,
        update_time=given.now,
    )
    to.disputes[record.dispute_id] = record
    to.take(
        escrow.dispute_funds_moved(
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
            _frozen(to, given),
            given.now,
            taken=taken,
        )
    )
    to.movements.append(Movement(line.balance_transaction_id, word, part))
    return record


def _in_payment_currency(record: Dispute, settled: Settled, *, taken: bool) -> int:
    """What a line means in the payment's currency.

    Where Stripe settles in another one, what it takes is what is contested, and what it gives back
    is what it took: at the rate of then.
    """
    if settled.currency == record.currency:
        return settled.minor_units
    return record.amount if taken else record.withdrawn - record.reinstated


def _make_way(to: Followed, seen: Observation, part: int, given: Circumstances) -> None:
    """What is parked, and has moved nothing, gives way to the loss of ``part``.

    But for a reversal: the client has what that is to take back from the expert.
    """
    operation, payment = given.operation, to.payment
    if operation is None or to.settled or not operation.is_without_effect(given.now):
        return
    if is_shown(operation, seen):
        return  # Stripe has it, and will show its line.
    if operation.kind is OperationKind.REVERSE_TRANSFER:
        return
    word = "captured" if operation.kind is OperationKind.TRANSFER else "refunded"
    reason = "the payment was lost in a dispute"
    failure = Failure("charge_disputed", "", reason, given.now)
    give_up(to, operation, failure, plans.payment_disputed(payment, word), part)


def _lose(to: Followed, seen: Observation, record: Dispute, given: Circumstances) -> None:
    """Write off what the bank keeps, and begin to take the expert's part back."""
    payment, part = to.payment, record.unsettled
    loss = plans.plan_loss(payment, part)
    record = replace(record, lost=record.lost + part, update_time=given.now)
    to.disputes[record.dispute_id] = record
    legs, owed = reversal_legs(to, seen, loss.split.expert_part)
    follows = goes_on_with(given.next_operation_id, legs, owed)
    to.take(
        escrow.dispute_lost(
            payment,
            loss.split,
            loss.beyond,
            _facts(record),
            _frozen(to, given),
            follows,
            given.now,
        )
    )
    go_on_reversing(to, legs, owed, given.now)
    if legs and to.next_operation is not None:
        to.next_operation = replace(to.next_operation, unasked=True)


def _follow_warnings(to: Followed, seen: Observation, given: Circumstances) -> None:
    """Early fraud warnings: each is told of once; the newest that is actionable may freeze."""
    if seen.fraud_warnings is None:
        return
    actionable = [warning.warning_id for warning in seen.fraud_warnings if warning.actionable]
    current = actionable[-1] if actionable else ""
    for warning in seen.fraud_warnings:
        if warning.warning_id in given.known:
            continue
        facts = {"warning_id": warning.warning_id, "fraud_type": warning.fraud_type}
        _warn(to, Kind.FRAUD_WARNING, facts, current, given)
        to.movements.append(Movement(warning.warning_id, "fraud_warning", 0))
    if to.payment.fraud_warning_id != current:
        facts = {"warning_id": to.payment.fraud_warning_id}
        _warn(to, Kind.FRAUD_WARNING_OVER, facts, current, given)
    elif _frozen(to, given) != Frozen(to.payment.frozen, to.payment.frozen_by):
        # The policy is another than when the warning came.
        _warn(to, Kind.FRAUD_WARNING_OVER, {"warning_id": current}, current, given)


def _warn(
    to: Followed, kind: Kind, facts: dict[str, str], current: str, given: Circumstances
) -> None:
    frozen = _frozen_with(to, current, given)
    to.take(escrow.fraud_warned(to.payment, kind, facts, current, frozen, given.now))


def _frozen(to: Followed, given: Circumstances) -> Frozen:
    return _frozen_with(to, to.payment.fraud_warning_id, given)


def _frozen_with(to: Followed, fraud_warning_id: str, given: Circumstances) -> Frozen:
    return disputes.freeze_of(
        {**given.records, **to.disputes}.values(),
        fraud_warning_id,
        given.known,
        freezes_on_warning=given.freezes_on_warning,
    )


def _facts(record: Dispute) -> dict[str, object]:
    return {
        "dispute_id": record.dispute_id,
        "stage": record.stage.value,
        "status": record.status,
        "reason": record.reason,
        "disputed": record.amount,
    }
