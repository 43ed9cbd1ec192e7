"""ReplaceExpertAccount: a new connected account for an expert whose present one is lost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from payment_service.application.app import App
from payment_service.application.create_expert_account import request_account
from payment_service.application.idempotency import IdempotentCommand, Started, run_idempotent
from payment_service.application.sync.account import sync_expert
from payment_service.domain.errors import Busy, expert_not_found
from payment_service.domain.experts import BusinessType, Expert
from payment_service.domain.places import check_country
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.texts import FreeText


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceExpertAccount(IdempotentCommand):
    expert_id: str
    reason: str
    #: Empty means the present one.
    former_account_id: str
    replace_working_account: bool
    #: What the new account is created with; empty or None means as the present one.
    country: str = ""
    email: str = ""
    business_type: BusinessType | None = None
    #: The present account was synced just now.
    account_is_fresh: bool = False


class AccountMustBeAsked(Exception):
    """Only Stripe knows whether the account is lost: sync the expert and start again."""


async def replace_expert_account(app: App, command: ReplaceExpertAccount) -> tuple[bytes, Expert]:
    """Returns the answer's bytes, the same for every repetition of the key, and the expert now.

    Raises :class:`Refusal` or :class:`ReplayedRefusal`. If the process dies on the way, recovery or
    the caller's retry finds the account: the operation was recorded first, and Stripe sees one key.
    """
    try:
        result = await run_idempotent(app, command, begin_replacement)
    except AccountMustBeAsked:
        await sync_expert(app, command.expert_id, command.cause)
        fresh = replace(command, account_is_fresh=True)
        result = await run_idempotent(app, fresh, begin_replacement)
    expert = await app.database.read(lambda reader: reader.expert(command.expert_id))
    assert expert is not None
    return result.body, expert


def begin_replacement(
    tx: Transaction, policy: Policy, command: ReplaceExpertAccount, claim_id: str
) -> Started:
    """Records the operation that creates the account. The expert's lock keeps two calls apart."""
    expert = tx.lock_expert(command.expert_id)
    if expert is None:
        raise expert_not_found(command.expert_id)
    expert.check_known()
    if expert.operation_id:
        raise Busy(
            "OPERATION_IN_PROGRESS",
            "an account is being created for this expert; ask again later",
            {"expert_id": expert.expert_id, "status": expert.status.value},
        )
    if not command.account_is_fresh:
        raise AccountMustBeAsked
    expert.check_replaceable(
        command.former_account_id, although_it_works=command.replace_working_account
    )
    if command.country:
        check_country(command.country, policy.platform_country)
    # The expert's row follows when the account exists: until then the present account counts.
    wanted = replace(
        expert,
        country=command.country or expert.country,
        email=command.email or expert.email,
        business_type=command.business_type or expert.business_type,
    )
    operation = request_account(tx, policy, wanted, claim_id)
    tx.save_expert(
        replace(
            expert,
            operation_id=operation.operation_id,
            version=expert.version + 1,
            update_time=tx.now,
        ),
        "expert.account_replacement_requested",
        command.cause,
        reason=FreeText(command.reason),
        country=wanted.country,
        business_type=wanted.business_type.value,
    )
    return Started(operation)
