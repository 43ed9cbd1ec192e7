"""What the relay remembers: places in the feed, deliveries, and the commands that show them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dev.postgres import EmbeddedPostgres
from payment_service.__main__ import app
from payment_service.relay import deliveries
from payment_service.relay.cloud_events import Outgoing
from payment_service.relay.deliveries import DOWN, GONE, Outcome
from payment_service.relay.endpoints import Endpoint
from payment_service.relay.places import Place, forget
from payment_service.relay.store import NoSchema, Sql, Store
from tests.support.receiver import SECRET

NOW = datetime.now(UTC)
PLACE = Place("nats")
DELIVERED, REFUSED = Outcome(deliveries.DELIVERED), Outcome("STATUS_500")
PATIENCE = 3600.0

Run = Callable[[Callable[[Sql], Any]], Any]


@pytest.fixture
def run(relay_database: str) -> Run:
    """Runs a phase in a session of its own."""

    async def once(phase: Callable[[Sql], Any]) -> Any:
        store = Store(relay_database)
        try:
            await store.open()
            return await store.run(phase)
        finally:
            await store.close()

    return lambda phase: asyncio.run(once(phase))


def event(number: int, *, payment: str = "pay_1", days_ago: float = 0) -> Outgoing:
    return Outgoing(
        id=f"{payment}.{number}.x",
        kind="payment.captured",
        payment_id=payment,
        sequence=number,
        record_time=NOW - timedelta(days=days_ago),
        body=json.dumps({"id": f"{payment}.{number}.x"}),
    )


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    return Endpoint(name="mail", url="https://mail.example.com/", secret_files=(secret,))


# --- places ---


def test_a_place_is_where_the_last_event_was(run: Run) -> None:
    assert run(PLACE.cursor) == ""
    run(lambda sql: PLACE.move(sql, event(1), "one"))
    run(lambda sql: PLACE.move(sql, event(2), "two"))
    assert run(PLACE.cursor) == "two"
    assert run(Place("webhooks").cursor) == ""
    assert run(lambda sql: PLACE.knows(sql, event(1)))
    assert not run(lambda sql: PLACE.knows(sql, event(3)))
    assert not run(lambda sql: Place("webhooks").knows(sql, event(1)))


def test_after_a_rewind_what_is_too_old_to_be_remembered_counts_as_sent(run: Run) -> None:
    run(lambda sql: PLACE.move(sql, event(9), "nine"))
    assert not run(lambda sql: PLACE.knows(sql, event(1, days_ago=40)))
    run(PLACE.rewind)
    assert run(PLACE.cursor) == ""
    assert run(lambda sql: PLACE.knows(sql, event(1, days_ago=40)))
    assert run(lambda sql: PLACE.knows(sql, event(9)))
    # Recorded in the place of what was lost.
    assert not run(lambda sql: PLACE.knows(sql, event(8, days_ago=1)))


def test_after_a_rewind_a_target_that_was_far_behind_misses_nothing(run: Run) -> None:
    run(lambda sql: PLACE.move(sql, event(1, days_ago=90), "one"))
    run(PLACE.rewind)
    assert run(lambda sql: PLACE.knows(sql, event(1, days_ago=90)))
    assert not run(lambda sql: PLACE.knows(sql, event(2, days_ago=89)))


def test_what_is_old_is_forgotten_and_what_waits_is_not(run: Run, endpoint: Endpoint) -> None:
    gone = endpoint.model_copy(update={"name": "gone"})

    def given(sql: Sql) -> None:
        for number, days in ((1, 40), (2, 1)):
            PLACE.move(sql, event(number, days_ago=days), "x")
            deliveries.enqueue(sql, event(number, days_ago=days), [endpoint, gone])
        sql.do("UPDATE sent SET sent_time = record_time")

    run(given)
    run(lambda sql: forget(sql, ["mail"]))
    assert run(lambda sql: sql.all("SELECT event_id FROM sent")) == [("pay_1.2.x",)]
    left = run(lambda sql: sql.all("SELECT endpoint, event_id FROM deliveries ORDER BY 1, 2"))
    assert left == [("gone", "pay_1.2.x"), ("mail", "pay_1.1.x"), ("mail", "pay_1.2.x")]


def test_a_role_that_may_make_no_schema_is_refused(
    postgres: EmbeddedPostgres, relay_database: str
) -> None:
    name = relay_database.rpartition("/")[2]

    async def open_as_the_service() -> None:
        store = Store(postgres.url(name))
        try:
            await store.open()
        finally:
            await store.close()

    with pytest.raises(NoSchema, match="make the schema for it"):
        asyncio.run(open_as_the_service())


# --- deliveries ---


def given_deliveries(sql: Sql, endpoint: Endpoint, *events: Outgoing) -> None:
    deliveries.introduce(sql, endpoint.name)
    for one in events:
        deliveries.enqueue(sql, one, [endpoint])


def due(run: Run, *busy: str) -> list[str]:
    return [one.event_id for one in run(lambda sql: deliveries.due(sql, "mail", busy, 8))]


def number_of(run: Run, event_id: str) -> int:
    [(found,)] = run(lambda sql: sql.all("SELECT id FROM deliveries WHERE event_id = %s", event_id))
    return int(found)


def tried(run: Run, event_id: str, outcome: Outcome, patience: float = PATIENCE) -> Any:
    number = number_of(run, event_id)
    return run(lambda sql: deliveries.record(sql, "mail", number, outcome, patience))


def test_a_payment_has_one_delivery_at_a_time(run: Run, endpoint: Endpoint) -> None:
    others = [event(1, payment="pay_2"), event(2, payment="pay_2")]
    run(lambda sql: given_deliveries(sql, endpoint, event(1), event(2), *others))
    assert due(run) == ["pay_1.1.x", "pay_2.1.x"]
    assert due(run, "pay_1") == ["pay_2.1.x"]
    tried(run, "pay_1.1.x", REFUSED)
    assert due(run) == ["pay_2.1.x"], "the second one waits with the first"
    tried(run, "pay_2.1.x", DELIVERED)
    assert due(run) == ["pay_2.2.x"]


def test_an_event_is_recorded_once_for_an_endpoint(run: Run, endpoint: Endpoint) -> None:
    run(lambda sql: given_deliveries(sql, endpoint, event(1), event(1)))
    assert due(run) == ["pay_1.1.x"]


def test_an_endpoint_that_is_down_is_tried_with_one_delivery(run: Run, endpoint: Endpoint) -> None:
    events = [event(1, payment=f"pay_{number}") for number in range(DOWN + 3)]
    run(lambda sql: given_deliveries(sql, endpoint, *events))
    for one in events[:DOWN]:
        tried(run, one.id, REFUSED)
    assert due(run) == [], "it has a pause of its own"
    run(lambda sql: sql.do("UPDATE endpoints SET due_time = now()"))
    assert due(run) == [events[DOWN].id]
    assert due(run, "pay_x") == []
    tried(run, events[DOWN].id, DELIVERED)
    assert set(due(run)) == {one.id for one in events} - {events[DOWN].id}, "all at once again"


def test_a_wish_to_wait_is_obeyed_up_to_an_hour(run: Run, endpoint: Endpoint) -> None:
    run(lambda sql: given_deliveries(sql, endpoint, event(1)))
    for wish, expected in ((120.0, 120), (1e6, 3600)):
        tried(run, "pay_1.1.x", Outcome("STATUS_429", wish))
        [seconds] = run(
            lambda sql: sql.one(
                "SELECT extract(epoch FROM due_time - attempt_time)::float8 FROM deliveries"
            )
        )
        assert seconds == pytest.approx(expected, abs=1)


def test_an_endpoint_that_is_gone_is_disabled(run: Run, endpoint: Endpoint) -> None:
    run(lambda sql: given_deliveries(sql, endpoint, event(1)))
    assert tried(run, "pay_1.1.x", Outcome(GONE)).disabled
    assert due(run) == []


def test_a_delivery_that_fails_alone_is_parked_and_its_endpoint_stays(
    run: Run, endpoint: Endpoint
) -> None:
    """In a quiet time nothing else shows whether the endpoint works."""
    run(lambda sql: given_deliveries(sql, endpoint, event(1), event(2)))
    tried(run, "pay_1.1.x", REFUSED)
    verdict = tried(run, "pay_1.1.x", REFUSED, patience=0)
    assert (verdict.parked, verdict.disabled) == (True, False)
    assert due(run) == ["pay_1.2.x"]
    # The next one fails, too: so it is the endpoint.
    assert tried(run, "pay_1.2.x", REFUSED, patience=0).disabled


def test_a_delivery_that_fails_while_others_are_taken_is_parked(
    run: Run, endpoint: Endpoint
) -> None:
    others = [event(1, payment=f"pay_{number}") for number in (2, 3)]
    run(lambda sql: given_deliveries(sql, endpoint, event(1), *others))
    tried(run, "pay_1.1.x", REFUSED)
    tried(run, "pay_2.1.x", DELIVERED)
    tried(run, "pay_3.1.x", REFUSED)
    verdict = tried(run, "pay_1.1.x", REFUSED, patience=0)
    assert (verdict.parked, verdict.disabled) == (True, False)


# --- commands ---


@pytest.fixture
def command(relay_database: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("RELAY_DATABASE_URL", relay_database)
    return lambda *words: CliRunner().invoke(app, ["relay", *words])


def test_people_see_deliveries_and_begin_them_again(
    run: Run, endpoint: Endpoint, command: Callable[..., Result]
) -> None:
    run(lambda sql: given_deliveries(sql, endpoint, event(1), event(2)))
    tried(run, "pay_1.1.x", DELIVERED)
    number = number_of(run, "pay_1.1.x")
    listed = command("deliveries", "--endpoint", "mail", "--state", "DELIVERED").output
    assert listed.startswith(f"{number} mail pay_1.1.x payment.captured DELIVERED attempts=1")
    assert len(command("deliveries").output.splitlines()) == 2
    assert command("redeliver", str(number)).exit_code == 0
    assert due(run) == ["pay_1.1.x"], "before the payment's later ones"
    missing = command("redeliver", "4711")
    assert (missing.exit_code, missing.stderr) == (2, "relay: there is no delivery 4711\n")


def test_people_enable_an_endpoint_again(
    run: Run, endpoint: Endpoint, command: Callable[..., Result]
) -> None:
    run(lambda sql: given_deliveries(sql, endpoint, event(1), event(1, payment="pay_2")))
    assert command("enable", "mail").exit_code == 2
    tried(run, "pay_1.1.x", REFUSED)
    assert tried(run, "pay_2.1.x", REFUSED, patience=0).disabled
    assert due(run) == []
    assert command("enable", "mail").exit_code == 0
    assert due(run) == ["pay_1.1.x", "pay_2.1.x"]


def test_a_database_that_does_not_answer_is_named(
    command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_DATABASE_URL", "postgresql://x:oN1yHere@127.0.0.1:1/x")
    refused = command("deliveries")
    assert (refused.exit_code, "RELAY_DATABASE_URL does not answer" in refused.stderr) == (2, True)
    assert "oN1yHere" not in refused.output
