"""ReplaceExpertAccount: another connected account for an expert whose present one is lost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from payment_service.application.core import Begun, Core, Keyed, refuse_for_good, resume
from payment_service.application.create_expert_account import carry_out_account, request_account
from payment_service.application.keyed import run_keyed
from payment_service.application.refresh_expert import refresh_expert
from payment_service.application.settle import Applied
from payment_service.domain.errors import Busy, Precondition, expert_not_found
from payment_service.domain.experts import Expert
from payment_service.domain.operations import Operation
from payment_service.domain.ports import Answers, Cause, Policy, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceExpertAccount(Keyed):
    expert_id: str
    reason: str
    #: Empty means whichever it is.
    former_account_id: str
    replace_working_account: bool
    #: Stripe was asked about the present account just now; what it said stands.
    account_is_fresh: bool = False


class AccountMustBeAsked(Exception):
    """Whether the account is lost is Stripe's to say, and it may not have told us: ask, and begin
    again.
    """


async def replace_expert_account(core: Core, command: ReplaceExpertAccount) -> tuple[bytes, Expert]:
    """The answer's bytes, the same for every repetition of the key, and the expert as known now.

    Raises :class:`Refusal` or :class:`ReplayedRefusal`. Whatever dies on the way, the operation was
    recorded first, and Stripe sees one key: the sweep or the caller's retry finds the account.
    """
    try:
        told = await run_keyed(core, begin_replacement, command, _carry_out)
    except AccountMustBeAsked:
        await refresh_expert(core, command.expert_id, command.cause)
        fresh = replace(command, account_is_fresh=True)
        told = await run_keyed(core, begin_replacement, fresh, _carry_out)
    expert = await core.database.read(lambda reader: reader.expert(command.expert_id))
    assert expert is not None
    return told.body, expert


def begin_replacement(
    tx: Transaction, answers: Answers, policy: Policy, command: ReplaceExpertAccount
) -> Begun:
    """Record the operation that makes the account; two calls for one expert come in turn."""
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return resume(tx, policy, claim)
    expert = tx.lock_expert(command.expert_id)
    if expert is None:
        raise expert_not_found(command.expert_id)
    if expert.operation_id:
        raise Busy(
            "OPERATION_IN_PROGRESS",
            "an account is being made for this expert; ask again later",
            {"expert_id": expert.expert_id, "status": expert.status.value},
        )
    if not command.account_is_fresh:
        raise AccountMustBeAsked
    try:
        expert.check_replaceable(
            command.former_account_id, although_it_works=command.replace_working_account
        )
    except Precondition as refusal:
        return refuse_for_good(tx, answers, claim, refusal)
    operation = request_account(tx, policy, expert, claim.claim_id)
    tx.save_expert(
        replace(
            expert,
            operation_id=operation.operation_id,
            version=expert.version + 1,
            update_time=tx.now,
        ),
        "expert.account_replacement_requested",
        command.cause,
        reason=command.reason,
    )
    tx.bind_claim(claim.claim_id, "", operation.operation_id)
    return Begun(claim, operation)


async def _carry_out(core: Core, operation: Operation, _: int, cause: Cause) -> Applied:
    await carry_out_account(core, operation, cause)
    return Applied()
