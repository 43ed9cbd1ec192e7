"""Corrections by two people: ProposeAdjustment, ApproveAdjustment and RejectAdjustment.

Each is one transaction under the caller's key. A decision locks the adjustment's row first, so of
two decisions at the same time the second one finds the first. An approval posts in the
transaction that decides: there is no moment in which it is approved and not posted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from payment_service.application.app import App
from payment_service.application.idempotency import IdempotentCommand, run_local
from payment_service.domain import adjustments, transitions
from payment_service.domain.adjustments import (
    Adjustment,
    AdjustmentKind,
    AdjustmentLine,
    Draft,
    adjustment_not_found,
)
from payment_service.domain.errors import (
    Precondition,
    expert_not_found,
    invalid_fields,
    payment_not_found,
)
from payment_service.domain.experts import Expert
from payment_service.domain.money import Money
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answer, Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposeAdjustment(IdempotentCommand):
    payment_id: str
    expert_id: str
    lines: Sequence[AdjustmentLine]
    ticket: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproveAdjustment(IdempotentCommand):
    adjustment_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectAdjustment(IdempotentCommand):
    adjustment_id: str
    reason: str


async def propose_adjustment(app: App, command: ProposeAdjustment) -> bytes:
    """Raises :class:`Refusal`."""
    return await run_local(app, command, propose)


async def approve_adjustment(app: App, command: ApproveAdjustment) -> bytes:
    """Raises :class:`Refusal`."""
    return await run_local(app, command, approve)


async def reject_adjustment(app: App, command: RejectAdjustment) -> bytes:
    """Raises :class:`Refusal`."""
    return await run_local(app, command, reject)


def propose(
    tx: Transaction, answers: Answers, policy: Policy, command: ProposeAdjustment
) -> Answer:
    """Stores the proposal. Nothing is posted."""
    expert_id = command.expert_id
    if command.payment_id:
        payment = tx.lock_payment(command.payment_id)
        if payment is None:
            raise payment_not_found(command.payment_id)
        expert_id = payment.expert_id
    elif expert_id and tx.expert(expert_id) is None:
        raise expert_not_found(expert_id)
    accounts = adjustments.adjustable_accounts(expert_id, of_payment=bool(command.payment_id))
    faults = adjustments.faults_of_lines(command.lines, accounts)
    if faults:
        raise invalid_fields(faults)
    adjustments.check_size(command.lines, policy.adjustment_limit_minor_units)
    draft = Draft(
        kind=AdjustmentKind.CORRECTION,
        payment_id=command.payment_id,
        expert_id=command.expert_id,
        lines=command.lines,
        ticket=command.ticket,
        reason=command.reason,
        proposed_by=command.cause.caller,
    )
    return answers.adjustment(command.cause.rpc, store_proposal(tx, policy, draft), tx.now)


def store_proposal(tx: Transaction, policy: Policy, draft: Draft) -> Adjustment:
    """Stores what was drafted as a proposal that waits for another person."""
    proposed = adjustments.proposed(draft, tx.new_id("adj"), tx.new_salt(), tx.now, policy)
    tx.add_adjustment(proposed)
    return proposed


def approve(
    tx: Transaction, answers: Answers, policy: Policy, command: ApproveAdjustment
) -> Answer:
    """Decides and posts under the locks of the adjustment and of what it corrects."""
    adjustment = _locked(tx, command.adjustment_id)
    approved = adjustments.approve(adjustment, command.cause.caller, tx.now, policy)
    approved = replace(approved, sequence=_post(tx, approved, command))
    tx.decide_adjustment(approved)
    return answers.adjustment(command.cause.rpc, approved, tx.now)


def reject(tx: Transaction, answers: Answers, policy: Policy, command: RejectAdjustment) -> Answer:
    """Decides under the adjustment's lock. Nothing is posted, then or later."""
    adjustment = _locked(tx, command.adjustment_id)
    rejected = adjustments.reject(adjustment, command.cause.caller, command.reason, tx.now)
    tx.decide_adjustment(rejected)
    return answers.adjustment(command.cause.rpc, rejected, tx.now)


def _locked(tx: Transaction, adjustment_id: str) -> Adjustment:
    adjustment = tx.lock_adjustment(adjustment_id)
    if adjustment is None:
        raise adjustment_not_found(adjustment_id)
    return adjustment


def _post(tx: Transaction, adjustment: Adjustment, command: ApproveAdjustment) -> int:
    """Posts the lines with their event, and returns its sequence."""
    if adjustment.payment_id:
        payment = tx.lock_payment(adjustment.payment_id)
        assert payment is not None
        _check_debt(tx, adjustment, payment.expert_id)
        transition = transitions.adjusted(payment, adjustment, tx.now)
        tx.record(transition, command.cause)
        return transition.after.version
    if adjustment.expert_id:
        expert = tx.lock_expert(adjustment.expert_id)
        assert expert is not None
        _check_debt(tx, adjustment, expert.expert_id)
        _post_for_expert(tx, expert, adjustment, command)
        return expert.version + 1
    tx.post_adjustment(adjustment)
    return 1


def _post_for_expert(
    tx: Transaction, expert: Expert, adjustment: Adjustment, command: ApproveAdjustment
) -> None:
    facts = dict(adjustment.facts)
    kind = "expert.adjusted"
    if adjustment.kind is AdjustmentKind.WRITE_OFF:
        kind = "expert.debt_written_off"
        [loss] = [line for line in adjustment.lines if line.minor_units > 0]
        facts.update(amount=loss.minor_units, currency=loss.currency)
    tx.post_for_expert(expert, kind, facts, adjustment.postings, tx.now, command.cause)


def _check_debt(tx: Transaction, adjustment: Adjustment, expert_id: str) -> None:
    """Raises if less is owed, or is free, than the adjustment takes off the expert's debt.

    What a capture or a reversal under way is just taking back counts as paid.
    """
    for currency, relief in adjustments.debt_relief(adjustment).items():
        debt = tx.expert_debt(expert_id, currency)
        if relief > debt:
            raise Precondition(
                "AMOUNT_TOO_LARGE",
                f"the expert owes {Money(debt, currency)} that can be taken off",
                {
                    "expert_id": expert_id,
                    "requested": relief,
                    "available": debt,
                    "currency": currency,
                },
            )
