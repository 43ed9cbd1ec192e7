"""What every use case is given, and the shape of a call that a caller's key protects."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from payment_service.application.feed import Feed
from payment_service.domain.errors import Refusal, key_in_use, outcome_unknown
from payment_service.domain.operations import Operation
from payment_service.domain.payouts import PayoutChange
from payment_service.domain.ports import (
    Answer,
    Answers,
    Cause,
    Claim,
    Database,
    Policy,
    Reader,
    StripePort,
    Transaction,
)


class Alarms(Protocol):
    """Where what needs a human is told: metrics and the log."""

    def operation_parked(self, operation: Operation, why: str) -> None: ...
    def event_parked(self, event_id: str, why: str) -> None: ...
    def payout_changed(self, change: PayoutChange) -> None: ...
    def discrepancy(self, payment_id: str, kind: str) -> None: ...
    def invariants(self, violations: Mapping[str, Sequence[str]]) -> None: ...


@dataclass(frozen=True, slots=True)
class Core:
    """The ports and the policy, wired once in ``bootstrap``."""

    database: Database
    stripe: StripePort
    answers: Answers
    policy: Policy
    alarms: Alarms
    #: Set when there is something new for the background loops to do.
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    feed: Feed = field(default_factory=Feed)


@dataclass(frozen=True, slots=True)
class Begun:
    """What the first phase of a money RPC came to.

    Either the answer is there, or the operation is ours to carry out (``operation``), or somebody
    else is at it (``claim`` alone).
    """

    claim: Claim
    operation: Operation | None = None
    #: The payment's version after this phase; what is observed must be newer.
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyed:
    """A call under a caller's key: who asks, the key, and every other field as text."""

    cause: Cause
    key: str
    fields: Mapping[str, str]


class ReplayedRefusal(Exception):
    """The stored ``google.rpc.Status`` of a refusal, to be sent again byte for byte."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("a stored refusal")
        self.answer = answer


def resume(tx: Transaction, policy: Policy, claim: Claim) -> Begun:
    """A key that was used before: its answer, or its operation if nobody is at it any more."""
    if claim.answer is not None or not claim.operation_id:
        return Begun(claim)
    operation = tx.lease_operation(claim.operation_id, policy.lease)
    return Begun(claim, operation)


def refuse_for_good(tx: Transaction, answers: Answers, claim: Claim, refusal: Refusal) -> Begun:
    """Our own guard said no: the same key gets the same no for ever; a new try takes a new key."""
    answer = answers.refusal(refusal)
    tx.settle_claim(claim.claim_id, answer)
    return Begun(replace(claim, answer=answer))


def answered(answer: Answer) -> bytes:
    """The response's bytes, or the refusal raised again."""
    if not answer.ok:
        raise ReplayedRefusal(answer)
    return answer.body


async def wait_for_answer(core: Core, claim_id: str, key: str) -> Answer:
    """Wait for whoever works on the claim; ABORTED if that takes too long.

    A claim whose operation nobody works on any more is *unknown*: the sweep settles it.
    """
    deadline = asyncio.get_running_loop().time() + core.policy.claim_wait
    pause = 0.02
    while True:
        claim = await core.database.read(_claim, claim_id)
        if claim is not None and claim.answer is not None:
            return claim.answer
        if asyncio.get_running_loop().time() >= deadline:
            break
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.25)
    operation = await core.database.read(_operation, claim.operation_id) if claim else None
    lease_until = operation.lease_until if operation is not None else None
    if lease_until is not None and lease_until > datetime.now(UTC):
        raise key_in_use(key)
    raise outcome_unknown(payment_id=claim.payment_id if claim else "")


def _claim(reader: Reader, claim_id: str) -> Claim | None:
    return reader.claim(claim_id)


def _operation(reader: Reader, operation_id: str) -> Operation | None:
    return reader.operation(operation_id)


def hashed(secret: str) -> bytes:
    """How a secret that only its bearer needs to know is stored."""
    return hashlib.sha256(secret.encode()).digest()
