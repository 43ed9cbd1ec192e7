"""A webhook is a hint, not a command: any order and any number of them end in the same payment."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest

from marketplace.payments.v1 import operations_pb2, payments_pb2, webhooks_pb2
from payment_service.adapters.postgres.statements import TransactionStatements
from payment_service.application.app import App
from payment_service.application.jobs.apply_webhooks import apply_waiting, postpone_events
from payment_service.application.sync.payment import sync_payment
from payment_service.domain import transitions
from payment_service.domain.payment import WaitingFor
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause
from payment_service.domain.ports.stripe import StripePort
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.kinds import kind_of
from tests.support.requests import capture_request
from tests.support.running import replica
from tests.support.service import CONNECT_SECRET, PLATFORM_SECRET
from tests.support.steps.payments import PLATFORM
from tests.support.stripe import ingestion, new_event, signed
from tests.support.world import (
    CANCELED,
    CAPTURED,
    CAPTURING,
    IN_ESCROW,
    REFUNDED,
    Payment,
    World,
    until,
)

_IGNORED = operations_pb2.WEBHOOK_EVENT_STATE_IGNORED
_PARKED = operations_pb2.WEBHOOK_EVENT_STATE_PARKED


def _row(world: World, event_id: str) -> tuple[str, str, int]:
    [(state, verdict, attempts)] = world.sql(
        "SELECT state, verdict, attempts FROM webhook_events WHERE event_id = %s", event_id
    )
    return state, verdict, attempts


async def _kinds(world: World, payment_id: str) -> list[str]:
    rows = world.sql("SELECT kind FROM events WHERE payment_id = %s ORDER BY sequence", payment_id)
    return [kind for (kind,) in rows]


async def _intent(world: World, intent: str) -> Any:
    return await world.stripe.api("GET", f"/payment_intents/{intent}")


# ---- many, in any order ----


async def test_one_event_delivered_eight_times_to_two_replicas_is_one_transition(
    world: World,
) -> None:
    initiated = await world.initiate(await world.expert())
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await world.confirm(initiated)
    shown = await _intent(world, initiated.payment.payment_intent_id)
    request = ingestion(new_event("payment_intent.amount_capturable_updated", shown))
    async with replica(world) as other:
        answers = await asyncio.gather(
            *(one.webhooks.IngestEvent(request) for one in (world, other) * 4)
        )
        assert sorted(answer.duplicate for answer in answers) == [False] + [True] * 7
        await world.in_state(initiated.payment.payment_id, IN_ESCROW)
        await world.settle_down()
    kinds = await _kinds(world, initiated.payment.payment_id)
    assert kinds.count("payment.authorized") == 1
    assert _row(world, answers[0].event_id) == ("APPLIED", "applied", 1)


async def test_any_order_and_any_repetition_end_in_the_same_payment(world: World) -> None:
    """A whole lifecycle at Stripe's dashboard, delivered in three orders, without any RPC."""
    chance = random.Random(7)
    expert = await world.expert(commission_basis_points=1_000)
    begun = [await world.initiate(expert, 8_000) for _ in range(3)]
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    for one in begun:
        await world.confirm(one)
        intent = one.payment.payment_intent_id
        await world.stripe.api("POST", f"/payment_intents/{intent}/capture")
        await world.stripe.api("POST", "/refunds", payment_intent=intent, amount=3_000)
    events = (await world.stripe.api("GET", "/events", limit=100))["data"]
    ends = []
    for number, one in enumerate(begun):
        intent = one.payment.payment_intent_id
        received = [event for event in events if intent in json.dumps(event)] * 2
        received = received[::-1] if number == 0 else chance.sample(received, len(received))
        for event in received:
            await world.webhooks.IngestEvent(ingestion(event))
            if number == 1:  # Applied one by one, or as they come.
                await world.settle_down()
        await world.settle_down()
        payment = await world.get(one.payment.payment_id)
        ends.append(
            (
                payment.state,
                payment.captured_amount.minor_units,
                payment.refunded_amount.minor_units,
                payment.net_commission.minor_units,
                sorted(kind_of(found) for found in await world.discrepancies(payment.payment_id)),
            )
        )
    assert (
        ends == [(CAPTURED, 8_000, 3_000, 500, ["captured_out_of_band", "out_of_band_refund"])] * 3
    )
    await check_books(world)


