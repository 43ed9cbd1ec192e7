"""Executes CREATE_ACCOUNT operations: an expert's connected account at Stripe."""

from __future__ import annotations

from dataclasses import replace

from payment_service.application.app import App
from payment_service.application.execution.executor import (
    back_off,
    database_time,
    ensure_lease,
    release,
    release_lease_on_failure,
)
from payment_service.application.operations.lease import keep_lease
from payment_service.domain.errors import Refusal, outcome_unknown
from payment_service.domain.experts import Account
from payment_service.domain.operation_payloads import CreateAccountPayload
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Answers, Cause
from payment_service.domain.ports.stripe import (
    Done,
    Misconfigured,
    NewAccount,
    NotSent,
    Refused,
    Unknown,
)
from payment_service.domain.processor_errors import refused_by_processor


async def execute_account(app: App, operation: Operation, cause: Cause) -> None:
    """Make the account at Stripe, or find the one that was made. Raises while it is unknown."""
    async with keep_lease(app, operation):
        await execute_step(app, operation, cause)


async def execute_step(app: App, operation: Operation, cause: Cause) -> None:
    if operation.tries:
        now = await app.database.transact(database_time)
        burnt = operation.key_spent or operation.attempt > 1
        if burnt or not operation.may_resend(now):
            async with release_lease_on_failure(app, operation, cause):
                found = await app.stripe.find_account(operation.operation_id, operation.create_time)
            if found is not None:
                await app.database.transact(finish_account, app.answers, operation, found, cause)
                return
    await ensure_lease(app, operation, cause, {"expert_id": operation.expert_id})
    account = operation.payload_as(CreateAccountPayload)
    outcome = await app.stripe.create_account(
        operation.stripe_key,
        NewAccount(
            name=account.name,
            email=account.email,
            country=account.country,
            business_type=account.business_type,
            metadata={
                "expert_id": operation.expert_id,
                "operation_id": operation.operation_id,
            },
        ),
    )
    match outcome:
        case Done(created):
            await app.database.transact(finish_account, app.answers, operation, created, cause)
        case Refused():
            await app.database.transact(refuse_account, app.answers, operation, outcome, cause)
            raise _refusal_of(operation, outcome)
        case Misconfigured(code=code):
            await release(app, operation, code, cause, None)
            raise outcome_unknown(expert_id=operation.expert_id)
        case NotSent(why=why) | Unknown(why=why):
            # A stored error burns the key: the next try looks for the account and takes a new one.
            replayed = isinstance(outcome, Unknown) and outcome.replayed
            await release(
                app,
                operation,
                why,
                cause,
                back_off(operation.tries),
                next_attempt=replayed,
                key_spent=True if replayed else None,
                counts=isinstance(outcome, Unknown),
            )
            raise outcome_unknown(expert_id=operation.expert_id)


def finish_account(
    tx: Transaction, answers: Answers, operation: Operation, account: Account, cause: Cause
) -> None:
    """The account is there, the first one or in place of another. Written once, whoever saw it."""
    expert = tx.lock_expert(operation.expert_id)
    if expert is None or expert.operation_id != operation.operation_id:
        return
    former = expert.account.stripe_account_id
    after = replace(
        expert,
        account=account,
        deauthorized=False,
        operation_id="",
        check_time=tx.now,
        version=expert.version + 1,
        update_time=tx.now,
    )
    if former:
        tx.add_former_account(expert, tx.now)
        tx.save_expert(after, "expert.account_replaced", cause, former_account_id=former)
    else:
        tx.save_expert(after, "expert.account_created", cause)
    tx.settle_operation(operation.operation_id, OperationState.SUCCEEDED)
    tx.add_event_cursor(account.stripe_account_id)
    if operation.claim_id:
        tx.settle_claim(operation.claim_id, answers.account_replaced(after))


def refuse_account(
    tx: Transaction, answers: Answers, operation: Operation, refused: Refused, cause: Cause
) -> None:
    """Stripe will not have this expert as described; a mended description may be sent."""
    expert = tx.lock_expert(operation.expert_id)
    if expert is None or expert.operation_id != operation.operation_id:
        return
    tx.save_expert(
        replace(expert, operation_id="", version=expert.version + 1, update_time=tx.now),
        "expert.account_refused",
        cause,
    )
    tx.settle_operation(operation.operation_id, OperationState.REFUSED, refused.code)
    if operation.claim_id:
        tx.settle_claim(operation.claim_id, answers.refusal(_refusal_of(operation, refused)))


def _refusal_of(operation: Operation, refused: Refused) -> Refusal:
    code, request_id = refused.code, refused.request_id
    return refused_by_processor(code, request_id, expert_id=operation.expert_id)
