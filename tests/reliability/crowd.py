"""Many payments and many callers at once, in bounded numbers."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from marketplace.payments.v1 import payments_pb2
from payment_service.application.side_by_side import at_most
from tests.reliability.crash import ASK_AGAIN
from tests.support.errors import Reply
from tests.support.world import IN_ESCROW, Payment, World, until

S = TypeVar("S")
T = TypeVar("T")

_PATIENCE = 60.0


async def finally_told(world: World, method: str, request: Message) -> Reply:
    """Repeats the call with the same key while the answer asks for it; returns the last."""

    async def ask() -> Reply | None:
        reply = await world.raw(method, request.SerializeToString(), 30)
        return None if reply.code in ASK_AGAIN else reply

    return await until(ask, f"a final answer to {method}", _PATIENCE)


async def in_escrow(
    worlds: Sequence[World],
    expert: str,
    count: int,
    *,
    amount: int = 10_000,
    card: str = "pm_card_visa",
    **fields: Any,
) -> list[Payment]:
    """So many payments of 100.00 dollars (or of another amount) whose money is held."""
    turn = itertools.cycle(worlds)

    async def one(_: int) -> str:
        world = next(turn)
        request = world.initiation(expert, amount, **fields)
        reply = await finally_told(world, "PaymentService/InitiatePayment", request)
        initiated = payments_pb2.InitiatePaymentResponse.FromString(reply.body)
        shown = await world.confirm(initiated, card)
        assert shown.get("status") in ("requires_capture", "succeeded"), shown
        return initiated.payment.payment_id

    ids = await at_most(8, one, range(count))

    async def all_held() -> bool:
        [(left,)] = worlds[0].sql(
            "SELECT count(*) FROM payments WHERE payment_id = ANY(%s) AND state <> 'IN_ESCROW'", ids
        )
        return not left

    await until(all_held, "all payments in escrow", _PATIENCE)
    payments = await at_most(8, worlds[0].get, ids)
    assert all(payment.state == IN_ESCROW for payment in payments)
    return payments


async def calm(world: World) -> None:
    """Wait until the webhooks of a whole crowd were delivered; their order is of no matter."""
    await world.stripe.control("POST", "/webhooks", {"concurrency": 8})

    async def settled() -> bool:
        answer = await world.stripe.control("POST", "/webhooks/settle", {"seconds": 5})
        [(waiting,)] = world.sql("SELECT count(*) FROM webhook_events WHERE state = 'WAITING'")
        return bool(answer["settled"] and not waiting)

    await until(settled, "the end of all webhooks", 5 * _PATIENCE)
    await world.stripe.control("POST", "/webhooks", {"concurrency": 1})


async def last_effect(world: World) -> int:
    return int((await world.stripe.control("GET", f"/effects?since={10**9}"))["last"])


async def effects_by_intent(world: World, since: int) -> dict[str, Counter[str]]:
    """What happened at Stripe since then, counted by intent and kind."""
    found: dict[str, Counter[str]] = {}
    for one in (await world.stripe.control("GET", f"/effects?since={since}"))["effects"]:
        found.setdefault(str(one["payment_intent"]), Counter())[str(one["kind"])] += 1
    return found
