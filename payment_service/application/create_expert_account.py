"""CreateExpertAccount: the expert's connected account, once, and a fresh link into onboarding."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace

from payment_service.application.app import App
from payment_service.application.execution.executor import execute
from payment_service.application.onboarding import mint_onboarding_link
from payment_service.application.operations.start import start_operation
from payment_service.application.sync.account import sync_expert
from payment_service.domain.errors import Conflict, Refusal, expert_not_found, key_in_use
from payment_service.domain.experts import BusinessType, Expert, ExpertStatus
from payment_service.domain.operation_payloads import CreateAccountPayload
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.places import check_country
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause


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
    continue_url: str


async def create_expert_account(app: App, command: CreateExpertAccount) -> tuple[Expert, str]:
    """Returns the expert and an onboarding link, empty if the expert has nothing left to do.

    Idempotent by ``expert_id``, also after a crash between Stripe and the database: the operation
    was recorded first, and Stripe sees the same key again.
    """
    check_country(command.country, app.policy.platform_country)
    expert, operation = await app.database.transact(begin_account, app.policy, command)
    if operation is not None:
        await execute(app, operation, 0, command.cause)
    elif expert.status is ExpertStatus.CREATING:
        await _wait_for_account(app, expert.expert_id)
    expert = await sync_expert(app, command.expert_id, command.cause)
    if expert.is_lost:
        return expert, ""
    return expert, await mint_onboarding_link(app, expert, command.continue_url, command.cause)


def begin_account(
    tx: Transaction, policy: Policy, command: CreateExpertAccount
) -> tuple[Expert, Operation | None]:
    """Returns the expert's row and, if the account is missing, the operation that creates it."""
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
        # Stripe refused the former data, so there is no account; corrected data replaces it.
        expert = replace(expert, version=known.version, create_time=known.create_time)
    operation = request_account(tx, policy, expert)
    expert = replace(expert, operation_id=operation.operation_id, version=expert.version + 1)
    tx.save_expert(expert, "expert.account_requested", command.cause)
    return expert, operation


def request_account(
    tx: Transaction, policy: Policy, expert: Expert, claim_id: str = ""
) -> Operation:
    """Records the operation that creates an account; the caller saves the expert."""
    return start_operation(
        tx,
        policy,
        kind=OperationKind.CREATE_ACCOUNT,
        expert_id=expert.expert_id,
        claim_id=claim_id,
        payload=CreateAccountPayload(
            name=expert.name,
            email=expert.email,
            country=expert.country,
            business_type=expert.business_type,
            commission_basis_points=expert.commission_basis_points,
            commission_asked=expert.commission_asked,
        ),
    )


async def _wait_for_account(app: App, expert_id: str) -> None:
    """Waits for the call that is creating the account."""
    deadline = asyncio.get_running_loop().time() + app.policy.claim_wait
    while asyncio.get_running_loop().time() < deadline:
        expert = await app.database.read(lambda reader: reader.expert(expert_id))
        if expert is not None and expert.status is not ExpertStatus.CREATING:
            return
        await asyncio.sleep(random.uniform(0.05, 0.15))  # noqa: S311 - jitter
    raise key_in_use(expert_id)


def _first_difference(known: Expert, asked: Expert) -> str:
    """Returns the first field in which a repeated creation differs, or ""."""
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
