"""AbandonOperation: an operator ends a parked operation that is no longer wanted."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Final

from payment_service.application.app import App
from payment_service.application.execution.accounts import finish_account
from payment_service.application.execution.executor import execute_followups, sync_and_execute
from payment_service.application.execution.payments import find_created_intent
from payment_service.application.operations.outcomes import (
    Rejection,
    fail_operation,
    refuse,
    refused_transition,
)
from payment_service.application.resume_operation import require_parked
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.application.sync.disputes import FailedAnswer, fail_answer
from payment_service.application.sync.payment import Occasion, sync_payment
from payment_service.domain import transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import Busy, Precondition, Refusal, operation_in_progress
from payment_service.domain.operations import (
    OF_A_DISPUTE,
    Operation,
    OperationKind,
    OperationState,
)
from payment_service.domain.payment import Failure, Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Answers, Cause
from payment_service.domain.state_machine import Transition
from payment_service.domain.sync.changes import Discrepancy
from payment_service.domain.texts import FreeText

_WORD: Final = "abandoned"


_CODE: Final = "abandoned"


async def abandon_operation(app: App, operation_id: str, reason: str, cause: Cause) -> Operation:
    """Ends a parked operation as a final refusal of Stripe would, and sends nothing.

    What Stripe has done and does not show a balance transaction of is booked without it.

    Whether it can still have an effect is checked before the sync, so that the sync shows any
    request that was under way until then. Raises :class:`Refusal`.
    """
    known = await app.database.transact(check_abandonable, operation_id)
    if known.kind is OperationKind.CREATE_ACCOUNT:
        return await _abandon_account(app, known, reason, cause)
    applied = await _sync(app, known, cause)
    if applied.operation_deferred and known.kind not in OF_A_DISPUTE:
        # Stripe has done it, and only a balance transaction is missing: it ends as done.
        synced = await sync_payment(
            app, known.payment_id, cause, occasion=Occasion(without_lines=True)
        )
        applied = await execute_followups(app, synced, cause)
        ended = await app.database.read(lambda reader: reader.operation(operation_id))
        if ended is not None and not ended.is_open:
            return ended
    operation, discrepancy = await app.database.transact(
        abandon, app, known, applied, reason, cause
    )
    if discrepancy is not None:
        app.alarms.discrepancy(discrepancy.payment_id, discrepancy.kind)
    return operation


def check_abandonable(tx: Transaction, operation_id: str) -> Operation:
    """Returns the operation. Raises unless it is parked, without effect, and may be abandoned."""
    operation = require_parked(operation_id, tx.operation(operation_id), _WORD)
    if operation.kind is OperationKind.COLLECT_DEBT:
        why = "resumed, it finds the reversal, or what it was to take stays owed"
        raise _never(operation, why, "ResumeOperation")
    if operation.is_repayment:
        why = "the client is owed this; SettleClientPayable says that it was paid in another way"
        raise _never(operation, why, "SettleClientPayable")
    _check_without_effect(operation, tx.now)
    return operation


def abandon(
    tx: Transaction, app: App, known: Operation, applied: SyncResult, reason: str, cause: Cause
) -> tuple[Operation, Discrepancy | None]:
    """Ends the operation. Returns it, and a discrepancy if one was found.

    Nobody resumes it without the payment's lock, which is held here. The lease token shows that it
    was not resumed and parked again since the check, so nothing was sent.
    """
    payment = tx.lock_payment(known.related_payment_id)
    operation = require_parked(known.operation_id, tx.operation(known.operation_id), _WORD)
    assert payment is not None
    answers, policy = app.answers, app.policy
    answers_dispute = operation.kind in OF_A_DISPUTE
    # Stripe shows what ends the payment's operation, but not every balance transaction yet.
    about_to_end = applied.operation_deferred and not answers_dispute
    if operation.lease_token != known.lease_token or applied.stale or about_to_end:
        raise operation_in_progress(payment.payment_id, payment.state)
    _check_without_effect(operation, tx.now)
    _check_fits(payment, applied)
    refusal = _refusal_of(payment, operation)
    discrepancy = None
    if answers_dispute:
        failed = FailedAnswer(payment, operation, refusal, _CODE)
        fail_answer(tx, answers, failed, cause, reason=FreeText(reason))
    else:
        rejection = Rejection(_transition(payment, operation, reason, tx.now), refusal, _CODE)
        discrepancy = fail_operation(tx, answers, policy, operation, rejection, cause).discrepancy
    ended = tx.operation(operation.operation_id)
    assert ended is not None
    return ended, discrepancy


async def _abandon_account(app: App, known: Operation, reason: str, cause: Cause) -> Operation:
    """Ends the creation of an account that Stripe does not have: other data may be sent then."""
    account = await app.stripe.find_account(known.operation_id, known.create_time)
    if account is not None:
        await app.database.transact(finish_account, app.answers, app.policy, known, account, cause)
    return await app.database.transact(abandon_account, app.answers, known, reason, cause)


def abandon_account(
    tx: Transaction, answers: Answers, known: Operation, reason: str, cause: Cause
) -> Operation:
    """Ends the operation, unless it was resumed or has its account since it was read."""
    expert = tx.lock_expert(known.expert_id)
    operation = require_parked(known.operation_id, tx.operation(known.operation_id), _WORD)
    assert expert is not None
    facts = {"expert_id": known.expert_id, "operation_id": known.operation_id}
    if operation.lease_token != known.lease_token:
        raise Busy(
            "OPERATION_IN_PROGRESS",
            "somebody resumed it: list the operations again",
            {"expert_id": known.expert_id, "state": operation.state.value},
        )
    after = replace(expert, operation_id="", version=expert.version + 1, update_time=tx.now)
    tx.save_expert(after, "expert.account_abandoned", cause, reason=FreeText(reason))
    tx.settle_operation(operation.operation_id, OperationState.REFUSED, _CODE)
    refuse(tx, answers, operation.claim_id, _abandoned(**facts))
    ended = tx.operation(operation.operation_id)
    assert ended is not None
    return ended


async def _sync(app: App, operation: Operation, cause: Cause) -> SyncResult:
    if operation.kind is OperationKind.CREATE_INTENT:
        return await find_created_intent(app, operation, cause)
    return await sync_and_execute(app, operation.related_payment_id, cause)


def _transition(payment: Payment, operation: Operation, reason: str, now: datetime) -> Transition:
    if operation.kind in (OperationKind.CAPTURE, OperationKind.TRANSFER):
        transition = transitions.capture_abandoned(payment, "by an operator", now)
    else:
        failure = Failure(_CODE, "", "an operator abandoned it", now)
        transition = refused_transition(payment, operation, failure)
    facts = {**transition.facts, "operation_id": operation.operation_id, "reason": FreeText(reason)}
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


def _check_fits(payment: Payment, applied: SyncResult) -> None:
    """Raises if Stripe shows another object than ours: then the sync proves nothing."""
    for one in applied.discrepancies:
        if one.kind.describes_a_state or one.kind is DiscrepancyKind.AMOUNT_MISMATCH:
            raise Precondition(
                "DISCREPANCY",
                f"what Stripe shows does not fit the books: {one.kind}",
                {"payment_id": payment.payment_id},
            )


def _refusal_of(payment: Payment, operation: Operation) -> Refusal:
    """Returns the error that the operation's caller gets. The operator's reason is not in it."""
    facts = {"payment_id": payment.payment_id, "operation_id": operation.operation_id}
    if operation.dispute_id:
        facts["dispute_id"] = operation.dispute_id
    return _abandoned(**facts)


def _abandoned(**facts: str) -> Refusal:
    return Precondition(
        "ABANDONED_BY_OPERATOR",
        "nothing came of it, and an operator has ended it; a new request takes a new key",
        facts,
    )


def _never(operation: Operation, why: str, instead: str) -> Refusal:
    return Precondition(
        "OPERATION_NOT_ABANDONABLE",
        why,
        {
            "operation_id": operation.operation_id,
            "kind": operation.kind.value,
            "instead": instead,
        },
    )