async def test_events_doubled_delayed_and_reordered_on_their_way(world: World) -> None:
    expert = await world.expert()
    for rule in (
        {"action": "duplicate", "probability": 0.5, "copies": 2},
        {"action": "reorder", "probability": 0.5, "window": 4, "flush_ms": 200},
        {"action": "delay", "probability": 0.3, "delay_ms": 300},
        {"action": "drop", "type": "charge\\.", "probability": 0.5},
        {"action": "forge", "probability": 0.3},
    ):
        await world.stripe.control("POST", "/webhooks/rules", rule)
    payments = await asyncio.gather(*(world.captured(expert) for _ in range(4)))
    for payment in payments:
        await world.refund(payment.payment_id, 1_000)
    await check_books(world)
    for payment in payments:
        after = await world.get(payment.payment_id)
        assert (after.state, after.refunded_amount.minor_units) == (CAPTURED, 1_000)
    assert not await world.discrepancies()


async def _lose_intent(world: World) -> tuple[payments_pb2.InitiatePaymentRequest, str, str]:
    """Stripe's answer to an initiation is lost. Returns (request, intent id, payment id)."""
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    expert = await world.expert()
    await world.stripe.fault("/payment_intents$", "reset", "after")
    request = world.initiation(expert)
    assert (await refusal(world.payments.InitiatePayment(request))).reason == "OUTCOME_UNKNOWN"
    [(intent, payment_id)] = [
        (effect["object"], effect["metadata"]["payment_id"])
        for effect in await world.stripe.effects("intent_created")
    ]
    assert (await world.get(payment_id)).payment_intent_id == ""
    return request, intent, payment_id


async def test_an_event_that_comes_before_we_know_the_intent(start_world: StartWorld) -> None:
    """The event brings what Stripe's answer would have brought."""
    world = await start_world(loops=False)
    request, intent, payment_id = await _lose_intent(world)
    event = new_event("payment_intent.payment_failed", await _intent(world, intent))
    await world.webhooks.IngestEvent(ingestion(event))
    assert world.service is not None
    await apply_waiting(world.service.app)
    assert (await world.get(payment_id)).payment_intent_id == intent
    answer = await world.payments.InitiatePayment(request)
    assert answer.payment.payment_intent_id == intent
    assert answer.client_secret
    assert len(await world.stripe.effects("intent_created")) == 1


class Overtaking:
    """Stripe. The payment changes while its intent is read for the first time."""

    def __init__(self, app: App, payment_id: str) -> None:
        self._app, self._payment_id = app, payment_id
        self.has_overtaken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app.stripe, name)

    async def observe(self, payment_intent_id: str) -> Any:
        found = await self._app.stripe.observe(payment_intent_id)
        if not self.has_overtaken:
            self.has_overtaken = True
            await self._app.database.transact(self._change)
        return found

    def _change(self, tx: Transaction) -> None:
        payment = tx.lock_payment(self._payment_id)
        assert payment is not None
        waiting = transitions.waiting_changed(payment, WaitingFor.OPERATOR, "", tx.now)
        tx.record(waiting, Cause("tests", "overtake"))


async def test_an_event_whose_look_at_a_new_intent_is_overtaken_is_not_over(
    start_world: StartWorld,
) -> None:
    """What Stripe showed is older than the books then, and nothing of it is applied."""
    world = await start_world(loops=False)
    _, intent, payment_id = await _lose_intent(world)
    event = new_event("payment_intent.payment_failed", await _intent(world, intent))
    await world.webhooks.IngestEvent(ingestion(event))
    assert world.service is not None
    app = world.service.app
    overtaking = Overtaking(app, payment_id)
    await apply_waiting(dataclasses.replace(app, stripe=cast("StripePort", overtaking)))
    assert overtaking.has_overtaken
    assert _row(world, event["id"])[0] == "WAITING"
    world.sql("UPDATE webhook_events SET next_try_time = now() WHERE state = 'WAITING' RETURNING 1")
    await apply_waiting(app)
    assert (await world.get(payment_id)).payment_intent_id == intent
    assert _row(world, event["id"])[:2] == ("APPLIED", "applied")


async def test_nobody_is_told_that_a_closed_event_is_parked(start_world: StartWorld) -> None:
    """It is closed with its snapshot. What follows from that may fail, and recovery repeats it."""
    world = await start_world(loops=False)
    _, intent, _ = await _lose_intent(world)
    event = new_event("payment_intent.payment_failed", await _intent(world, intent))
    await world.webhooks.IngestEvent(ingestion(event))
    assert world.service is not None
    app = world.service.app
    known = await app.database.read(lambda reader: reader.webhook_event(event["id"]))
    assert known is not None
    await apply_waiting(app)
    closed = _row(world, event["id"])
    assert await app.database.transact(postpone_events, app.policy, [known], "down", 0) == []
    assert _row(world, event["id"]) == closed


