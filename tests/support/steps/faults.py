"""Requests that fail at Stripe, or whose answers are lost."""

from __future__ import annotations

from tests.support.errors import refusal
from tests.support.requests import capture_request
from tests.support.steps.operators import parked
from tests.support.steps.payments import PLATFORM
from tests.support.world import Payment, World

#: Operations are parked soon, for any cause.
HASTY = {"tries_before_parking": 1, "patience": 2}


async def fail_stripe(world: World, path: str, status: int) -> None:
    """Fails the service's own requests, not those of the dashboard. A 401 comes once."""
    await world.stripe.fault(
        path,
        "status",
        times=1 if status == 401 else None,
        status=status,
        match={"idempotency_key": "^op_"},
    )


async def lost_answer(world: World) -> tuple[Payment, str]:
    """Parks a transfer of 4,000 out of 10,000 without an answer; returns it and its operation."""
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.stripe.fault("/transfers$", "status", times=None, status=503)
    request = capture_request(held.payment_id, 4_000)
    assert (await refusal(world.payments.CapturePayment(request))).code == "UNAVAILABLE"
    operation_id = await parked(world, held.payment_id)
    await world.stripe.clear_faults()
    return await world.get(held.payment_id), operation_id
