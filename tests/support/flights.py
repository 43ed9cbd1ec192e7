"""One operation of each kind, to be met by a fault at once, and what must come of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.requests import capture_request, new_name, refund_request
from tests.support.world import CANCELED, CAPTURED, PENDING, REFUNDED, World


@dataclass(frozen=True)
class Flight:
    """One call whose operation will meet a fault, and what it must come to."""

    method: str
    request: Any
    path: str
    match: Mapping[str, Any]
    state: int
    #: What must have happened at Stripe in the end, in all.
    effects: Mapping[str, int]


async def flights(world: World) -> list[Flight]:
    """One for each kind of operation on a payment."""
    expert = await world.expert()
    held, to_give_up, first_leg, second_leg = await asyncio.gather(
        world.escrowed(expert, 3_000),
        world.escrowed(expert, 4_000),
        world.captured(expert, 5_000),
        world.captured(expert, 6_000),
    )
    authorized = {"intent_created": 1, "authorized": 1}
    paid = {**authorized, "captured": 1, "transferred": 1, "refunded": 1, "reversed": 1}
    new = world.initiation(expert, 2_000, description=new_name("an unknown"))
    parameters = {"parameters": {"description": f"^{new.description}$"}}
    transfers = dict(world.sql("SELECT payment_id, transfer_id FROM payments"))
    return [
        Flight(
            "InitiatePayment", new, "/payment_intents$", parameters, PENDING, {"intent_created": 1}
        ),
        Flight(
            "CapturePayment",
            capture_request(held.payment_id),
            f"/{held.payment_intent_id}/capture$",
            {},
            CAPTURED,
            {**authorized, "captured": 1, "transferred": 1},
        ),
        Flight(
            "RefundPayment",
            refund_request(to_give_up.payment_id),
            f"/{to_give_up.payment_intent_id}/cancel$",
            {},
            CANCELED,
            {**authorized, "canceled": 1},
        ),
        Flight(
            "RefundPayment",
            refund_request(first_leg.payment_id),
            "/refunds$",
            {"parameters": {"payment_intent": f"^{first_leg.payment_intent_id}$"}},
            REFUNDED,
            paid,
        ),
        Flight(
            "RefundPayment",
            refund_request(second_leg.payment_id, 2_000),
            f"/{transfers[second_leg.payment_id]}/reversals$",
            {},
            CAPTURED,
            paid,
        ),
    ]


async def effects_of(world: World, intent: str) -> Counter[str]:
    """By the intent, or by the payment's id in the metadata where there is no intent yet."""
    found = [
        effect
        for effect in await world.stripe.effects()
        if intent in (effect["payment_intent"], effect["object"])
    ]
    return Counter(effect["kind"] for effect in found)
