"""GetExpertBalance: what Stripe holds for an expert now, beside what the books say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from payment_service.application.app import App
from payment_service.application.get_expert import known_expert
from payment_service.application.sync.account import sync_account
from payment_service.domain.errors import Precondition
from payment_service.domain.experts import Expert
from payment_service.domain.payouts import AccountBalance
from payment_service.domain.ports.records import Cause


@dataclass(frozen=True, slots=True)
class ExpertBalance:
    """One currency. Minor units; ``funds`` is earned and not yet paid to the bank."""

    currency: str
    available: int = 0
    pending: int = 0
    funds: int = 0
    debt: int = 0


async def get_expert_balance(app: App, expert_id: str, cause: Cause) -> Sequence[ExpertBalance]:
    """By currency, of all accounts that the expert has or had, as far as Stripe shows them.

    Raises :class:`Unavailable` if Stripe cannot be read: half would mislead. The two sides are read
    one after the other, so a payout between them shows on one only.
    """
    expert = await known_expert(app, expert_id, cause.act_for)
    accounts = await app.database.read(lambda reader: reader.readable_accounts(expert_id))
    held: list[AccountBalance] = []
    readable = False
    for account_id in accounts:
        balances = await app.stripe.account_balance(account_id)
        if balances is None:  # The account has revoked our access, and that is recorded.
            await sync_account(app, account_id, cause)
            continue
        readable = True
        held += balances
    if not readable:
        present = await app.database.read(lambda reader: reader.expert(expert_id))
        raise _no_account(present or expert)
    booked = await app.database.read(lambda reader: reader.expert_balances(expert_id))
    return merge_balances(held, booked)


def merge_balances(
    held: Sequence[AccountBalance], booked: Sequence[tuple[str, int, int]]
) -> Sequence[ExpertBalance]:
    """One entry for every currency that either side knows, by name; accounts are summed up."""
    at_stripe: dict[str, AccountBalance] = {}
    for one in held:
        other = at_stripe.get(one.currency, AccountBalance(one.currency, 0, 0))
        at_stripe[one.currency] = AccountBalance(
            one.currency, one.available + other.available, one.pending + other.pending
        )
    ours = {currency: (funds, debt) for currency, funds, debt in booked}
    found = []
    for currency in sorted(at_stripe.keys() | ours.keys()):
        stripes = at_stripe.get(currency, AccountBalance(currency, 0, 0))
        funds, debt = ours.get(currency, (0, 0))
        found.append(ExpertBalance(currency, stripes.available, stripes.pending, funds, debt))
    return found


def _no_account(expert: Expert) -> Precondition:
    """There is no account yet, or the expert has cut it off: Stripe shows nothing of it."""
    return Precondition(
        "EXPERT_NOT_READY",
        f"Stripe shows no account of this expert: {expert.status}",
        {
            "expert_id": expert.expert_id,
            "status": expert.status.value,
            "disabled_reason": expert.account.disabled_reason,
            "requirements_due": "",
        },
    )
