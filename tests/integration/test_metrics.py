"""What the metrics say after real traffic, and that no label of theirs grows with it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry

from payment_service.application.jobs.apply_webhooks import apply_waiting
from payment_service.gauges import read_gauges
from payment_service.metrics.vocabulary import Vocabulary
from tests.integration.conftest import StartWorld
from tests.support.running import running_world
from tests.support.world import World, until

#: Labels whose values say how much, or which build this is.
_FREE = {"le", "version", "revision", "writer"}
#: Words, and words between slashes and dots: no id, no number, no text of a person.
_WORD = re.compile(
    r"[A-Za-z_][A-Za-z_.]*|6|24|72"  # words; the hours that are left
    r"|[A-Z]+ (/(v[12]|[a-z_]+|\{id\}))+"  # a request to Stripe
    r"|/[\w.]+/[A-Za-z]+"  # a method of gRPC
)


def value(world: World, name: str, **labels: str) -> float:
    found = registry(world).get_sample_value(name, labels)
    assert found is not None, (name, labels)
    return found


def registry(world: World) -> CollectorRegistry:
    assert world.service is not None
    assert world.service.wired is not None
    return world.service.wired.metrics.registry


def labels_of(found: CollectorRegistry) -> Iterator[tuple[str, str, str]]:
    for family in found.collect():
        for sample in family.samples:
            for label, text in sample.labels.items():
                if label not in _FREE:
                    yield sample.name, label, text


async def _gauges(world: World) -> None:
    assert world.service is not None
    assert world.service.wired is not None
    await read_gauges(world.service.wired.metrics, world.service.wired.database)


async def test_metrics_tell_how_well_it_is_how_much_money_moves_and_what_is_stuck(
    new_database: Callable[[], str],
) -> None:
    async with running_world(new_database()) as world:
        expert = await world.expert()
        captured = await world.captured(expert)
        await world.refund(captured.payment_id, 2_500)
        declined = await world.initiate(expert)
        await world.confirm(declined, "pm_card_visa_chargeDeclined")
        disputed = await world.captured(expert, 7_000, card="pm_card_createDispute")
        held = await world.escrowed(expert, 5_000)
        await world.settle_down()
        await _gauges(world)

        capture = "POST /v1/payment_intents/{id}/capture"
        usd = {"currency": "USD"}
        for name, labels, wanted in (
            # How well.
            ("payments_stripe_call_seconds_count", {"endpoint": capture, "outcome": "done"}, 2),
            ("payments_stripe_circuit_open", {}, 0),
            ("payments_database_places", {"pool": "write", "state": "all"}, 6),
            ("payments_database_places", {"pool": "expensive_read", "state": "waiting"}, 0),
            # How much.
            ("payments_volume_minor_units_total", {"step": "captured", **usd}, 17_000),
            ("payments_commission_minor_units_total", {"direction": "given_back", **usd}, 250),
            ("payments_failed_attempts_total", {"code": "generic_decline"}, 1),
            ("payments_at_risk_minor_units", {"what": "disputed", **usd}, 7_000),
            (
                "payments_held_minor_units",
                {"mode": "CARD_HOLD", "hours_left": "more", **usd},
                held.held_amount.minor_units,
            ),
            # What is stuck: nothing, and each says so.
            ("payments_overdue_items", {"queue": "webhook_event"}, 0),
            ("payments_backlog_items", {"what": "operation", "state": "PARKED"}, 0),
            ("payments_discrepancies_open", {"kind": "refund_failed"}, 0),
        ):
            assert value(world, name, **labels) == wanted, (name, labels)
        phases = {text for _, label, text in labels_of(registry(world)) if label == "phase"}
        assert {"claim_and_start", "store_events"} <= phases

        ids = {captured.payment_id, disputed.payment_id, expert, "client-1", "gig-1", "local"}
        for name, label, text in labels_of(registry(world)):
            assert _WORD.fullmatch(text), (name, label, text)
            assert text not in ids, (name, label, text)


async def test_what_is_due_and_not_done_grows_old(new_database: Callable[[], str]) -> None:
    # Without background jobs nobody applies the events that Stripe delivers.
    async with running_world(new_database(), loops=False) as world:
        initiated = await world.initiate(await world.expert())
        await world.confirm(initiated)

        async def shown() -> float | None:
            await _gauges(world)
            items = value(world, "payments_overdue_items", queue="webhook_event")
            age = value(world, "payments_overdue_oldest_seconds", queue="webhook_event")
            return age if items > 0 else None

        first = await until(shown, "events that are due")
        await asyncio.sleep(0.1)
        assert (await shown() or 0) >= first + 0.1
        assert world.service is not None
        await apply_waiting(world.service.app)
        assert await shown() is None


async def test_it_shows_since_when_the_books_may_be_older_than_stripe(
    start_world: StartWorld,
) -> None:
    """No debt is taken from an expert meanwhile, so somebody must know that it lasts."""
    world = await start_world(loops=False)

    async def shown() -> tuple[float, float]:
        await _gauges(world)
        queue = "catching_up"
        items = value(world, "payments_overdue_items", queue=queue)
        return items, value(world, "payments_overdue_oldest_seconds", queue=queue)

    world.sql("UPDATE event_cursors SET seen_until = now()")
    assert await shown() == (0, 0)
    world.sql("UPDATE event_cursors SET seen_until = now() - interval '10 minutes'")
    items, age = await shown()
    assert items == 1
    assert age == pytest.approx(600, abs=30)
    world.sql("UPDATE event_cursors SET seen_until = now()")
    await world.confirm(await world.initiate(await world.expert()))
    await world.stripe.control("POST", "/webhooks/settle", {"seconds": 10})
    world.sql(
        "UPDATE webhook_events SET create_time = receive_time - interval '2 minutes', "
        "type = 'payment_intent.succeeded' WHERE state = 'WAITING'"
    )
    items, age = await shown()
    assert items >= 1
    assert age < 30


@pytest.mark.parametrize("code", ["pi_3Nabc9", "card declined", "", "x" * 65, "ANNA"])
def test_what_is_no_code_is_no_label(code: str) -> None:
    assert Vocabulary().word(code) == "other"


def test_a_label_has_only_so_many_values() -> None:
    vocabulary = Vocabulary(most=2)
    given = ["expired_card", "fraudulent", "lost_card", "fraudulent"]
    assert [vocabulary.word(code) for code in given] == [
        "expired_card",
        "fraudulent",
        "other",
        "fraudulent",
    ]
