"""CreateExpertAccount: the expert's connected account, once, and a fresh link into onboarding."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

from payment_service.application.carry_out import (
    back_off,
    check_lease,
    database_time,
    give_back,
    looking,
)
from payment_service.application.core import Core
from payment_service.application.keep_lease import keep_lease
from payment_service.application.onboarding import mint_onboarding_link
from payment_service.application.refresh_expert import refresh_expert
from payment_service.application.settle import leased_operation
from payment_service.domain.errors import (
    Conflict,
    Refusal,
    expert_not_found,
    key_in_use,
    outcome_unknown,
)
from payment_service.domain.experts import (
    Account,
    BusinessType,
    Expert,
    ExpertStatus,
    check_country,
)
from payment_service.domain.follow import refused_by_processor
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.ports import (
    Answers,
    Cause,
    Done,
    Misconfigured,
    NewAccount,
    NotSent,
    Policy,
    Refused,
    Transaction,
    Unknown,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateExpertAccount:
    cause: Cause
    expert_id: str
    name: str
    email: str
    country: str
    business_type: BusinessType
    #: None means the default rate.
    commission_basis_points: int | None
    onward_url: str


async def create_expert_account(core: Core, command: CreateExpertAccount) -> tuple[Expert, str]:
    """The expert and an onboarding link (empty where there is nothing left to do but by Stripe).

    Idempotent by ``expert_id``, also after a crash between Stripe and the database: the operation
    was recorded first, and Stripe sees the same key again.
    """
    check_country(command.country, core.policy.platform_country)
    expert, operation = await core.database.transact(begin_account, core.policy, command)
    if operation is not None:
        await carry_out_account(core, operation, command.cause)
    elif expert.status is ExpertStatus.CREATING:
        await _wait_for_account(core, expert.expert_id)
    expert = await refresh_expert(core, command.expert_id, command.cause)
    if expert.is_lost:
        return expert, ""
    return expert, await mint_onboarding_link(core, expert, command.onward_url)


def begin_account(
    tx: Transaction, policy: Policy, command: CreateExpertAccount
) -> tuple[Expert, Operation | None]:
    """The expert's row and, where the account is missing, the operation that makes it."""
    asked = command.commission_basis_points
    expert = Expert(
        expert_id=command.expert_id,
        name=command.name,
        email=command.email,
        country=command.country,
        business_type=command.business_type,
        commission_basis_points=policy.default_commission_basis_points if asked is None else asked,
        commission_asked=asked,
        create_time=tx.now,
        update_time=tx.now,
    )
    if not tx.add_expert(expert, command.cause):
        known = tx.lock_expert(command.expert_id)
        if known is None:
            raise expert_not_found(command.expert_id)
        differs = _first_difference(known, expert)
        if known.account.stripe_account_id or known.operation_id:
            if differs:
                raise _exists(command.expert_id, differs)
            if not known.operation_id:
                return known, None
            return known, tx.lease_operation(known.operation_id, policy.lease)
        # Stripe refused the former content, so there is no account; the mended content may go in.
        expert = replace(expert, version=known.version, create_time=known.create_time)
    operation = request_account(tx, policy, expert)
    expert = replace(expert, operation_id=operation.operation_id, version=expert.version + 1)
    tx.save_expert(expert, "expert.account_requested", command.cause)
    return expert, operation


def request_account(
    tx: Transaction, policy: Policy, expert: Expert, claim_id: str = ""
) -> Operation:
    """Record the operation that makes an account for the expert; the caller saves the expert."""
    return leased_operation(
        tx,
        policy,
        kind=OperationKind.CREATE_ACCOUNT,
        expert_id=expert.expert_id,
        claim_id=claim_id,
        params={
            "name": expert.name,
            "email": expert.email,
            "country": expert.country,
            "business_type": expert.business_type.value,
        },
    )


async def carry_out_account(core: Core, operation: Operation, cause: Cause) -> None:
    """Make the account at Stripe, or find the one that was made. Raises while it is unknown."""
    async with keep_lease(core, operation):
        await _carry_out(core, operation, cause)


async def _carry_out(core: Core, operation: Operation, cause: Cause) -> None:
    if operation.tries:
        now = await core.database.transact(database_time)
        burnt = operation.params.get("replayed") or operation.attempt > 1
        if burnt or not operation.may_resend(now):
            async with looking(core, operation, cause):
                found = await core.stripe.find_account(
                    operation.operation_id, operation.create_time
                )
            if found is not None:
                await core.database.transact(finish_account, core.answers, operation, found, cause)
                return
    await check_lease(core, operation, cause, {"expert_id": operation.expert_id})
    outcome = await core.stripe.create_account(
        operation.stripe_key,
        NewAccount(
            name=operation.text("name"),
            email=operation.text("email"),
            country=operation.text("country"),
            business_type=BusinessType(operation.text("business_type")),
            metadata={
                "expert_id": operation.expert_id,
                "operation_id": operation.operation_id,
            },
        ),
    )
    match outcome:
        case Done(account):
            await core.database.transact(finish_account, core.answers, operation, account, cause)
        case Refused():
            await core.database.transact(refuse_account, core.answers, operation, outcome, cause)
            raise _refusal_of(operation, outcome)
        case Misconfigured(code=code):
            await give_back(core, operation, code, cause, None)
            raise outcome_unknown(expert_id=operation.expert_id)
        case NotSent(why=why) | Unknown(why=why):
            # A stored error burns the key: the next try looks for the account and takes a new one.
            replayed = isinstance(outcome, Unknown) and outcome.replayed
            await give_back(
                core,
                operation,
                why,
                cause,
                back_off(operation.tries),
                next_attempt=replayed,
                params={**operation.params, "replayed": True} if replayed else None,
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
    tx.watch_account(account.stripe_account_id)
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


async def _wait_for_account(core: Core, expert_id: str) -> None:
    """Another call is making the account: wait for it a little."""
    deadline = asyncio.get_running_loop().time() + core.policy.claim_wait
    while asyncio.get_running_loop().time() < deadline:
        expert = await core.database.read(lambda reader: reader.expert(expert_id))
        if expert is not None and expert.status is not ExpertStatus.CREATING:
            return
        await asyncio.sleep(random.uniform(0.05, 0.15))  # noqa: S311 - jitter
    raise key_in_use(expert_id)


def _first_difference(known: Expert, asked: Expert) -> str:
    """The first field in which a repeated creation differs; empty if it is the same."""
    for field in ("name", "email", "country", "business_type", "commission_asked"):
        if getattr(known, field) != getattr(asked, field):
            return "commission_basis_points" if field == "commission_asked" else field
    return ""


def _exists(expert_id: str, field: str) -> Refusal:
    return Conflict(
        "EXPERT_ALREADY_EXISTS",
        f"this expert exists with another {field}",
        {"expert_id": expert_id, "field": field},
    )
