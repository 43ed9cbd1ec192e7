"""Steps with experts' accounts: lost, exchanged, well again."""

from __future__ import annotations

from typing import Any

from marketplace.payments.v1 import experts_pb2, payments_pb2
from tests.support.requests import new_key
from tests.support.world import World, until

READY = experts_pb2.EXPERT_STATUS_READY
REJECTED = experts_pb2.EXPERT_STATUS_REJECTED
DEAUTHORIZED = experts_pb2.EXPERT_STATUS_DEAUTHORIZED


def replacement(expert: str, **fields: Any) -> experts_pb2.ReplaceExpertAccountRequest:
    given = {"expert_id": expert, "reason": "lost", "idempotency_key": new_key(), **fields}
    return experts_pb2.ReplaceExpertAccountRequest(**given)


async def reject(world: World, expert: str) -> str:
    """Stripe rejects the expert's account; the account's id."""
    account = world.account_of(expert)
    body = {"disabled_reason": "rejected.fraud"}
    await world.stripe.control("POST", f"/accounts/{account}/restrict", body)
    await world.expert_status(expert, REJECTED)
    return account


async def deauthorize(world: World, expert: str) -> str:
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/deauthorize")
    await world.expert_status(expert, DEAUTHORIZED)
    return account


async def replace(world: World, expert: str, *, ready: bool = True, **fields: Any) -> str:
    """Gives the expert another account, onboarded by default, and returns its id."""
    answer = await world.experts.ReplaceExpertAccount(replacement(expert, **fields))
    account = answer.expert.stripe_account_id
    if ready:
        await onboard(world, expert, account)
    return account


async def onboard(world: World, expert: str, account: str, outcome: str = "complete") -> None:
    body = {"outcome": outcome}
    await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding", body)
    if outcome == "complete":
        await world.expert_status(expert, READY)


async def waiting_for(world: World, payment_id: str, reason: str) -> payments_pb2.Payment:
    wanted = payments_pb2.WaitingReason.Value(f"WAITING_REASON_{reason}")

    async def probe() -> payments_pb2.Payment | None:
        payment = await world.get(payment_id)
        return payment if payment.waiting_reason == wanted else None

    return await until(probe, f"{payment_id} waiting: {reason}")


async def transferred_to(world: World, payment: payments_pb2.Payment) -> list[str]:
    listed = await world.stripe.api("GET", "/transfers", limit=100)
    return [
        transfer["destination"]
        for transfer in listed["data"]
        if transfer["metadata"].get("payment_id") == payment.payment_id
    ]
