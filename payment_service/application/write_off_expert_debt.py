"""WriteOffExpertDebt: what an expert owes and will not pay becomes the platform's loss.

One person may write off a limited amount of an expert's debt within a time. What is above becomes
a proposal, and another person approves it.
"""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.adjustments import store_proposal
from payment_service.application.app import App
from payment_service.application.idempotency import IdempotentCommand, run_local
from payment_service.domain.adjustments import (
    WRITE_OFF_WINDOW,
    AdjustmentKind,
    Draft,
    write_off_lines,
)
from payment_service.domain.errors import Precondition, expert_not_found
from payment_service.domain.experts import Expert
from payment_service.domain.ledger import written_off
from payment_service.domain.money import Money
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answer, Answers
from payment_service.domain.texts import FreeText


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOffExpertDebt(IdempotentCommand):
    expert_id: str
    #: None in the currency's minor units means all of it.
    minor_units: int | None
    currency: str
    reason: str


async def write_off_expert_debt(app: App, command: WriteOffExpertDebt) -> bytes:
    """One transaction: nothing is asked of Stripe. Raises :class:`Refusal`."""
    return await run_local(app, command, write_off)


def write_off(
    tx: Transaction, answers: Answers, policy: Policy, command: WriteOffExpertDebt
) -> Answer:
    expert, part, left = plan_write_off(tx, command)
    if needs_approval(tx, policy, part, command):
        draft = Draft(
            kind=AdjustmentKind.WRITE_OFF,
            payment_id="",
            expert_id=expert.expert_id,
            lines=write_off_lines(expert.expert_id, part.minor_units, part.currency),
            ticket="",
            reason=command.reason,
            proposed_by=command.cause.caller,
        )
        proposed = store_proposal(tx, policy, draft)
        return answers.write_off_proposed(expert.expert_id, _debt(part, left), proposed)
    tx.post_for_expert(
        expert,
        "expert.debt_written_off",
        {
            "amount": part.minor_units,
            "currency": part.currency,
            "reason": FreeText(command.reason),
        },
        written_off(expert.expert_id, part.minor_units, part.currency),
        tx.now,
        command.cause,
    )
    return answers.written_off(expert.expert_id, part, left)


def write_off_preview(
    tx: Transaction, answers: Answers, policy: Policy, command: WriteOffExpertDebt
) -> Answer:
    """What the call would answer; nothing is written, the key is not claimed."""
    expert, part, left = plan_write_off(tx, command)
    if needs_approval(tx, policy, part, command):
        return answers.write_off_proposed(expert.expert_id, _debt(part, left), None)
    return answers.written_off(expert.expert_id, part, left)


def needs_approval(
    tx: Transaction, policy: Policy, part: Money, command: WriteOffExpertDebt
) -> bool:
    """Returns whether one person may not write off so much. Requires the expert's lock.

    What was written off lately without a second person counts too, so that nobody writes off a
    large debt in small parts.
    """
    before = tx.written_off_by_one(command.expert_id, part.currency, WRITE_OFF_WINDOW)
    return before + part.minor_units > policy.write_off_limit_minor_units


def _debt(part: Money, left: Money) -> Money:
    return Money(part.minor_units + left.minor_units, part.currency)


def plan_write_off(tx: Transaction, command: WriteOffExpertDebt) -> tuple[Expert, Money, Money]:
    """What is written off and what is then still owed. Raises :class:`Refusal`."""
    expert = tx.lock_expert(command.expert_id)
    if expert is None:
        raise expert_not_found(command.expert_id)
    # What a capture under way is just keeping back is as good as paid.
    debt = tx.expert_debt(expert.expert_id, command.currency)
    part = debt if command.minor_units is None else command.minor_units
    if part > debt or not part:
        raise Precondition(
            "AMOUNT_TOO_LARGE",
            f"the expert owes {Money(debt, command.currency)} that can be written off",
            {
                "expert_id": expert.expert_id,
                "requested": part,
                "available": debt,
                "currency": command.currency,
            },
        )
    return expert, Money(part, command.currency), Money(debt - part, command.currency)
