"""The pattern of every money RPC: claim and intent, then Stripe, then the outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from payment_service.application.carry_out import carry_out
from payment_service.application.core import Begun, Core, Keyed, answered, wait_for_answer
from payment_service.domain.errors import outcome_unknown
from payment_service.domain.ports import Answer, Answers, Policy, Reader, Transaction

C = TypeVar("C", bound=Keyed)

#: The first phase of a money RPC: claims the key, locks the row, records the intent.
Begin = Callable[[Transaction, Answers, Policy, C], Begun]


@dataclass(frozen=True, slots=True)
class Told:
    """The answer's bytes, and what must not be stored with them."""

    body: bytes
    payment_id: str
    client_secret: str = field(default="", repr=False)


async def run_keyed(core: Core, begin: Begin[C], command: C) -> Told:
    """Run a money RPC under its key. Raises :class:`Refusal` or :class:`ReplayedRefusal`.

    No transaction is open while Stripe is called, nor can one be. Whatever dies in between leaves
    a recorded operation, which the same key, a webhook or the sweep brings to its end.
    """
    begun = await core.database.transact(begin, core.answers, core.policy, command)
    claim = begun.claim
    if claim.answer is not None:
        return Told(answered(claim.answer), claim.payment_id)
    if begun.operation is None:
        answer = await wait_for_answer(core, claim, command.key)
        return Told(answered(answer), claim.payment_id)
    payment_id = begun.operation.payment_id
    applied = await carry_out(core, begun.operation, begun.version, command.cause)
    settled = await core.database.read(_claim_answer, claim.claim_id)
    if settled is None:
        raise outcome_unknown(payment_id=payment_id)
    return Told(answered(settled), payment_id, applied.client_secret)


def _claim_answer(reader: Reader, claim_id: str) -> Answer | None:
    return reader.claim_answer(claim_id)
