"""Idempotent commands: the caller's key, the replayed answer, and the first phase of a call.

A money RPC records the caller's key and its operation in one transaction, calls Stripe with no
transaction open, and records the outcome in another. If the process dies in between, the recorded
operation is finished by a retry with the same key, by a webhook, or by the recovery job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import wraps
from typing import TypeVar

from payment_service.application.app import App
from payment_service.application.execution.executor import execute
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.domain.errors import (
    Precondition,
    Refusal,
    key_in_use,
    outcome_unknown,
    processor_unavailable,
)
from payment_service.domain.operations import Operation
from payment_service.domain.ports.database import Reader, Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answer, Answers, Cause, Claim


@dataclass(frozen=True, slots=True)
class Started:
    """What the first phase of a money RPC came to.

    Either the answer is there, or the operation is ours to carry out (``operation``), or somebody
    else is at it (``claim`` alone).
    """

    claim: Claim
    operation: Operation | None = None
    #: The payment's version after this phase; what is observed must be newer.
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotentCommand:
    """A call under a caller's key: who asks, the key, and every other field as text."""

    cause: Cause
    key: str
    fields: Mapping[str, str]


class ReplayedRefusal(Exception):
    """The stored ``google.rpc.Status`` of a refusal, to be sent again byte for byte."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("a stored refusal")
        self.answer = answer


def replay_or_take_over(tx: Transaction, policy: Policy, claim: Claim) -> Started:
    """A key that was used before: its answer, or its operation if nobody is at it any more."""
    if claim.answer is not None or not claim.operation_id:
        return Started(claim)
    operation = tx.lease_operation(claim.operation_id, policy.lease)
    return Started(claim, operation)


def store_refusal(tx: Transaction, answers: Answers, claim: Claim, refusal: Refusal) -> Started:
    """Our own guard said no: the same key gets the same no for ever; a new try takes a new key."""
    answer = answers.refusal(refusal)
    tx.settle_claim(claim.claim_id, answer)
    return Started(replace(claim, answer=answer))


def unwrap_answer(answer: Answer) -> bytes:
    """The response's bytes, or the refusal raised again."""
    if not answer.ok:
        raise ReplayedRefusal(answer)
    return answer.body


async def wait_for_answer(app: App, claim_id: str, key: str) -> Answer:
    """Wait for whoever works on the claim; ABORTED if that takes too long.

    A claim whose operation nobody works on any more is *unknown*: the sweep settles it.
    """
    deadline = asyncio.get_running_loop().time() + app.policy.claim_wait
    pause = 0.02
    while True:
        claim = await app.database.read(_claim, claim_id)
        if claim is not None and claim.answer is not None:
            return claim.answer
        if asyncio.get_running_loop().time() >= deadline:
            break
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.25)
    operation = await app.database.read(_operation, claim.operation_id) if claim else None
    lease_until = operation.lease_until if operation is not None else None
    if lease_until is not None and lease_until > datetime.now(UTC):
        raise key_in_use(key)
    raise outcome_unknown(payment_id=claim.payment_id if claim else "")


def _claim(reader: Reader, claim_id: str) -> Claim | None:
    return reader.claim(claim_id)


def _operation(reader: Reader, operation_id: str) -> Operation | None:
    return reader.operation(operation_id)


C = TypeVar("C", bound=IdempotentCommand)


#: What brings the operation to its end.
Carry = Callable[[App, Operation, int, Cause], Awaitable[SyncResult]]


#: The first phase of a money RPC: claims the key, locks the row, records the intent.
Begin = Callable[[Transaction, Answers, Policy, C], Started]


def unless_away(begin: Begin[C], *, is_unavailable: bool) -> Begin[C]:
    """The first phase; with Stripe away nothing new is claimed, and what is known is answered."""

    @wraps(begin)
    def phase(tx: Transaction, answers: Answers, policy: Policy, command: C) -> Started:
        begun = begin(tx, answers, policy, command)
        if is_unavailable and begun.claim.fresh and begun.operation is not None:
            raise processor_unavailable()
        return begun

    return phase


async def run_local(
    app: App, act: Callable[[Transaction, Answers, Policy, C], Answer], command: C
) -> bytes:
    """Run a call under its key that asks nothing of Stripe: one transaction, answered by it."""
    begun = await app.database.transact(local_phase, app.answers, app.policy, act, command)
    assert begun.claim.answer is not None
    return unwrap_answer(begun.claim.answer)


def local_phase(
    tx: Transaction,
    answers: Answers,
    policy: Policy,
    act: Callable[[Transaction, Answers, Policy, C], Answer],
    command: C,
) -> Started:
    """Claim the key, act, and settle the claim. ``act`` refuses before it writes anything."""
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return Started(claim)
    try:
        answer = act(tx, answers, policy, command)
    except Precondition as refusal:
        return store_refusal(tx, answers, claim, refusal)
    tx.settle_claim(claim.claim_id, answer)
    return Started(replace(claim, answer=answer))


@dataclass(frozen=True, slots=True)
class CallResult:
    """The answer's bytes, and what must not be stored with them."""

    body: bytes
    payment_id: str
    client_secret: str = field(default="", repr=False)


async def run_idempotent(
    app: App, begin: Begin[C], command: C, carry: Carry = execute
) -> CallResult:
    """Run a money RPC under its key. Raises :class:`Refusal` or :class:`ReplayedRefusal`.

    No transaction is open while Stripe is called, nor can one be. Whatever dies in between leaves
    a recorded operation, which the same key, a webhook or the sweep brings to its end.
    """
    phase = unless_away(begin, is_unavailable=app.stripe.is_unavailable)
    begun = await app.database.transact(phase, app.answers, app.policy, command)
    claim = begun.claim
    if claim.answer is not None:
        return CallResult(unwrap_answer(claim.answer), claim.payment_id)
    if begun.operation is None:
        answer = await wait_for_answer(app, claim.claim_id, command.key)
        return CallResult(unwrap_answer(answer), claim.payment_id)
    applied = await carry(app, begun.operation, begun.version, command.cause)
    # Usually there at once; a webhook may have taken the second leg of a refund out of our hands.
    answer = await wait_for_answer(app, claim.claim_id, command.key)
    payment_id = begun.operation.payment_id or claim.payment_id
    return CallResult(unwrap_answer(answer), payment_id, applied.client_secret)
