"""Ten faults of a public service with the same list of features; each must be impossible here."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from marketplace.payments.v1 import experts_pb2
from payment_service.config import Settings
from payment_service.domain.webhook_event import ACCOUNT_EVENTS, PAYMENT_EVENTS
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.requests import new_key, refund_request
from tests.support.service import PLATFORM_SECRET
from tests.support.stripe import ingestion, new_event, signed
from tests.support.world import CANCELED, CAPTURED, EXPIRED, IN_ESCROW, World, until


async def test_1_an_authorization_is_no_capture_whatever_the_events_name(
    world: World,
) -> None:
    initiated = await world.initiate(await world.expert())
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await world.confirm(initiated)
    intent = initiated.payment.payment_intent_id
    shown = await world.stripe.api("GET", f"/payment_intents/{intent}")
    # Even an event that says "succeeded" is believed only as far as the object goes.
    for kind in ("payment_intent.succeeded", "charge.captured", "charge.succeeded"):
        await world.webhooks.IngestEvent(ingestion(new_event(kind, shown)))
    payment = await world.in_state(initiated.payment.payment_id, IN_ESCROW)
    await world.settle_down()
    assert await world.get(payment.payment_id) == payment
    assert payment.captured_amount.minor_units == 0


async def test_2_every_accepted_type_of_event_has_a_handler(
    world: World,
) -> None:
    expert = await world.expert()
    payment = await world.captured(expert)
    await world.settle_down()
    intent = await world.stripe.api("GET", f"/payment_intents/{payment.payment_intent_id}")
    account = await world.stripe.api("GET", f"/accounts/{world.account_of(expert)}")
    events = [
        *(new_event(kind, intent) for kind in sorted(PAYMENT_EVENTS)),
        *(new_event(kind, account) for kind in sorted(ACCOUNT_EVENTS)),
    ]
    for event in events:
        await world.webhooks.IngestEvent(ingestion(event))
    await world.settle_down()
    for event in events:
        [(state, attempts)] = world.sql(
            "SELECT state, attempts FROM webhook_events WHERE event_id = %s", event["id"]
        )
        assert (state, attempts) == ("APPLIED", 1), event["type"]
    await check_books(world)


@pytest.mark.parametrize(
    ("currency", "amount", "fee"),
    [("USD", 1_999, 200), ("JPY", 1_999, 200), ("KWD", 19_990, 2_000), ("ISK", 50_500, 5_100)],
)
async def test_3_amounts_are_the_currencys_own_integers(
    world: World, currency: str, amount: int, fee: int
) -> None:
    payment = (await world.initiate(await world.expert(), amount, currency)).payment
    shown = await world.stripe.api("GET", f"/payment_intents/{payment.payment_intent_id}")
    assert (shown["amount"], shown["currency"]) == (amount, currency.lower())
    assert shown["application_fee_amount"] == fee == payment.commission.minor_units


async def test_4_every_mutation_has_a_key_of_its_own_and_callers_keys_are_scoped(
    world: World,
) -> None:
    payment = await world.captured(idempotency_key="the-key")
    await world.refund(payment.payment_id, 1_000, idempotency_key="the-key")
    await world.settle_down()
    sent = [
        one
        for one in await world.stripe.requests()
        if not one["path"].endswith(("/confirm", "/account_links", "/login_links"))
    ]
    keys = [one["idempotency_key"] for one in sent]
    assert len(keys) == 5  # An account, an intent, a capture, a refund, a reversal.
    assert all(key.startswith("op_") for key in keys)
    assert len(set(keys)) == 5
    other = refund_request(payment.payment_id, 2_000, idempotency_key="the-key")
    assert (await refusal(world.payments.RefundPayment(other))).code == "ALREADY_EXISTS"


async def test_5_an_uncaptured_payment_is_cancelled_and_a_captured_one_refunded_by_exact_legs(
    world: World,
) -> None:
    held, paid = await asyncio.gather(world.escrowed(), world.captured())
    assert (await world.refund(held.payment_id)).state == CANCELED
    assert not await world.stripe.requests("/refunds")
    assert (await world.refund(paid.payment_id, 5_000)).state == CAPTURED
    [refund] = await world.stripe.requests("/refunds")
    assert refund["parameters"]["amount"] == "5000"
    assert not {"reverse_transfer", "refund_application_fee", "reason"} & set(refund["parameters"])
    [reversal] = await world.stripe.requests("/reversals")
    assert reversal["parameters"]["amount"] == "4500"
    assert "refund_application_fee" not in reversal["parameters"]
    await check_books(world)


async def test_6_a_partial_capture_takes_the_commission_of_its_amount(world: World) -> None:
    held = await world.escrowed(amount=10_000)
    payment = await world.capture(held.payment_id, 3_335, final=True)
    [sent] = await world.stripe.requests("/capture")
    assert sent["parameters"]["application_fee_amount"] == "334"
    assert payment.net_commission.minor_units == 334
    fee = (await world.stripe.api("GET", f"/charges/{payment.charge_id}"))["application_fee"]
    assert (await world.stripe.api("GET", f"/application_fees/{fee}"))["amount"] == 334
    await check_books(world)


async def test_7_no_transaction_is_open_while_stripe_is_called(world: World) -> None:
    held = await world.escrowed()
    await world.settle_down()
    await world.stripe.fault("/capture$", "delay", delay_ms=1_500)
    call = asyncio.create_task(world.capture(held.payment_id))
    await until(world.stripe.fired, "the capture at Stripe")
    # The intent is on record before Stripe acts, and the row stays unlocked meanwhile.
    [(kind, state)] = world.sql(
        "SELECT kind, state FROM operations WHERE state NOT IN ('SUCCEEDED', 'REFUSED')"
    )
    assert (kind, state) == ("capture", "STARTED")
    with world.session() as cursor:
        cursor.execute("SELECT state FROM payments FOR UPDATE NOWAIT")
        assert cursor.fetchall() == [("CAPTURING",)]
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'payment_service' AND state = 'idle in transaction' "
            "AND state_change < now() - interval '200 milliseconds'"
        )
        assert cursor.fetchone() == (0,)
    assert (await call).state == CAPTURED
    await check_books(world)


async def test_8_a_webhook_is_acknowledged_only_when_it_is_stored(world: World) -> None:
    held = await world.escrowed()
    await world.settle_down()
    assert world.service is not None
    event = new_event("payout.paid", {"object": "payout", "id": "po_1"})
    request = ingestion(event)

    async def deliver(path: str) -> int:
        async with (
            aiohttp.ClientSession() as stripe,
            stripe.post(
                f"{world.gateway_url}/api/v1/webhooks/{path}",
                data=request.payload,
                headers={"Stripe-Signature": signed(request.payload, PLATFORM_SECRET)},
            ) as answer,
        ):
            return answer.status

    await world.service.stop()
    assert await deliver("stripe") == 503
    # What Stripe tells meanwhile comes again until it is taken.
    await world.stripe.api("POST", f"/payment_intents/{held.payment_intent_id}/cancel")
    await asyncio.sleep(0.1)
    await world.service.start()
    await world.channel.channel_ready()
    await world.in_state(held.payment_id, CANCELED)
    assert await deliver("stripe") == 200
    assert world.sql("SELECT state FROM webhook_events WHERE event_id = %s", event["id"])
    # Each endpoint has a secret of its own.
    assert await deliver("stripe/connect") == 400


def test_9_nothing_stands_in_silently_for_stripe() -> None:
    without = "import sys; sys.modules['stripe'] = None; import payment_service.bootstrap"
    done = subprocess.run(
        [sys.executable, "-c", without], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "stripe" in done.stderr
    contradictions: list[dict[str, Any]] = [
        {"environment": "production"},
        {"environment": "production", "stripe_secret_key": "sk_test_simulator"},
        {
            "environment": "production",
            "stripe_secret_key": "sk_live_" + new_key(),
            "stripe_api_base": "http://127.0.0.1:12111",
        },
        {"stripe_secret_key": "sk_live_" + new_key()},
        {"stripe_secret_key": "a-typing-error"},
    ]
    for given in contradictions:
        with pytest.raises(ValidationError):
            Settings(**given)


async def test_10_expiry_and_requirements_are_known_and_no_card_is_kept_for_later(
    world: World,
) -> None:
    expert = await world.expert(ready=False)
    seen = (await world.experts.GetExpert(experts_pb2.GetExpertRequest(expert_id=expert))).expert
    assert seen.requirements_due
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding")
    held = await world.escrowed(expert)
    assert held.escrow_expire_time.seconds
    [created] = [
        one for one in await world.stripe.requests("/payment_intents") if one["status"] == 200
    ]
    sent = created["parameters"]
    assert not [name for name in sent if "setup_future_usage" in name or name == "customer"]
    assert sent["capture_method"] == "manual"
    assert sent["transfer_data[destination]"] == account
    assert sent["metadata[payment_id]"] == held.payment_id
    dispute = new_event("charge.dispute.created", {"object": "dispute", "id": "dp_1"})
    assert (await world.webhooks.IngestEvent(ingestion(dispute))).event_id == dispute["id"]
    await world.stripe.advance(8 * 24 * 3600)
    assert (await world.in_state(held.payment_id, EXPIRED)).held_amount.minor_units == 0
    await check_books(world)