async def test_a_transfer_whose_answer_is_lost_is_settled_by_its_event(
    start_world: StartWorld,
) -> None:
    """One of ours, which no other event reports."""
    world = await start_world(loops=False)
    assert world.service is not None
    app, expert = world.service.app, await world.expert()
    initiated = await world.initiate(expert, escrow_mode=PLATFORM)
    await world.pause_webhooks()
    await world.confirm(initiated)
    payment_id = initiated.payment.payment_id
    await sync_payment(app, payment_id, Cause("tests", "look"))
    await world.stripe.fault("/transfers$", "reset", "after")
    request = capture_request(payment_id, 4_000)
    assert (await refusal(world.payments.CapturePayment(request))).reason == "OUTCOME_UNKNOWN"
    assert (await world.get(payment_id)).state == CAPTURING
    events = (await world.stripe.api("GET", "/events", limit=100))["data"]
    [event] = [event for event in events if event["type"] == "transfer.created"]
    await world.webhooks.IngestEvent(ingestion(event))
    await apply_waiting(app)
    assert _row(world, event["id"])[:2] == ("APPLIED", "applied")
    payment = await world.get(payment_id)
    assert (payment.state, payment.captured_amount.minor_units) == (IN_ESCROW, 4_000)
    assert (await world.payments.CapturePayment(request)).payment == payment
    assert len(await world.stripe.effects("transferred")) == 1
    world.service.start_loops()
    await check_books(world)
    assert not await world.discrepancies()


async def test_a_charge_that_succeeded_uncaptured_is_no_capture(world: World) -> None:
    initiated = await world.initiate(await world.expert())
    await world.settle_down()
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await world.confirm(initiated)
    events = (await world.stripe.api("GET", "/events", limit=100))["data"]
    [event] = [event for event in events if event["type"] == "charge.succeeded"]
    assert event["data"]["object"]["captured"] is False
    before = await world.get(initiated.payment.payment_id)
    await world.webhooks.IngestEvent(ingestion(event))
    await world.settle_down()
    assert _row(world, event["id"])[:2] == ("IGNORED", "not_acted_upon")
    assert await world.get(before.payment_id) == before
    [event] = [e for e in events if e["type"] == "payment_intent.amount_capturable_updated"]
    await world.webhooks.IngestEvent(ingestion(event))
    payment = await world.in_state(before.payment_id, IN_ESCROW)
    assert payment.captured_amount.minor_units == 0


# ---- what is not for us ----


async def test_other_types_and_strangers_objects_are_kept_and_change_nothing(
    world: World,
) -> None:
    payment = await world.captured()
    await world.settle_down()
    before = await world.get(payment.payment_id)
    events = [
        new_event("charge.dispute.created", {"object": "dispute", "id": "dp_1"}),
        new_event("payout.paid", {"object": "payout", "id": "po_1"}),
        new_event("a.type.of.tomorrow", {"object": "thing", "id": "th_1"}),
        new_event("charge.updated", {"object": "charge", "id": "ch_ofsomebodyelse"}),
        new_event("payment_intent.succeeded", {"object": "payment_intent", "id": "pi_else"}),
        new_event("account.updated", {"object": "account", "id": "acct_else"}),
    ]
    for event in events:
        await world.webhooks.IngestEvent(ingestion(event))
    await world.settle_down()
    verdicts = {event["type"]: _row(world, event["id"])[:2] for event in events}
    assert set(verdicts.values()) <= {
        ("IGNORED", "not_acted_upon"),
        ("IGNORED", "unknown_object"),
    }
    assert verdicts["a.type.of.tomorrow"] == ("IGNORED", "not_acted_upon")
    assert verdicts["charge.updated"] == ("IGNORED", "unknown_object")
    listed = await world.operations.ListWebhookEvents(
        operations_pb2.ListWebhookEventsRequest(state=_IGNORED, page_size=200)
    )
    assert {event["id"] for event in events} <= {event.event_id for event in listed.events}
    assert await world.get(payment.payment_id) == before


# ---- by a hand at Stripe's dashboard ----


async def _followed(world: World, payment_id: str, kind: str) -> str:
    """Wait for a discrepancy of this kind; its detail."""

    async def probe() -> str | None:
        found = await world.discrepancies(payment_id)
        return next((one.detail for one in found if kind_of(one) == kind), None)

    return await until(probe, f"{kind} of {payment_id}")


