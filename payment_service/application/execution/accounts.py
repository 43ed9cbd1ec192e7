"""Executes CREATE_ACCOUNT operations: an expert's connected account at Stripe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, assert_never

from payment_service.application.app import App
from payment_service.application.clock import database_time
from payment_service.application.execution.strategy import Found
from payment_service.application.operations.lease import (
    back_off,
    release,
    release_lease_on_failure,
)
from payment_service.application.operations.outcomes import park, refuse
from payment_service.application.sync.account import with_next_check
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.domain.errors import Refusal, outcome_unknown
from payment_service.domain.experts import Account
from payment_service.domain.marks import marks_of
from payment_service.domain.operation_payloads import CreateAccountPayload
from payment_service.domain.operations import Operation, OperationState, Retry
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers, Cause, StoredAnswers
from payment_service.domain.ports.stripe import (
    Done,
    Misconfigured,
    NewAccount,
    NotSent,
    Outcome,
    Refused,
    Unknown,
)
from payment_service.domain.processor_errors import misconfigured, refused_by_processor


@dataclass(frozen=True, slots=True)
class AccountStrategy:
    """An account is found by the operation's id in its metadata, and moves no money.

    So a spent key is replaced at once: the next try searches for the account and, if there is
    none, sends under the new key. Without resending: CreateExpertAccount is repeated by its caller.
    """

    awaits_followups: ClassVar[bool] = True

    app: App
    cause: Cause

    def facts(self, operation: Operation) -> Mapping[str, str]:
        return {"expert_id": operation.expert_id}

    async def find(self, operation: Operation) -> Found:
        app = self.app
        now = await app.database.transact(database_time)
        key_is_spent = operation.key_spent or operation.attempt > 1
        # Under its first key, while Stripe keeps it, the same request returns the same account.
        if not key_is_spent and operation.may_resend(now):
            return Found(SyncResult(), is_closed=False)
        async with release_lease_on_failure(app, operation, self.cause):
            account = await app.stripe.find_account(operation.operation_id, operation.create_time)
        if account is None:
            return Found(SyncResult(), is_closed=False)
        return Found(await self._finish(operation, account), is_closed=True)

    async def send(self, operation: Operation) -> Outcome[Account]:
        return await _send(self.app, operation)

    async def may_resend_unsent(self, operation: Operation) -> bool:
        return False

    async def record(
        self, operation: Operation, outcome: Outcome[Account], version: int
    ) -> SyncResult:
        app = self.app
        match outcome:
            case Done(account):
                return await self._finish(operation, account)
            case Refused():
                await app.database.transact(
                    refuse_account, app.answers, operation, outcome, self.cause
                )
                raise _refusal_of(operation, outcome)
            case Misconfigured(is_not_set_up=True, code=code, said=said):
                # Nobody's data is at fault, so it is tried again until an operator has set the
                # platform up, or it is parked.
                retry = Retry(
                    why=f"{code}: {said}",
                    after=back_off(app.policy, operation.tries),
                    new_key=outcome.spent_key,
                    may_be_sent=False,
                )
                await release(app, operation, retry, self.cause)
            case Misconfigured(code=code, said=said):
                await release(app, operation, park(app.policy, operation, code, said), self.cause)
            case NotSent(why=why) | Unknown(why=why):
                spent = isinstance(outcome, Unknown) and outcome.replayed
                retry = Retry(
                    why=why,
                    after=back_off(app.policy, operation.tries),
                    spent_key=spent,
                    new_key=spent,
                    counts=isinstance(outcome, Unknown),
                )
                await release(app, operation, retry, self.cause)
            case _:
                assert_never(outcome)
        if isinstance(outcome, Misconfigured):
            raise misconfigured(outcome.code, outcome.request_id, **self.facts(operation))
        raise outcome_unknown(**self.facts(operation))

    async def _finish(self, operation: Operation, account: Account) -> SyncResult:
        app = self.app
        answers = await app.database.transact(
            finish_account, app.answers, app.policy, operation, account, self.cause
        )
        return SyncResult(answers=answers)


async def _send(app: App, operation: Operation) -> Outcome[Account]:
    account = operation.payload_as(CreateAccountPayload)
    return await app.stripe.create_account(
        operation.stripe_key,
        NewAccount(
            name=account.name,
            email=account.email,
            country=account.country,
            business_type=account.business_type,
            metadata={
                "expert_id": operation.expert_id,
                **marks_of(operation, await app.database.installation_id()),
            },
        ),
    )


def finish_account(
    tx: Transaction,
    answers: Answers,
    policy: Policy,
    operation: Operation,
    account: Account,
    cause: Cause,
) -> StoredAnswers:
    """Records the account, the first one or in place of another; once, however often it is seen."""
    expert = tx.lock_expert(operation.expert_id)
    if expert is None or expert.operation_id != operation.operation_id:
        return {}
    former = expert.account.stripe_account_id
    made = operation.payload_as(CreateAccountPayload)
    after = replace(
        expert,
        email=made.email,
        country=made.country,
        business_type=made.business_type,
        account=account,
        deauthorized=False,
        operation_id="",
        check_time=tx.now,
        version=expert.version + 1,
        update_time=tx.now,
    )
    after = with_next_check(tx, policy, after)
    if former:
        tx.add_former_account(expert, tx.now)
        tx.save_expert(after, "expert.account_replaced", cause, former_account_id=former)
    else:
        tx.save_expert(after, "expert.account_created", cause)
    tx.settle_operation(operation.operation_id, OperationState.SUCCEEDED)
    tx.add_event_cursor(account.stripe_account_id)
    if not operation.claim_id:
        return {}
    answer = answers.account_replaced(after)
    return {operation.claim_id: tx.settle_claim(operation.claim_id, answer)}


def refuse_account(
    tx: Transaction, answers: Answers, operation: Operation, refused: Refused, cause: Cause
) -> None:
    """Records that Stripe refused the expert's data; corrected data may be sent."""
    expert = tx.lock_expert(operation.expert_id)
    if expert is None or expert.operation_id != operation.operation_id:
        return
    tx.save_expert(
        replace(expert, operation_id="", version=expert.version + 1, update_time=tx.now),
        "expert.account_refused",
        cause,
    )
    tx.settle_operation(operation.operation_id, OperationState.REFUSED, refused.last_error)
    refuse(tx, answers, operation.claim_id, _refusal_of(operation, refused))


def _refusal_of(operation: Operation, refused: Refused) -> Refusal:
    code, request_id = refused.code, refused.request_id
    return refused_by_processor(code, request_id, expert_id=operation.expert_id)
