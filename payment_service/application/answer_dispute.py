"""SubmitEvidence and AcceptDispute: what the platform says to the client's bank.

Durable operations under stored keys like the money RPCs, with one difference: they hang on the
dispute and not on the payment, whose one open operation they neither occupy nor wait for. Evidence
moves no money; what an acceptance moves, ``follow_disputes`` brings about when the payment is at
rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from payment_service.application.carry_out import (
    back_off,
    give_back,
    go_on,
    is_settled,
    looking,
    refusal_of,
    send_patiently,
)
from payment_service.application.core import Begun, Core, Keyed, refuse_for_good, resume
from payment_service.application.keep_lease import keep_lease
from payment_service.application.keyed import Told, run_keyed
from payment_service.application.observe import observe_payment
from payment_service.application.settle import Applied, leased_operation
from payment_service.application.settle_disputes import refuse_answer_phase
from payment_service.domain import disputes, escrow
from payment_service.domain.disputes import Dispute
from payment_service.domain.errors import Precondition, Refusal
from payment_service.domain.escrow import Frozen, Kind, Payment
from payment_service.domain.observation import ShownDispute
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.ports import (
    Answers,
    Cause,
    Claim,
    Done,
    Misconfigured,
    NotSent,
    Outcome,
    Policy,
    Refused,
    Transaction,
    Unknown,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitEvidence(Keyed):
    dispute_id: str
    #: By Stripe's names: texts, lines and ids of files.
    evidence: Mapping[str, str]
    #: Hand it to the bank, for good; else it is only staged at Stripe.
    submit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptDispute(Keyed):
    dispute_id: str


async def submit_evidence(core: Core, command: SubmitEvidence) -> Told:
    """Stage evidence at Stripe or, with ``submit``, hand it to the bank, which is final."""
    return await run_keyed(core, begin_evidence, command, carry_out_answer)


async def accept_dispute(core: Core, command: AcceptDispute) -> Told:
    """Give a chargeback up as lost, which is final."""
    return await run_keyed(core, begin_acceptance, command, carry_out_answer)


def begin_evidence(
    tx: Transaction, answers: Answers, policy: Policy, command: SubmitEvidence
) -> Begun:
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return resume(tx, policy, claim)
    payment, dispute = lock_dispute(tx, command.dispute_id)
    try:
        disputes.check_evidence(dispute, command.evidence, submit=command.submit, now=tx.now)
    except Precondition as refusal:
        return refuse_for_good(tx, answers, claim, refusal)
    params = {"evidence": dict(command.evidence), "submit": command.submit}
    operation = _leased(tx, policy, OperationKind.SUBMIT_EVIDENCE, dispute, claim, params)
    # What is in the evidence is not for the audit trail: it speaks of people.
    facts = {"evidence": sorted(command.evidence), "submit": command.submit}
    return _begun(tx, claim, operation, payment, dispute, facts, command.cause)


def begin_acceptance(
    tx: Transaction, answers: Answers, policy: Policy, command: AcceptDispute
) -> Begun:
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return resume(tx, policy, claim)
    payment, dispute = lock_dispute(tx, command.dispute_id)
    try:
        disputes.check_acceptance(dispute)
    except Precondition as refusal:
        return refuse_for_good(tx, answers, claim, refusal)
    operation = _leased(tx, policy, OperationKind.ACCEPT_DISPUTE, dispute, claim, {})
    return _begun(tx, claim, operation, payment, dispute, {}, command.cause)


def lock_dispute(tx: Transaction, dispute_id: str) -> tuple[Payment, Dispute]:
    """The payment's lock is the dispute's too, so the row is read again under it."""
    known = tx.dispute(dispute_id)
    payment = tx.lock_payment(known.payment_id) if known else None
    dispute = tx.dispute(dispute_id)
    if payment is None or dispute is None:
        raise disputes.dispute_not_found(dispute_id)
    return payment, dispute


def _leased(
    tx: Transaction,
    policy: Policy,
    kind: OperationKind,
    dispute: Dispute,
    claim: Claim,
    params: Mapping[str, object],
) -> Operation:
    return leased_operation(
        tx,
        policy,
        kind=kind,
        dispute_id=dispute.dispute_id,
        claim_id=claim.claim_id,
        params={**params, "payment_id": dispute.payment_id},
    )


def _begun(
    tx: Transaction,
    claim: Claim,
    operation: Operation,
    payment: Payment,
    dispute: Dispute,
    facts: Mapping[str, object],
    cause: Cause,
) -> Begun:
    tx.save_dispute(replace(dispute, operation_id=operation.operation_id, update_time=tx.now))
    told = {
        "dispute_id": dispute.dispute_id,
        "operation_id": operation.operation_id,
        "answer": operation.kind.value,
        **facts,
    }
    frozen = Frozen(payment.frozen, payment.frozen_by)
    transition = escrow.dispute_changed(payment, Kind.DISPUTE_ANSWER_STARTED, told, frozen, tx.now)
    tx.record(transition, cause)
    tx.bind_claim(claim.claim_id, payment.payment_id, operation.operation_id)
    return Begun(claim, operation, transition.after.version)


async def carry_out_answer(
    core: Core, operation: Operation, _version: int, cause: Cause
) -> Applied:
    """Bring a leased answer to its end. Raises :class:`Refusal` while that is not known.

    What follows from it for the expert is begun here too, and finished by the sweep if need be: it
    is nothing that this answer waits for.
    """
    async with keep_lease(core, operation):
        applied = await _carry_out(core, operation, cause)
    with suppress(Refusal):  # Written down; the sweep goes on with it.
        await go_on(core, applied, cause)
    return applied


async def _carry_out(core: Core, operation: Operation, cause: Cause) -> Applied:
    if operation.tries:
        looked = await _look(core, operation, cause)
        if await is_settled(core, operation):
            return looked
    facts = {"dispute_id": operation.dispute_id}
    outcome = await send_patiently(core, operation, lambda: _send(core, operation), cause, facts)
    if isinstance(outcome, Done | Refused):
        # A no is believed only after looking: Stripe also repeats one for what it did after all.
        made = outcome.value if isinstance(outcome, Done) else None
        looked = await _look(core, operation, cause, made=made)
        if await is_settled(core, operation):
            return looked
        if isinstance(outcome, Refused):
            await core.database.transact(
                refuse_answer_phase, core.answers, operation, outcome, cause
            )
            return looked
        outcome = Unknown("done, but not shown yet")
    replayed = isinstance(outcome, Unknown) and outcome.replayed
    parks = isinstance(outcome, Misconfigured)
    await give_back(
        core,
        operation,
        outcome.code if isinstance(outcome, Misconfigured) else outcome.why,
        cause,
        None if parks else back_off(operation.tries),
        # A stored error burns the key: having looked, the next try takes a new one.
        next_attempt=replayed,
        counts=not isinstance(outcome, NotSent),
    )
    raise refusal_of(operation, outcome)


async def _look(
    core: Core, operation: Operation, cause: Cause, *, made: ShownDispute | None = None
) -> Applied:
    """Read payment and dispute."""
    async with looking(core, operation, cause):
        return await observe_payment(core, operation.text("payment_id"), cause, made=made)


async def _send(core: Core, operation: Operation) -> Outcome[ShownDispute]:
    if operation.kind is OperationKind.ACCEPT_DISPUTE:
        return await core.stripe.accept_dispute(operation.stripe_key, operation.dispute_id)
    evidence = {name: str(value) for name, value in operation.mapping("evidence").items()}
    return await core.stripe.submit_evidence(
        operation.stripe_key,
        operation.dispute_id,
        evidence,
        submit=bool(operation.params.get("submit")),
        operation_id=operation.operation_id,
    )