async def test_a_hold_cancelled_at_the_dashboard(world: World) -> None:
    held = await world.escrowed()
    await world.stripe.api("POST", f"/payment_intents/{held.payment_intent_id}/cancel")
    payment = await world.in_state(held.payment_id, CANCELED)
    assert payment.held_amount.minor_units == 0
    await check_books(world)


async def test_a_hold_captured_at_the_dashboard_is_posted_as_stripe_did_it(world: World) -> None:
    expert = await world.expert()
    whole, part = await asyncio.gather(world.escrowed(expert), world.escrowed(expert))
    await world.stripe.api("POST", f"/payment_intents/{whole.payment_intent_id}/capture")
    await world.stripe.api(
        "POST", f"/payment_intents/{part.payment_intent_id}/capture", amount_to_capture=4_000
    )
    assert (await world.in_state(whole.payment_id, CAPTURED)).net_commission.minor_units == 1_000
    payment = await world.in_state(part.payment_id, CAPTURED)
    # The fee was not recomputed for the captured amount: Stripe collected the whole fee.
    assert payment.captured_amount.minor_units == 4_000
    assert payment.net_commission.minor_units == 1_000
    kinds = {kind_of(found) for found in await world.discrepancies(part.payment_id)}
    assert kinds == {"captured_out_of_band", "commission_mismatch"}
    kinds = {kind_of(found) for found in await world.discrepancies(whole.payment_id)}
    assert kinds == {"captured_out_of_band"}
    # It can still be refunded completely, and no side returns more than it received.
    assert (await world.refund(part.payment_id)).state == REFUNDED
    await check_books(world)


async def _transfer_out_of_band(world: World, held: Payment, **fields: Any) -> Any:
    """Of 15 dollars, drawn on the charge."""
    return await world.stripe.api(
        "POST",
        "/transfers",
        amount=1_500,
        currency="usd",
        destination=world.account_of(held.expert_id),
        source_transaction=held.charge_id,
        **fields,
    )


async def test_a_transfer_made_at_the_dashboard_is_noticed_by_its_webhook_alone(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy={"poll_seconds": 3600.0, "quiet_seconds": 3600.0})
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.settle_down()
    made = await _transfer_out_of_band(world, held)
    detail = await _followed(world, held.payment_id, "out_of_band_transfer")
    assert detail == f"{made['id']} of 1500"
    await world.settle_down()  # The verdict is written after the sync.
    received = world.sql(
        "SELECT type, payment_ref, verdict FROM webhook_events WHERE object_id = %s", made["id"]
    )
    assert received == [("transfer.created", held.payment_id, "applied")]
    assert balance(world, "losses") == 1_500
    await check_books(world)


async def test_a_transfer_under_another_label_is_found_by_reconciliation_as_its_charges(
    world: World,
) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    made = await _transfer_out_of_band(world, held, transfer_group="a bonus")
    await world.settle_down()
    received = world.sql(
        "SELECT payment_ref, verdict FROM webhook_events WHERE object_id = %s", made["id"]
    )
    assert received == [(held.charge_id, "no_change")]
    assert not await world.discrepancies()
    await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())
    [found] = await world.discrepancies(held.payment_id)
    assert (kind_of(found), found.found.minor_units) == ("missing_in_ledger", -1_500)


async def test_refund_reversal_and_fee_refund_made_at_the_dashboard(world: World) -> None:
    expert = await world.expert()
    payment = await world.captured(expert, 10_000)
    payment_id, intent = payment.payment_id, payment.payment_intent_id
    await world.stripe.api("POST", "/refunds", payment_intent=intent, amount=2_000)
    detail = await _followed(world, payment_id, "out_of_band_refund")
    assert "2000" in detail
    after = await world.get(payment_id)
    assert (after.state, after.refunded_amount.minor_units) == (CAPTURED, 2_000)
    assert after.net_commission.minor_units == 800
    assert balance(world, "losses") == 1_800
    [(transfer,)] = world.sql("SELECT transfer_id FROM payments")
    await world.stripe.api("POST", f"/transfers/{transfer}/reversals", amount=1_800)
    await _followed(world, payment_id, "out_of_band_reversal")
    assert balance(world, "losses") == 0
    fee = (await world.stripe.api("GET", f"/charges/{payment.charge_id}"))["application_fee"]
    await world.stripe.api("POST", f"/application_fees/{fee}/refunds", amount=100)
    await _followed(world, payment_id, "out_of_band_fee_refund")
    await check_books(world)
    whole = await world.refund(payment_id)
    assert whole.state == REFUNDED
    await check_books(world)


