"""Experts in another region than the platform's: paid by transfers, or refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from marketplace.payments.v1 import payments_pb2
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.steps.experts import transferred_to
from tests.support.steps.payments import PLATFORM
from tests.support.world import CAPTURED, World

SEPARATE = payments_pb2.CHARGE_MODEL_SEPARATE
CARD_HOLD = payments_pb2.ESCROW_MODE_CARD_HOLD


@pytest.mark.parametrize("fields", [{}, {"escrow_mode": PLATFORM}], ids=["card", "platform"])
async def test_an_expert_in_another_region_is_paid(world: World, fields: dict[str, Any]) -> None:
    expert = await world.expert(country="GB")
    initiated = await world.initiate(expert, **fields)
    payment = initiated.payment
    assert payment.charge_model == SEPARATE
    assert payment.escrow_mode == (PLATFORM if fields else CARD_HOLD)
    intent = await world.stripe.api("GET", f"/payment_intents/{payment.payment_intent_id}")
    assert intent["transfer_data"] is None
    await world.confirm(initiated)
    await world.in_state(payment.payment_id, payments_pb2.PAYMENT_STATE_IN_ESCROW)
    paid = await world.capture(payment.payment_id)
    assert paid.state == CAPTURED
    assert await transferred_to(world, paid) == [world.account_of(expert)]
    await check_books(world)


async def test_a_currency_that_the_platform_does_not_settle_is_refused(world: World) -> None:
    expert = await world.expert(country="DE")
    refused = await refusal(world.initiate(expert, 10_000, "INR"))
    assert refused.reason == "CURRENCY_NOT_SETTLED"
