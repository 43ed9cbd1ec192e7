"""The pattern of every money RPC: claim and intent, then Stripe, then the outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import TypeVar

from payment_service.application.carry_out import carry_out
from payment_service.application.core import (
    Begun,
    Core,
    Keyed,
    answered,
    refuse_for_good,
    wait_for_answer,
)
from payment_service.application.settle import Applied
from payment_service.domain.errors import Precondition, processor_unavailable
from payment_service.domain.operations import Operation
from payment_service.domain.ports import Answer, Answers, Cause, Policy, Transaction

C = TypeVar("C", bound=Keyed)

#: What brings the operation to its end.
Carry = Callable[[Core, Operation, int, Cause], Awaitable[Applied]]
#: The first phase of a money RPC: claims the key, locks the row, records the intent.
Begin = Callable[[Transaction, Answers, Policy, C], Begun]


def unless_away(begin: Begin[C], *, is_away: bool) -> Begin[C]:
    """The first phase; with Stripe away nothing new is claimed, and what is known is answered."""

    @wraps(begin)
    def phase(tx: Transaction, answers: Answers, policy: Policy, command: C) -> Begun:
        begun = begin(tx, answers, policy, command)
        if is_away and begun.claim.fresh and begun.operation is not None:
            raise processor_unavailable()
        return begun

    return phase


async def run_at_once(
    core: Core, act: Callable[[Transaction, Answers, Policy, C], Answer], command: C
) -> bytes:
    """Run a call under its key that asks nothing of Stripe: one transaction, answered by it."""
    begun = await core.database.transact(at_once, core.answers, core.policy, act, command)
    assert begun.claim.answer is not None
    return answered(begun.claim.answer)


def at_once(
    tx: Transaction,
    answers: Answers,
    policy: Policy,
    act: Callable[[Transaction, Answers, Policy, C], Answer],
    command: C,
) -> Begun:
    """Claim the key, act, and settle the claim. ``act`` refuses before it writes anything."""
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return Begun(claim)
    try:
        answer = act(tx, answers, policy, command)
    except Precondition as refusal:
        return refuse_for_good(tx, answers, claim, refusal)
    tx.settle_claim(claim.claim_id, answer)
    return Begun(replace(claim, answer=answer))


@dataclass(frozen=True, slots=True)
class Told:
    """The answer's bytes, and what must not be stored with them."""

    body: bytes
    payment_id: str
    client_secret: str = field(default="", repr=False)


async def run_keyed(core: Core, begin: Begin[C], command: C, carry: Carry = carry_out) -> Told:
    """Run a money RPC under its key. Raises :class:`Refusal` or :class:`ReplayedRefusal`.

    No transaction is open while Stripe is called, nor can one be. Whatever dies in between leaves
    a recorded operation, which the same key, a webhook or the sweep brings to its end.
    """
    phase = unless_away(begin, is_away=core.stripe.is_away)
    begun = await core.database.transact(phase, core.answers, core.policy, command)
    claim = begun.claim
    if claim.answer is not None:
        return Told(answered(claim.answer), claim.payment_id)
    if begun.operation is None:
        answer = await wait_for_answer(core, claim.claim_id, command.key)
        return Told(answered(answer), claim.payment_id)
    applied = await carry(core, begun.operation, begun.version, command.cause)
    # Usually there at once; a webhook may have taken the second leg of a refund out of our hands.
    answer = await wait_for_answer(core, claim.claim_id, command.key)
    payment_id = begun.operation.payment_id or claim.payment_id
    return Told(answered(answer), payment_id, applied.client_secret)