async def test_everything_given_back_at_the_dashboard_ends_refunded(world: World) -> None:
    payment = await world.captured()
    await world.stripe.api(
        "POST",
        "/refunds",
        payment_intent=payment.payment_intent_id,
        reverse_transfer="true",
        refund_application_fee="true",
    )
    await world.in_state(payment.payment_id, REFUNDED)
    await check_books(world)
    assert {kind_of(found) for found in await world.discrepancies(payment.payment_id)} == {
        "out_of_band_refund",
        "out_of_band_reversal",
        "out_of_band_fee_refund",
    }


# ---- poison ----


async def test_a_poison_event_is_parked_and_visible_while_others_flow(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy={"tries_before_parking": 2})
    expert = await world.expert()
    poisoned, healthy = await world.initiate(expert), await world.initiate(expert)
    await world.settle_down()
    intent = poisoned.payment.payment_intent_id
    await world.stripe.fault(
        f"/payment_intents/{intent}$", "status", times=None, status=400, match={"method": "GET"}
    )
    await world.confirm(poisoned)
    await world.confirm(healthy)
    await world.in_state(healthy.payment.payment_id, IN_ESCROW)
    listing = operations_pb2.ListWebhookEventsRequest(state=_PARKED)

    async def parked() -> list[operations_pb2.WebhookEvent]:
        return list((await world.operations.ListWebhookEvents(listing)).events)

    event = (await until(parked, "a parked event"))[0]
    assert event.attempts >= 2
    assert event.last_error == "REFUSED_BY_PROCESSOR"
    await world.settle_down()
    await world.stripe.clear_faults()
    for one in await parked():
        retry = operations_pb2.RetryWebhookEventRequest(event_id=one.event_id)
        answer = await world.operations.RetryWebhookEvent(retry)
        assert answer.event.state == operations_pb2.WEBHOOK_EVENT_STATE_WAITING
    await world.in_state(poisoned.payment.payment_id, IN_ESCROW)
    await world.settle_down()
    assert not await parked()
    refused = await refusal(
        world.operations.RetryWebhookEvent(
            operations_pb2.RetryWebhookEventRequest(event_id=event.event_id)
        )
    )
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    await check_books(world)


async def test_an_outage_parks_no_event(start_world: StartWorld) -> None:
    world = await start_world(policy={"tries_before_parking": 2})
    initiated = await world.initiate(await world.expert())
    await world.settle_down()
    intent = initiated.payment.payment_intent_id
    await world.stripe.fault(
        f"/payment_intents/{intent}$", "status", times=12, status=503, match={"method": "GET"}
    )
    await world.confirm(initiated)
    await world.in_state(initiated.payment.payment_id, IN_ESCROW)
    await world.settle_down()
    assert not world.sql("SELECT event_id FROM webhook_events WHERE state = 'PARKED'")


# ---- what can never be right ----


def _hostile() -> dict[str, tuple[webhooks_pb2.IngestEventRequest, str]]:
    good = new_event("payment_intent.succeeded", {"object": "payment_intent", "id": "pi_1"})
    body = json.dumps(good).encode()
    now_signed = signed(body, PLATFORM_SECRET)

    def with_signature(signature: str) -> webhooks_pb2.IngestEventRequest:
        return webhooks_pb2.IngestEventRequest(
            endpoint=webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM, payload=body, signature=signature
        )

    return {
        "forged": (ingestion(good, secret="whsec_of_a_forger"), "wrong signature"),
        "of the other endpoint": (ingestion(good, secret=CONNECT_SECRET), "wrong signature"),
        "stale": (ingestion(good, age=301), "stale"),
        "from the future": (ingestion(good, age=-120), "from the future"),
        "v0 alone": (ingestion(good, scheme="v0"), "no v1"),
        "no signature": (with_signature(""), "no single time"),
        "two times": (with_signature("t=1," + now_signed), "no single time"),
        "odd time": (with_signature(now_signed.replace("t=", "t=٣")), "no single time"),
        "tampered": (
            webhooks_pb2.IngestEventRequest(
                endpoint=webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM,
                payload=body.replace(b"pi_1", b"pi_2"),
                signature=now_signed,
            ),
            "wrong signature",
        ),
    }


