"""Polling: webhooks that never come, stale payments, and Stripe being unavailable."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from marketplace.payments.v1 import experts_pb2
from payment_service.adapters.stripe import events
from payment_service.application.app import App
from payment_service.application.jobs.apply_webhooks import apply_waiting
from payment_service.application.jobs.poll_events import poll_events, store_polled
from payment_service.application.jobs.poll_stale_payments import poll_stale_payments
from payment_service.domain.ports.records import EventCursor, ListedEvents
from tests.integration.conftest import StartWorld
from tests.support.errors import refusal
from tests.support.kinds import kind_of
from tests.support.requests import capture_request
from tests.support.world import CAPTURED, IN_ESCROW, World, until

FAST_POLL = {"poll_seconds": 0.2, "account_poll_seconds": 0.2}


async def test_a_service_that_gets_no_webhook_converges(start_world: StartWorld) -> None:
    world = await start_world(policy=FAST_POLL)
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    expert_id = await world.expert()
    initiated = await world.initiate(expert_id)
    await world.confirm(initiated)
    payment = await world.in_state(initiated.payment.payment_id, IN_ESCROW)
    await world.stripe.api("POST", f"/payment_intents/{payment.payment_intent_id}/capture")
    payment = await world.in_state(payment.payment_id, CAPTURED)
    assert [kind_of(found) for found in await world.discrepancies(payment.payment_id)] == [
        "captured_out_of_band"
    ]


@pytest.mark.parametrize("paused", [True, False], ids=["paused", "arriving"])
async def test_it_is_counted_which_events_no_webhook_brought(
    start_world: StartWorld, *, paused: bool
) -> None:
    """Everything goes on without webhooks, only later. So the counts alone tell an operator."""
    world = await start_world(loops=False)
    assert world.service is not None
    assert world.service.wired is not None
    registry = world.service.wired.metrics.registry

    def counted(metric: str) -> dict[str, float | None]:
        lists = ("platform", "connect", "thin")
        return {one: registry.get_sample_value(metric, {"list": one}) for one in lists}

    await world.stripe.control("POST", "/webhooks", {"paused": paused})
    expert_id = await world.expert(ready=False)
    account = world.account_of(expert_id)
    await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding", {})
    await world.confirm(await world.initiate(await world.expert()))
    topup = {"amount": 5_000, "currency": "usd", "type": "topup"}
    await world.stripe.control("POST", "/balance", topup)
    await world.stripe.api("POST", "/transfers", amount=5_000, currency="usd", destination=account)
    await world.stripe.control("POST", f"/accounts/{account}/payout")
    if not paused:
        await world.stripe.control("POST", "/webhooks/settle", {"seconds": 10})
    stored = world.sql("SELECT event_id FROM webhook_events")
    assert bool(stored) is not paused
    for _ in range(2):  # What is found again is not counted again.
        world.sql("UPDATE event_cursors SET next_time = now()")
        await poll_events(world.service.app)
    found = counted("payments_events_found_by_polling_total")
    brought = counted("payments_webhooks_received_total")
    counts, others = (found, brought) if paused else (brought, found)
    assert others == {"platform": 0, "connect": 0, "thin": 0}
    assert all(counts.values()), counts
    [[events]] = world.sql("SELECT count(*) FROM webhook_events")
    assert sum(value or 0 for value in counts.values()) == events


async def test_a_polled_event_and_its_webhook_are_one(start_world: StartWorld) -> None:
    world = await start_world(policy=FAST_POLL)
    payment = await world.captured()
    await world.settle_down()

    async def both_ways() -> bool:
        listed = await world.stripe.api("GET", "/events", limit=100)
        known = {row[0] for row in world.sql("SELECT event_id FROM webhook_events")}
        return {event["id"] for event in listed["data"]} <= known

    await until(both_ways, "every event in the inbox")
    [(events, distinct)] = world.sql(
        "SELECT count(*), count(DISTINCT event_id) FROM webhook_events"
    )
    assert events == distinct
    effects = await world.stripe.effects("captured", payment.payment_intent_id)
    assert len(effects) == 1


async def test_an_account_that_becomes_ready_is_noticed_in_its_own_list(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy=FAST_POLL)
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    expert_id = await world.expert(ready=False)
    account = world.account_of(expert_id)
    await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding", {})

    async def noticed() -> bool:
        query = "SELECT transfers_active FROM experts WHERE expert_id = %s"
        return bool(world.sql(query, expert_id)[0][0])

    await until(noticed, "the account's readiness")


async def test_a_quiet_payment_is_asked_about_and_then_more_seldom(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy={"quiet_seconds": 0.05}, loops=False)
    assert world.service is not None
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    initiated = await world.initiate(await world.expert())
    await world.confirm(initiated)
    payment_id = initiated.payment.payment_id

    async def in_escrow() -> bool:
        await poll_stale_payments(world.service.app)  # type: ignore[union-attr]
        return (await world.get(payment_id)).state == IN_ESCROW

    await until(in_escrow, "the quiet payment in escrow")
    world.sql("UPDATE payment_polls SET next_time = now() + interval '1 hour' RETURNING 1")
    before = len(await world.stripe.requests(method="GET"))
    await poll_stale_payments(world.service.app)
    assert len(await world.stripe.requests(method="GET")) == before


async def test_with_stripe_unavailable_money_calls_fail_fast_and_store_no_key(world: World) -> None:
    assert world.service is not None
    stripe = world.service.app.stripe
    settled = capture_request((await world.escrowed()).payment_id)
    answer = await world.bytes_of("CapturePayment", settled)
    caught, other = await world.escrowed(), await world.escrowed()
    await world.settle_down()
    await world.stripe.control(
        "POST", "/faults", {"match": {"path": ".*"}, "when": "before", "action": "reset"}
    )
    first = capture_request(caught.payment_id)
    assert (await refusal(world.payments.CapturePayment(first))).code == "UNAVAILABLE"
    while not stripe.is_unavailable:
        request = experts_pb2.RefreshOnboardingRequest(expert_id=other.expert_id)
        await refusal(world.experts.RefreshOnboarding(request))
    second = capture_request(other.payment_id)
    before = world.counts()
    refused = await refusal(world.payments.CapturePayment(second))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "PROCESSOR_UNAVAILABLE")
    assert world.counts() == before
    # Reads go on, and so do answers that were given before.
    assert (await world.get(other.payment_id)).state == IN_ESCROW
    assert await world.bytes_of("CapturePayment", settled) == answer

    await world.stripe.clear_faults()
    await world.in_state(caught.payment_id, CAPTURED)

    async def captured() -> bool:
        reply = await world.bytes_of("CapturePayment", second)
        return reply.refused is None

    await until(captured, "the second capture under its own key")
    for payment in (caught, other):
        effects = await world.stripe.effects("captured", payment.payment_intent_id)
        assert len(effects) == 1


async def with_events(start_world: StartWorld) -> tuple[World, App]:
    """A world without background jobs that has stored the events of a payment."""
    world = await start_world(loops=False)
    assert world.service is not None
    await world.confirm(await world.initiate(await world.expert()))
    await world.stripe.control("POST", "/webhooks/settle", {"seconds": 10})
    return world, world.service.app


async def test_a_quiet_platform_is_not_behind_stripe(start_world: StartWorld) -> None:
    """A list that shows nothing new says as much as an event: the books know all until now."""
    world = await start_world(policy=FAST_POLL)
    await world.captured()
    await world.settle_down()
    assert world.service is not None
    app = world.service.app
    assert not await app.database.transact(lambda tx: tx.catches_up())
    world.sql("UPDATE event_cursors SET seen_until = now() - interval '2 minutes'")

    async def caught_up() -> bool:
        return not await app.database.transact(lambda tx: tx.catches_up())

    await until(caught_up, "a list without anything new")


async def test_only_the_end_of_a_list_says_that_the_books_are_not_old(
    start_world: StartWorld,
) -> None:
    """A part of a long list may be what the books know, and the rest of it what they have lost.

    Books that were new a moment ago have lost nothing: under load the webhooks are first there.
    """
    world, app = await with_events(start_world)
    long_ago = datetime.now(UTC) - timedelta(minutes=2)
    listed = await app.stripe.events("", "", long_ago)
    assert listed is not None
    assert listed.events
    assert not listed.has_more
    # As if all of them were old enough.
    known = replace(listed, events=[replace(one, create_time=long_ago) for one in listed.events])
    lost = [*known.events, replace(known.events[0], event_id="evt_lost")]

    async def after(shown: ListedEvents, since: str = "2 minutes") -> tuple[bool, bool]:
        """Whether the list counts as read to now, and whether it is read on at once."""
        world.sql(
            "UPDATE event_cursors SET seen_until = now() - %s::interval, "
            "next_time = now() + interval '10 seconds'",
            since,
        )
        [cursor] = world.sql("SELECT seen_until, now() FROM event_cursors WHERE scope = 'platform'")
        read = EventCursor("platform", cursor[0], "", cursor[1])
        await app.database.transact(store_polled, app.policy, read, shown)
        [row] = world.sql(
            "SELECT seen_until > now() - interval '20 seconds', next_time <= now() "
            "FROM event_cursors WHERE scope = 'platform'"
        )
        return row

    assert await after(known) == (True, False)
    assert await after(replace(known, has_more=True)) == (False, True)
    assert await after(replace(known, has_more=True), "40 seconds") == (True, True)
    assert await after(replace(known, events=lost)) == (False, False)


@pytest.mark.parametrize(
    ("endpoint", "kind", "expected"),
    [
        ("platform", "transfer.reversed", True),
        ("platform", "payment_intent.succeeded", True),
        ("platform", "payment_intent.amount_capturable_updated", False),
        ("connect", "payment_intent.succeeded", False),
    ],
)
async def test_an_event_that_comes_late_makes_the_books_old_until_it_is_applied(
    start_world: StartWorld, endpoint: str, kind: str, expected: bool
) -> None:
    """A long queue alone does not: its events came in time. Nor does what others have done."""
    world, app = await with_events(start_world)

    async def is_old(late: str, state: str) -> bool:
        world.sql(
            "UPDATE webhook_events SET state = %s, endpoint = %s, type = %s, "
            "receive_time = create_time + %s::interval",
            state,
            endpoint,
            kind,
            late,
        )
        return await app.database.transact(lambda tx: tx.catches_up())

    assert world.sql("SELECT count(*) FROM webhook_events")[0][0]
    assert await is_old("2 minutes", "WAITING") == expected
    assert not await is_old("10 seconds", "WAITING")
    assert not await is_old("2 minutes", "PARKED")
    assert not await is_old("2 minutes", "APPLIED")


async def test_the_books_stay_old_while_stripe_does_not_let_a_late_event_be_applied(
    start_world: StartWorld,
) -> None:
    """After a restore many events are applied at once, and Stripe may limit the reads."""
    world, app = await with_events(start_world)
    world.sql(
        "UPDATE webhook_events SET receive_time = create_time + interval '2 minutes', "
        "type = 'payment_intent.succeeded' WHERE state = 'WAITING'"
    )
    await world.stripe.fault(
        "/payment_intents/", "status", times=None, status=429, match={"method": "GET"}
    )

    async def catches_up() -> bool:
        world.sql("UPDATE webhook_events SET next_try_time = now() WHERE state = 'WAITING'")
        await apply_waiting(app)
        return await app.database.transact(lambda tx: tx.catches_up())

    assert [await catches_up() for _ in range(6)] == [True] * 6
    await world.stripe.clear_faults()
    assert not await catches_up()


async def test_a_list_longer_than_a_page_is_read_to_its_end(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read ends after some pages, and the next one continues at once."""
    monkeypatch.setattr(events, "_EVENTS_AT_ONCE", 100)
    world = await start_world(loops=False)
    assert world.service is not None
    assert world.simulator is not None
    # So all events are old enough for the place to move.
    world.simulator.simulation.clock.load({"offset": -600.0, "frozen": None, "latest": 0.0})
    expert_id = await world.expert()
    await world.confirm(await world.initiate(expert_id))
    await world.stripe.control("POST", "/webhooks/settle", {"seconds": 10})
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    world.sql(
        "UPDATE event_cursors SET after_event_id = (SELECT event_id FROM webhook_events "
        "WHERE type = 'payment_intent.amount_capturable_updated') WHERE scope = 'platform'"
    )
    for _ in range(60):  # Two events each: confirmed, then cancelled at the dashboard.
        initiated = await world.initiate(expert_id)
        await world.confirm(initiated)
        intent = initiated.payment.payment_intent_id
        await world.stripe.api("POST", f"/payment_intents/{intent}/cancel")

    async def read() -> tuple[int, bool]:
        """How many events the books have after a read, and whether more is read at once."""
        await poll_events(world.service.app)  # type: ignore[union-attr]
        [[count]] = world.sql(
            "SELECT count(*) FROM webhook_events WHERE endpoint = 'platform' AND state = 'WAITING'"
        )
        [[is_due]] = world.sql(
            "SELECT next_time <= now() FROM event_cursors WHERE scope = 'platform'"
        )
        return count, is_due

    world.sql("UPDATE event_cursors SET next_time = now() WHERE scope = 'platform'")
    assert await read() == (101, True)
    assert await read() == (121, False)
