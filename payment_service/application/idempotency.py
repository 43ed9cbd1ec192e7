"""The shell of every call under an idempotency key: the key, the replayed answer, the operation.

A money RPC records the caller's key and its operation in one transaction, calls Stripe without an
open transaction, and records the outcome in another. If the process dies in between, a retry with
the same key, a webhook or the recovery job finishes the recorded operation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeAlias, TypeVar

from payment_service.application.app import App
from payment_service.application.execution.executor import execute
from payment_service.application.operations.recovered import recovered_operation
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.domain.errors import (
    key_in_use,
    key_reused,
    outcome_unknown,
    processor_unavailable,
)
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.payment import Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import Answer, Answers, Cause, Claim
from payment_service.domain.processor_errors import refused_by_processor


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotentCommand:
    """A call under a caller's key: who calls, the key, and every other field as text."""

    cause: Cause
    key: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Started:
    """The operation that a call has recorded, and its payment as it stands then, if it has one."""

    operation: Operation
    payment: Payment | None = None


C = TypeVar("C", bound=IdempotentCommand)

#: The part of a call that is its own: locks, guards, plans and records, for the claim of the last
#: parameter. A refusal ends the transaction without effect, so the key stays free. A call that asks
#: nothing of Stripe returns its answer.
Start: TypeAlias = Callable[[Transaction, Policy, C, str], Started | Answer]

#: The same of a call that asks nothing of Stripe, as its file writes it.
Act: TypeAlias = Callable[[Transaction, Answers, Policy, C], Answer]


#: Runs when a call finds that its key was used before, so that it starts nothing.
on_replay: ContextVar[Callable[[], None] | None] = ContextVar("on_replay", default=None)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The caller's claim after the first transaction.

    Its answer is stored, or its operation is leased to this process, or another one works on it.
    """

    claim: Claim
    operation: Operation | None = None
    #: The payment's version. A snapshot that is applied must be newer.
    version: int = 0


@dataclass(frozen=True, slots=True)
class CallResult:
    """The answer's bytes, and what must not be stored with them."""

    body: bytes
    payment_id: str
    client_secret: str = field(default="", repr=False)


class ReplayedRefusal(Exception):
    """The stored ``google.rpc.Status`` of a refusal, to be sent again byte for byte."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("a stored refusal")
        self.answer = answer


async def run_idempotent(app: App, command: C, start: Start[C]) -> CallResult:
    """Runs a money RPC under its key. Raises :class:`Refusal` or :class:`ReplayedRefusal`.

    No transaction is open while Stripe is called. The answer comes from the transaction that stored
    it; it is only waited for where somebody else stores it.
    """
    claimed = await _claim_key(app, command, start)
    claim, operation = claimed.claim, claimed.operation
    applied = SyncResult()
    if operation is not None:
        applied = await execute(app, operation, claimed.version, command.cause)
    answer = claim.answer or applied.answers.get(claim.claim_id)
    if answer is None:
        # Another call is at work, or a webhook has taken over the operation's second leg.
        answer = await wait_for_answer(app, claim.claim_id, command.key)
    return CallResult(_body_of(answer), claim.payment_id, applied.client_secret)


async def run_local(app: App, command: C, act: Act[C]) -> bytes:
    """Runs a call that asks nothing of Stripe under its key, in one transaction."""

    def start(tx: Transaction, policy: Policy, command: C, _: str) -> Answer:
        return act(tx, app.answers, policy, command)

    claimed = await _claim_key(app, command, start)
    assert claimed.claim.answer is not None
    return _body_of(claimed.claim.answer)


async def _claim_key(app: App, command: C, start: Start[C]) -> Claimed:
    claimed = await app.database.transact(claim_and_start, app, command, start)
    replayed = on_replay.get()
    if replayed is not None and not claimed.claim.fresh:
        replayed()
    return claimed


def claim_and_start(tx: Transaction, app: App, command: C, start: Start[C]) -> Claimed:
    """Claims the key and starts the call, or finds out what became of the key's first call.

    A refusal of the start has changed nothing and sent nothing, so it leaves no claim: a later call
    with the same key is decided anew. While Stripe is unavailable no new operation is recorded; a
    stored answer is replayed all the same.
    """
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return _replay_or_take_over(tx, app.policy, claim)
    recovered = recovered_operation(tx, claim.claim_id)
    if recovered is not None:
        return _continue_recovered(tx, app, command, claim, recovered)
    started = start(tx, app.policy, command, claim.claim_id)
    if isinstance(started, Answer):
        tx.bind_claim(claim.claim_id, getattr(command, "payment_id", ""), "")
        return _answered(tx, claim, started)
    if app.stripe.is_unavailable:
        raise processor_unavailable()
    operation, payment = started.operation, started.payment
    payment_id = payment.payment_id if payment else ""
    if payment_id != operation.payment_id:  # The operation is a dispute's.
        tx.bind_claim(claim.claim_id, payment_id, operation.operation_id)
    bound = replace(claim, operation_id=operation.operation_id, payment_id=payment_id)
    return Claimed(bound, operation, payment.version if payment else 0)


def _continue_recovered(
    tx: Transaction, app: App, command: IdempotentCommand, claim: Claim, operation: Operation
) -> Claimed:
    """Binds the claim to an operation that the database had lost with the key's first claim."""
    payment_id = operation.related_payment_id
    if getattr(command, "payment_id", payment_id) != payment_id:
        raise key_reused(command.key, "payment_id")
    payment = tx.lock_payment(payment_id) if payment_id else None
    tx.bind_claim(claim.claim_id, payment_id, operation.operation_id)
    bound = replace(claim, operation_id=operation.operation_id, payment_id=payment_id)
    if operation.is_open:
        tx.give_operation_to_claim(operation.operation_id, claim.claim_id)
        return _replay_or_take_over(tx, app.policy, bound)
    if operation.fails_its_call:
        failed_refund = operation.kind is OperationKind.REFUND
        code = operation.last_error or ("refund_failed" if failed_refund else "refused")
        refusal = refused_by_processor(code, "", payment_id=payment_id)
        return _answered(tx, bound, app.answers.refusal(refusal))
    if payment is not None:
        return _answered(tx, bound, app.answers.response(claim.rpc, payment))
    expert = tx.expert(operation.expert_id)
    assert expert is not None
    return _answered(tx, bound, app.answers.account_replaced(expert))


def _answered(tx: Transaction, claim: Claim, answer: Answer) -> Claimed:
    """Stores the answer: the same key gets it again."""
    return Claimed(replace(claim, answer=tx.settle_claim(claim.claim_id, answer)))


def _replay_or_take_over(tx: Transaction, policy: Policy, claim: Claim) -> Claimed:
    """Returns the stored answer, or leases the operation if nobody works on it any more."""
    if claim.answer is not None or not claim.operation_id:
        return Claimed(claim)
    return Claimed(claim, tx.lease_operation(claim.operation_id, policy.lease))


def _body_of(answer: Answer) -> bytes:
    """Returns the response's bytes, or raises the stored refusal."""
    if not answer.ok:
        raise ReplayedRefusal(answer)
    return answer.body


async def wait_for_answer(app: App, claim_id: str, key: str) -> Answer:
    """Waits for the answer that somebody else stores; raises ABORTED if that takes too long.

    If nobody works on the operation any more, the outcome is *unknown*: recovery finds it out.
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