def _authentic_and_not_ours() -> dict[str, tuple[dict[str, Any] | bytes, str]]:
    """What Stripe has signed and this service cannot store, with the verdict."""
    good = new_event("payment_intent.succeeded", {"object": "payment_intent", "id": "pi_1"})
    return {
        "of the live mode": ({**good, "livemode": True}, "OTHER_MODE"),
        "without a mode": ({**good, "livemode": None}, "ODD"),
        "not UTF-8": (b'{"id": "\xff\xfe"}', "NOT_AN_EVENT"),
        "not JSON": (b"id=evt_1", "NOT_AN_EVENT"),
        "nothing": (b"", "NOT_AN_EVENT"),
        "deep": (b"[" * 100_000 + b"]" * 100_000, "NOT_AN_EVENT"),
        "an array": (b"[]", "NOT_AN_EVENT"),
        "another object": ({**good, "object": "charge"}, "NOT_AN_EVENT"),
        "without id": ({**good, "id": ""}, "ODD"),
        "an id with NUL": ({**good, "id": "evt_\x00"}, "ODD"),
        "without type": ({**good, "type": 7}, "ODD"),
        "without time": ({**good, "created": None}, "ODD"),
        "a time of 5,000 digits": (
            json.dumps(good).encode().replace(b'"created": ', b'"created": ' + b"9" * 5_000),
            "ODD",
        ),
        "a time after the year 9999": ({**good, "created": 2**39}, "ODD"),
        "without data": ({**good, "data": None}, "ODD"),
        "without object": ({**good, "data": {}}, "ODD"),
    }


async def test_what_stripe_has_signed_is_acknowledged_with_a_verdict(world: World) -> None:
    rows = world.counts()
    for name, (event, verdict) in _authentic_and_not_ours().items():
        answer = await world.webhooks.IngestEvent(ingestion(event))
        assert operations_pb2.WebhookEventVerdict.Name(answer.verdict).endswith(verdict), name
        assert (answer.event_id, answer.duplicate) == ("", False), name
    assert world.counts() == rows
    assert world.service is not None
    assert world.service.wired is not None
    registry = world.service.wired.metrics.registry
    counted = {
        verdict: registry.get_sample_value(
            "payments_webhooks_ignored_total", {"endpoint": "platform", "verdict": verdict}
        )
        for verdict in ("other_mode", "not_an_event", "odd")
    }
    wanted = [verdict.lower() for _, verdict in _authentic_and_not_ours().values()]
    assert counted == {verdict: wanted.count(verdict) for verdict in counted}


@pytest.mark.parametrize(
    "text",
    ["Commande n°12", "x" * 256, "a\x00b", "\ud800", "x" * 500_000],
    ids=["not ASCII", "256 characters", "NUL", "half a character", "half a megabyte, six times"],
)
async def test_any_text_of_another_system_on_the_account_is_stored(world: World, text: str) -> None:
    """Several systems can share one account; Stripe would disable the endpoint for all."""
    shown: dict[str, Any] = {
        "object": "charge",
        "id": text,
        "transfer_group": text,
        "payment_intent": text,
    }
    shown["metadata"] = {"payment_id": text}
    event = {**new_event("charge.updated", shown), "account": text, "request": {"id": text}}
    answer = await world.webhooks.IngestEvent(ingestion(event))
    assert (answer.event_id, answer.verdict) == (event["id"], 0)
    await world.settle_down()
    assert _row(world, event["id"])[:2] == ("IGNORED", "unknown_object")


async def test_numbers_that_no_field_of_ours_has_are_no_reason_to_refuse(world: World) -> None:
    event = new_event("charge.updated", {"object": "charge", "id": "ch_1"})
    body = json.dumps(event).encode()[:-1] + b', "x": ' + b"9" * 5_000 + b"}"
    assert (await world.webhooks.IngestEvent(ingestion(body))).event_id == event["id"]


async def test_a_wrong_signature_is_refused_and_leaves_no_row(world: World) -> None:
    rows = world.counts()
    for name, (request, fault) in _hostile().items():
        refused = await refusal(world.webhooks.IngestEvent(request))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "WEBHOOK_REFUSED"), name
        assert fault in refused.facts["fault"], (name, refused.facts)
    nowhere = webhooks_pb2.IngestEventRequest(payload=b"{}", signature="t=1,v1=00")
    refused = await refusal(world.webhooks.IngestEvent(nowhere))
    assert (refused.code, list(refused.fields)) == ("INVALID_ARGUMENT", ["endpoint"])
    long = ingestion(new_event("payout.paid", {"object": "payout", "id": "po_1"}))
    long.signature += ",v1=x" * 200_000
    refused = await refusal(world.webhooks.IngestEvent(long))
    assert (refused.code, list(refused.fields)) == ("INVALID_ARGUMENT", ["signature"])
    assert world.counts() == rows


