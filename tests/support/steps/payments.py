"""Steps with payments and what the books say of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from marketplace.payments.v1 import events_pb2, payments_pb2
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.world import CAPTURING, Payment, World

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD
CARD = payments_pb2.ESCROW_MODE_CARD_HOLD
PROMOTE = payments_pb2.ON_DEADLINE_PROMOTE


async def reasons(world: World, payment_id: str) -> list[str]:
    """Why the events say that it waited for the expert."""
    return [
        str(reason)
        for (reason,) in world.sql(
            "SELECT body::jsonb->'facts'->>'waiting_reason' FROM events WHERE payment_id = %s "
            "AND body::jsonb->'facts' ? 'waiting_reason' ORDER BY sequence",
            payment_id,
        )
    ]


def in_days(days: float) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC) + timedelta(days=days))
    return moment


async def event_kinds(world: World, payment_id: str) -> list[str]:
    request = events_pb2.ListPaymentEventsRequest(payment_id=payment_id, page_size=200)
    answer = await world.events.ListPaymentEvents(request)
    return [event.kind.removeprefix("payment.") for event in answer.events]


async def amounts_at_stripe(world: World, kind: str, payment: Payment) -> list[int]:
    """Returns the amounts of what really happened at Stripe."""
    return [
        int(one["amount"]) for one in await world.stripe.effects(kind, payment.payment_intent_id)
    ]


async def answer(world: World, method: str, request: Any) -> str:
    """Returns the caller's final answer, which a second call with the same key must repeat."""
    first = await world.until_answered(method, request)
    assert await world.bytes_of(method, request) == first
    if first.code == "OK":
        return "OK"
    return (await refusal(getattr(world.payments, method)(request))).reason


def owed(world: World, payment_id: str) -> int:
    return -balance(world, f"client_payable:{payment_id}")


async def waiting_capture(
    world: World, refunded: int, part: int, **fields: Any
) -> tuple[Payment, str]:
    """Refunds some of 10,000 held; a capture then waits for the expert's account."""
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    await world.refund(held.payment_id, refunded)
    account = world.account_of(expert)
    await world.stripe.control(
        "POST", f"/accounts/{account}/restrict", {"capabilities": {"transfers": "inactive"}}
    )
    payment = await world.capture(held.payment_id, part, **fields)
    assert (payment.state, payment.waiting_for) == (CAPTURING, payments_pb2.WAITING_FOR_EXPERT)
    return payment, account


def balances_of(world: World, payment: Payment) -> tuple[int, int]:
    """Returns the expert's debt and the platform's losses."""
    return balance(world, f"expert_debt:{payment.expert_id}"), balance(world, "losses")


async def kept_back(world: World, payment: Payment, amount: int) -> int:
    """Returns the debt offset of another gig's capture."""
    other = await world.captured(payment.expert_id, amount, escrow_mode=PLATFORM)
    await check_books(world)
    sent = await world.stripe.effects("transferred", other.payment_intent_id)
    return other.net_expert_amount.minor_units - sum(int(one["amount"]) for one in sent)
