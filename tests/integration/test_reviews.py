"""Radar's manual review freezes a payment, and nothing frozen is charged by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from marketplace.payments.v1 import payments_pb2
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.requests import capture_request
from tests.support.steps.disputes import frozen
from tests.support.steps.payments import CARD, PLATFORM, PROMOTE, event_kinds
from tests.support.world import CAPTURED, IN_ESCROW, REFUNDED, Payment, World, until

CAPTURE = payments_pb2.ON_DEADLINE_CAPTURE


async def _frozen_by(world: World, payment: Payment, path: str, freeze: str) -> str:
    """Does this to the charge at Stripe, and waits for the freeze; returns the object's id."""
    made = await world.stripe.control("POST", f"/charges/{payment.charge_id}/{path}")

    async def is_frozen() -> bool:
        return await frozen(world, payment.payment_id) == freeze

    await until(is_frozen, f"the freeze {freeze}")
    return str(made["id"])


@pytest.mark.parametrize("mode", [CARD, PLATFORM])
async def test_a_charge_in_review_is_captured_once_it_is_approved(world: World, mode: int) -> None:
    held = await world.escrowed(escrow_mode=mode)
    review_id = await _frozen_by(world, held, "review", "REVIEW")
    shown = await world.get(held.payment_id)
    assert shown.frozen_by == review_id
    request = capture_request(held.payment_id)
    refused = await refusal(world.payments.CapturePayment(request))
    assert (refused.reason, refused.facts["stage"]) == ("PAYMENT_DISPUTED", "REVIEW")
    assert refused.facts["dispute_id"] == review_id
    await world.stripe.control("POST", f"/reviews/{review_id}/approve")

    async def is_released() -> bool:
        return await frozen(world, held.payment_id) == "NONE"

    await until(is_released, "the end of the review")
    assert (await world.payments.CapturePayment(request)).payment.state == CAPTURED
    kinds = await event_kinds(world, held.payment_id)
    assert [kind for kind in kinds if "review" in kind] == ["review_opened", "review_closed"]
    await check_books(world)


async def test_a_refund_ends_the_review(world: World) -> None:
    held = await world.escrowed(escrow_mode=PLATFORM)
    await _frozen_by(world, held, "review", "REVIEW")
    assert (await world.refund(held.payment_id)).state == REFUNDED
    await world.settle_down()
    assert await frozen(world, held.payment_id) == "NONE"
    await check_books(world)


@pytest.mark.parametrize("path", ["review", "early_fraud_warning"])
@pytest.mark.parametrize("on_deadline", [PROMOTE, CAPTURE])
async def test_a_frozen_hold_is_never_charged_by_itself(
    world: World, as_superuser: Callable[..., int], path: str, on_deadline: int
) -> None:
    held = await world.escrowed(escrow_mode=CARD, on_deadline=on_deadline)
    await _frozen_by(world, held, path, "REVIEW" if path == "review" else "FRAUD_WARNING")
    await world.settle_down()
    as_superuser(
        world,
        "UPDATE payments SET escrow_expire_time = now() + interval '11 hours' "
        "WHERE payment_id = %s",
        held.payment_id,
    )

    async def is_reported() -> bool:
        return "deadline_passed" in await event_kinds(world, held.payment_id)

    await until(is_reported, "the refused action", 30)
    after = await world.get(held.payment_id)
    assert (after.state, after.escrow_mode) == (IN_ESCROW, CARD)
    assert not await world.stripe.effects("captured")
    [(reason,)] = world.sql(
        "SELECT body::jsonb -> 'facts' ->> 'refused' FROM events "
        "WHERE kind = 'payment.deadline_passed'"
    )
    assert reason == "PAYMENT_DISPUTED"
    await check_books(world)