async def test_two_secrets_are_good_while_one_is_rolled(start_world: StartWorld) -> None:
    world = await start_world(stripe_webhook_secret=("whsec_new", "whsec_old"))
    for secret in ("whsec_new", "whsec_old"):
        event = new_event("payout.paid", {"object": "payout", "id": "po_1"})
        answer = await world.webhooks.IngestEvent(ingestion(event, secret=secret))
        assert (answer.event_id, answer.duplicate) == (event["id"], False)
    event = new_event("payout.paid", {"object": "payout", "id": "po_1"})
    assert (
        await refusal(world.webhooks.IngestEvent(ingestion(event, secret=PLATFORM_SECRET)))
    ).reason == "WEBHOOK_REFUSED"


@pytest.mark.parametrize("secrets", [(), ("whsec_a",)], ids=["none", "another's"])
async def test_an_endpoint_without_its_secret_fails_closed(
    start_world: StartWorld, secrets: tuple[str, ...]
) -> None:
    world = await start_world(stripe_webhook_secret=secrets)
    event = new_event("payout.paid", {"object": "payout", "id": "po_1"})
    for secret in ("", "whsec_", PLATFORM_SECRET):
        refused = await refusal(world.webhooks.IngestEvent(ingestion(event, secret=secret)))
        assert refused.reason == "WEBHOOK_REFUSED"
    assert world.counts()["webhook_events"] == 0


async def test_the_object_of_an_event_is_not_kept(world: World) -> None:
    """It may hold a secret: the client's, of a payment that is not yet paid."""
    initiated = await world.initiate(await world.expert())
    await world.settle_down()
    secret = initiated.client_secret
    found = world.sql("SELECT webhook_events::text FROM webhook_events")
    assert found
    assert not any(secret in text for (text,) in found)


# ---- what tells nothing new ----


async def _of_ours(world: World, payment_id: str) -> dict[str, str]:
    """Returns the verdict on each event that names a request of ours, by its type."""
    found = world.sql(
        "SELECT type, verdict FROM webhook_events WHERE own_key <> '' AND payment_ref IN "
        "(SELECT unnest(ARRAY[payment_id, payment_intent_id, charge_id, transfer_id]) "
        "FROM payments WHERE payment_id = %s)",
        payment_id,
    )
    return dict(found)


async def test_what_we_have_done_ourselves_is_known_without_a_look(start_world: StartWorld) -> None:
    """Stripe reports every request of ours back to us; the books have it by then."""
    world = await start_world(loops=False)
    assert world.service is not None
    app, expert = world.service.app, await world.expert()
    await world.pause_webhooks()
    initiated = await world.initiate(expert)
    await world.confirm(initiated)
    payment_id = initiated.payment.payment_id
    await sync_payment(app, payment_id, Cause("tests", "look"))
    await world.payments.CapturePayment(capture_request(payment_id))
    await world.refund(payment_id, 1_000)
    events = (await world.stripe.api("GET", "/events", limit=100))["data"]
    own = [event for event in events if (event["request"]["idempotency_key"] or "")[:3] == "op_"]
    before = len(await world.stripe.requests(method="GET"))
    with _statements() as sent:
        for event in own:
            await world.webhooks.IngestEvent(ingestion(event))
    assert len(sent) == len(own)  # Between a BEGIN and a COMMIT.
    assert await _of_ours(world, payment_id) == {
        "payment_intent.succeeded": "known",
        "transfer.created": "known",
        "refund.created": "known",
        "transfer.reversed": "known",
    }
    assert len(await world.stripe.requests(method="GET")) == before


@contextlib.contextmanager
def _statements() -> Iterator[list[str]]:
    """Collects the statements of the service's transactions."""
    sent: list[str] = []
    execute = TransactionStatements._execute

    def note(self: TransactionStatements, sql: str, values: Mapping[str, Any]) -> None:
        sent.append(sql)
        execute(self, sql, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionStatements, "_execute", note)
        yield sent


async def _told(world: World, type_: str, **request: str | None) -> dict[str, Any]:
    """Returns the listed event of this type, as if that request had caused it."""
    events = (await world.stripe.api("GET", "/events", limit=100))["data"]
    [found] = [event for event in events if event["type"] == type_]
    return {**found, "id": new_event(type_, {})["id"], "request": {**found["request"], **request}}


