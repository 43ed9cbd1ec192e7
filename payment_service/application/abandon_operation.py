"""AbandonOperation: an operator ends a parked operation that is not wanted any more."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Final

from payment_service.application.app import App
from payment_service.application.execution.executor import find_created_intent, sync_and_execute
from payment_service.application.operations.outcomes import fail_operation, refused_transition
from payment_service.application.resume_operation import require_parked
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.application.sync.disputes import fail_answer
from payment_service.domain import transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import Busy, Precondition, Refusal, operation_in_progress
from payment_service.domain.operations import OF_A_DISPUTE, Operation, OperationKind
from payment_service.domain.payment import Failure, Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers, Cause
from payment_service.domain.state_machine import Transition
from payment_service.domain.sync.changes import Discrepancy

_WORD: Final = "given up"


_CODE: Final = "given_up"


async def abandon_operation(app: App, operation_id: str, reason: str, cause: Cause) -> Operation:
    """End it as Stripe's final no would, but for what its caller is told. Nothing is sent.

    Whether anything can still come of it is judged before Stripe is read: what was on its way until
    then is seen by that look. Raises :class:`Refusal`.
    """
    known = await app.database.transact(check_abandonable, operation_id)
    looked = await _sync(app, known, cause)
    operation, told = await app.database.transact(
        abandon, app.answers, app.policy, known, looked, reason, cause
    )
    if told is not None:
        app.alarms.discrepancy(told.payment_id, told.kind)
    return operation


def check_abandonable(tx: Transaction, operation_id: str) -> Operation:
    """The operation, parked and past all effect. Raises where it is not, or never may be ended."""
    operation = require_parked(operation_id, tx.operation(operation_id), _WORD)
    if operation.kind is OperationKind.CREATE_ACCOUNT:
        raise _never(operation, "it moves no money, and resumed it finds the account or makes it")
    if operation.is_repayment:
        why = "the client is owed this; SettleClientPayable says that it was paid in another way"
        raise _never(operation, why, instead="SettleClientPayable")
    _check_without_effect(operation, tx.now)
    return operation


def abandon(
    tx: Transaction,
    answers: Answers,
    policy: Policy,
    known: Operation,
    looked: SyncResult,
    reason: str,
    cause: Cause,
) -> tuple[Operation, Discrepancy | None]:
    """The operation as it ended, and what an operator must be told of.

    Under the payment's lock, without which nobody resumes it: it is still the parking that was
    judged, so nothing was sent since.
    """
    payment = tx.lock_payment(known.related_payment_id)
    operation = require_parked(known.operation_id, tx.operation(known.operation_id), _WORD)
    assert payment is not None
    answers_dispute = operation.kind in OF_A_DISPUTE
    # Stripe shows what ends the payment's operation, and not its every line yet.
    about_to_end = looked.operation_deferred and not answers_dispute
    if operation.lease_token != known.lease_token or looked.stale or about_to_end:
        raise operation_in_progress(payment.payment_id, payment.state)
    _check_without_effect(operation, tx.now)
    _check_fits(payment, looked)
    refusal = _refusal_of(payment, operation)
    told = None
    if answers_dispute:
        fail_answer(tx, answers, payment, operation, refusal, _CODE, cause, reason=reason)
    else:
        transition = _transition(payment, operation, reason, tx.now)
        told = fail_operation(tx, answers, policy, operation, transition, refusal, _CODE, cause)
    ended = tx.operation(operation.operation_id)
    assert ended is not None
    return ended, told


async def _sync(app: App, operation: Operation, cause: Cause) -> SyncResult:
    if operation.kind is OperationKind.CREATE_INTENT:
        return await find_created_intent(app, operation, cause)
    return await sync_and_execute(app, operation.related_payment_id, cause)


def _transition(payment: Payment, operation: Operation, reason: str, now: datetime) -> Transition:
    if operation.kind in (OperationKind.CAPTURE, OperationKind.TRANSFER):
        transition = transitions.capture_abandoned(payment, "by an operator", now)
    else:
        failure = Failure(_CODE, "", "an operator gave it up", now)
        transition = refused_transition(payment, operation, failure)
    facts = {**transition.facts, "operation_id": operation.operation_id, "reason": reason}
    return replace(transition, facts=facts)


def _check_without_effect(operation: Operation, now: datetime) -> None:
    if operation.is_without_effect(now):
        return
    assert operation.unsure_until is not None
    until = operation.unsure_until.isoformat()
    raise Busy(
        "OPERATION_IN_PROGRESS",
        f"a request of it may still be on its way until {until}; ask again then",
        {
            "payment_id": operation.related_payment_id,
            "state": operation.state.value,
            "unsure_until": until,
        },
    )


def _check_fits(payment: Payment, looked: SyncResult) -> None:
    """Of an object that is not as we know it, the look says nothing of what became of ours."""
    for one in looked.discrepancies:
        if one.kind.describes_a_state or one.kind is DiscrepancyKind.AMOUNT_MISMATCH:
            raise Precondition(
                "DISCREPANCY",
                f"what Stripe shows does not fit the books: {one.kind}",
                {"payment_id": payment.payment_id},
            )


def _refusal_of(payment: Payment, operation: Operation) -> Refusal:
    """What the operation's caller is told, and whoever asks with the same key. Not the reason."""
    facts = {"payment_id": payment.payment_id, "operation_id": operation.operation_id}
    if operation.dispute_id:
        facts["dispute_id"] = operation.dispute_id
    return Precondition(
        "ABANDONED_BY_OPERATOR",
        "nothing came of it, and an operator has ended it; a new request takes a new key",
        facts,
    )


def _never(operation: Operation, why: str, *, instead: str = "ResumeOperation") -> Refusal:
    return Precondition(
        "OPERATION_NOT_ABANDONABLE",
        why,
        {
            "operation_id": operation.operation_id,
            "kind": operation.kind.value,
            "instead": instead,
        },
    )
