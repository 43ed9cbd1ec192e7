"""DismissFraudWarning: one warning is let pass, for good, and nothing else is."""

from __future__ import annotations

import asyncio

import pytest

from marketplace.payments.v1 import operations_pb2, payments_pb2
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.requests import capture_request, new_key
from tests.support.steps.disputes import WON, contest, decide, dispute_where, frozen, settled
from tests.support.steps.payments import event_kinds
from tests.support.world import CANCELED, CAPTURED, IN_ESCROW, Payment, World, until

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD
Request = operations_pb2.DismissFraudWarningRequest


async def warn(world: World, payment: Payment, freeze: str = "FRAUD_WARNING") -> str:
    """The issuer warns of fraud; wait until it is seen. The warning's id."""
    shown = await world.stripe.control("POST", f"/charges/{payment.charge_id}/early_fraud_warning")

    async def seen() -> bool:
        return bool(
            world.sql("SELECT 1 FROM movements WHERE movement_id = %s", shown["id"])
        ) and freeze == await frozen(world, payment.payment_id)

    await until(seen, "the fraud warning")
    return str(shown["id"])


async def warned(world: World) -> tuple[Payment, str]:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    return held, await warn(world, held)


def request(payment: Payment, warning_id: str = "") -> Request:
    return Request(
        payment_id=payment.payment_id,
        warning_id=warning_id,
        reason="the client called",
        idempotency_key=new_key(),
    )


async def test_a_dismissed_payment_is_captured_and_names_the_operator_and_the_reason(
    world: World,
) -> None:
    held, warning_id = await warned(world)
    refused = await refusal(world.payments.CapturePayment(capture_request(held.payment_id)))
    assert (refused.reason, refused.facts["dispute_id"]) == ("PAYMENT_DISPUTED", warning_id)
    asked = request(held, warning_id)
    sent = asked.SerializeToString()
    method = "OperationsService/DismissFraudWarning"
    first = await world.raw(method, sent)
    assert first.code == "OK"
    answer = operations_pb2.DismissFraudWarningResponse.FromString(first.body)
    assert answer.payment.freeze == payments_pb2.PAYMENT_FREEZE_NONE
    assert (await world.capture(held.payment_id)).state == CAPTURED
    # The same key gives the same bytes, whatever has happened since.
    assert (await world.raw(method, sent)).body == first.body
    [(body,)] = world.sql(
        "SELECT body::jsonb FROM events WHERE kind = 'payment.fraud_warning_dismissed'"
    )
    assert body["facts"]["warning_id"] == warning_id
    assert ("the client called",) in world.sql("SELECT text FROM texts WHERE name = 'reason'")
    assert body["by"]["caller"] == "local"
    assert body["by"]["rpc"] == "DismissFraudWarning"
    await check_books(world)
    report = await world.operations.RunReconciliation(
        operations_pb2.RunReconciliationRequest(payment_id=held.payment_id)
    )
    assert not [found for found in report.invariants if found.violations]
    assert not report.discrepancies


async def test_a_dismissed_warning_freezes_nothing_again_and_a_new_one_does(
    world: World,
) -> None:
    held, first = await warned(world)
    await world.operations.DismissFraudWarning(request(held))
    before = (await world.get(held.payment_id)).version
    for event in (await world.stripe.api("GET", "/events", limit=100))["data"]:
        if event["type"].startswith("radar."):
            await world.stripe.control("POST", f"/events/{event['id']}/redeliver")
    await check_books(world)
    assert (await world.get(held.payment_id)).version == before
    assert await frozen(world, held.payment_id) == "NONE"
    second = await warn(world, held)
    assert second != first
    refused = await refusal(world.operations.DismissFraudWarning(request(held, first)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "FRAUD_WARNING_NOT_ACTIVE")
    assert refused.facts["warning_id"] == second
    await world.operations.DismissFraudWarning(request(held, second))
    assert (await world.capture(held.payment_id)).state == CAPTURED
    await check_books(world)


async def test_a_payment_that_is_not_frozen_is_not_dismissed(world: World) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    refused = await refusal(world.operations.DismissFraudWarning(request(held)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "FRAUD_WARNING_NOT_ACTIVE")
    assert refused.facts["stage"] == "NONE"
    unknown = Request(payment_id="pay_none", reason="why", idempotency_key=new_key())
    refused = await refusal(world.operations.DismissFraudWarning(unknown))
    assert (refused.code, refused.reason) == ("NOT_FOUND", "PAYMENT_NOT_FOUND")
    refused = await refusal(world.operations.DismissFraudWarning(Request()))
    assert set(refused.fields) == {"payment_id", "reason", "idempotency_key"}


async def test_a_canceled_hold_is_not_frozen_and_not_dismissed(world: World) -> None:
    """The card was never charged: nothing is left to be warned of, and nothing to let pass."""
    held = await world.escrowed(amount=10_000)
    await warn(world, held)
    assert (await world.refund(held.payment_id)).state == CANCELED
    assert await frozen(world, held.payment_id) == "NONE"
    refused = await refusal(world.operations.DismissFraudWarning(request(held)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "FRAUD_WARNING_NOT_ACTIVE")
    await check_books(world)


@pytest.mark.parametrize("inquiry", [True, False], ids=["inquiry", "chargeback"])
async def test_a_dispute_is_never_dismissed_and_freezes_a_dismissed_payment(
    world: World, inquiry: bool
) -> None:
    held, _ = await warned(world)
    await world.operations.DismissFraudWarning(request(held))
    dispute_id = await contest(world, held, inquiry=inquiry)
    await dispute_where(world, dispute_id)
    refused = await refusal(world.operations.DismissFraudWarning(request(held)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PAYMENT_DISPUTED")
    assert refused.facts["stage"] == ("INQUIRY" if inquiry else "CHARGEBACK")
    assert refused.facts["dispute_id"] == dispute_id
    if not inquiry:  # Won, and the warning stays released.
        await decide(world, dispute_id, "win")
        await settled(world, held.payment_id, dispute_id, WON)
        assert (await world.capture(held.payment_id)).state == CAPTURED


async def test_a_dispute_that_opens_during_a_dismissal_freezes_the_payment(
    world: World,
) -> None:
    for _ in range(3):
        held, _ = await warned(world)
        answers = await asyncio.gather(
            contest(world, held),
            world.operations.DismissFraudWarning(request(held)),
            world.operations.DismissFraudWarning(request(held)),
            return_exceptions=True,
        )
        await dispute_where(world, str(answers[0]))
        assert await frozen(world, held.payment_id) == "CHARGEBACK"
        released = [
            kind for kind in await event_kinds(world, held.payment_id) if "released" in kind
        ]
        # Two callers with two keys: at most one dismisses it, and the other is refused.
        assert len(released) == sum(not isinstance(one, BaseException) for one in answers[1:])
        assert len(released) <= 1
        assert (await world.get(held.payment_id)).state == IN_ESCROW
        await check_books(world)