@pytest.mark.parametrize(
    ("type_", "request_of"),
    [
        ("payment_intent.succeeded", {"id": None}),  # Stripe caused it later by itself.
        ("payment_intent.succeeded", {"idempotency_key": "somebody-else"}),
        (
            "payment_intent.succeeded",
            {"idempotency_key": "op_" + "0" * 32 + "-1"},
        ),  # Lost by a restore.
        (
            "payment_intent.succeeded",
            {"attempt": "-2"},
        ),  # A request under another key has done it, too.
        ("charge.updated", {}),  # Not what a capture does.
    ],
)
async def test_any_doubt_is_a_reason_to_look(
    start_world: StartWorld, type_: str, request_of: dict[str, str | None]
) -> None:
    world = await start_world(loops=False)
    assert world.service is not None
    app, expert = world.service.app, await world.expert()
    await world.pause_webhooks()
    initiated = await world.initiate(expert)
    await world.confirm(initiated)
    await sync_payment(app, initiated.payment.payment_id, Cause("tests", "look"))
    await world.payments.CapturePayment(capture_request(initiated.payment.payment_id))
    told = await _told(world, "payment_intent.succeeded")
    if attempt := request_of.pop("attempt", None):
        request_of["idempotency_key"] = told["request"]["idempotency_key"][:-2] + attempt
    told["request"] |= request_of
    told["type"] = type_
    await world.webhooks.IngestEvent(ingestion(told))
    before = len(await world.stripe.requests(method="GET"))
    await apply_waiting(app)
    assert _row(world, told["id"]) == ("APPLIED", "no_change", 1)
    assert len(await world.stripe.requests(method="GET")) > before


async def test_an_event_waits_a_moment_for_the_call_that_has_caused_it(
    start_world: StartWorld,
) -> None:
    world = await start_world(loops=False, policy={"own_event_patience": 60.0})
    assert world.service is not None
    app, expert = world.service.app, await world.expert()
    await world.pause_webhooks()
    initiated = await world.initiate(expert)
    await world.confirm(initiated)
    payment_id = initiated.payment.payment_id
    await sync_payment(app, payment_id, Cause("tests", "look"))
    while await apply_waiting(app):  # What the account's creation has caused.
        pass
    await world.stripe.fault("/capture$", "delay", "after", delay_ms=3_000)
    capturing = asyncio.ensure_future(world.payments.CapturePayment(capture_request(payment_id)))

    async def captured() -> bool:
        return bool(await world.stripe.effects("captured"))

    await until(captured, "the capture at Stripe")
    told = await _told(world, "payment_intent.succeeded")
    await world.webhooks.IngestEvent(ingestion(told))
    before = len(await world.stripe.requests(method="GET"))
    await apply_waiting(app)  # It is not due yet: the call is at work.
    assert _row(world, told["id"]) == ("WAITING", "", 0)
    assert len(await world.stripe.requests(method="GET")) == before
    await capturing
    before = len(await world.stripe.requests(method="GET"))
    world.sql("UPDATE webhook_events SET next_try_time = now() WHERE state = 'WAITING' RETURNING 1")
    await apply_waiting(app)
    assert _row(world, told["id"]) == ("APPLIED", "known", 1)


async def test_events_that_come_together_are_applied_by_one_look(start_world: StartWorld) -> None:
    """Stripe often reports one request as several events, one right after the other."""
    world = await start_world(loops=False, policy={"event_gathering": 60.0})
    assert world.service is not None
    app, expert = world.service.app, await world.expert()
    await world.pause_webhooks()
    initiated, other = await world.initiate(expert), await world.initiate(expert)
    await world.confirm(initiated)
    await world.confirm(other)
    events = (await world.stripe.api("GET", "/events", limit=100))["data"]
    types = {"charge.succeeded": "charge.updated"}
    told = [
        {**event, "type": types.get(event["type"], event["type"])}
        for event in reversed(events)
        if event["type"] in ("charge.succeeded", "payment_intent.amount_capturable_updated")
    ]
    assert len(told) == 4
    for event in told:
        await world.webhooks.IngestEvent(ingestion(event))
    before = len(await world.stripe.requests(method="GET"))
    assert await apply_waiting(app) == 0  # They wait for those that Stripe sends with them.
    first = told[0]["id"]
    world.sql(
        "UPDATE webhook_events SET next_try_time = now() WHERE event_id = %s RETURNING 1", first
    )
    assert await apply_waiting(app) == 2
    assert len(await world.stripe.requests(method="GET")) == before + 1
    payment_id = initiated.payment.payment_id
    # They are closed by the transaction that has applied them.
    closed = world.sql(
        "SELECT w.state, verdict, w.xmin = p.xmin FROM webhook_events AS w JOIN payments AS p "
        "ON p.payment_id = payment_ref WHERE payment_ref = %s AND own_key = ''",
        payment_id,
    )
    assert closed == [("APPLIED", "applied", True)] * 2
    waiting = world.sql(
        "SELECT state FROM webhook_events WHERE payment_ref = %s AND own_key = ''",
        other.payment.payment_id,
    )
    assert waiting == [("WAITING",)] * 2
