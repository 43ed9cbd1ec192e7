"""The relay and webhooks: signed, in order for each payment, and nobody waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from structlog.testing import capture_logs

from marketplace.payments import credentials
from payment_service.access import authenticator_of
from payment_service.domain.ports.records import FeedCursor
from payment_service.relay import deliveries, follower, process
from payment_service.relay.process import Relay
from payment_service.relay.settings import RelaySettings
from payment_service.relay.store import Sql, Store
from payment_service.rpc.pagination import cursor_of
from tests.support.certificates import put
from tests.support.issuer import Signer, key_set, token_settings
from tests.support.receiver import SECRET, Receiver, receiving
from tests.support.service import Service
from tests.support.world import World, until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(deliveries, "_LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(deliveries, "_LONGEST_DOWN_PAUSE", 0.2)
    monkeypatch.setattr(process, "_STANDBY_SECONDS", 0.05)
    monkeypatch.setattr(process, "_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(process, "_MEASURE_SECONDS", 0.1)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as opened:
        yield opened


@pytest.fixture
async def other_receiver() -> AsyncIterator[Receiver]:
    async with receiving() as opened:
        yield opened


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return path


@pytest.fixture
def settings_of(
    world: World, relay_database: str, tmp_path: Path, secret_file: Path
) -> Callable[..., RelaySettings]:
    """Makes a relay's settings with these endpoints."""

    def make(*endpoints: dict[str, Any], **settings: Any) -> RelaySettings:
        file = tmp_path / "endpoints.json"
        common = {"secret_files": [str(secret_file)], "networks": ["127.0.0.0/8"]}
        file.write_text(json.dumps({"endpoints": [{**common, **one} for one in endpoints]}))
        given: dict[str, Any] = {
            "core_address": (world.address,),
            "relay_database_url": relay_database,
            "relay_endpoints_file": file,
            "relay_metrics_port": 0,
        }
        return RelaySettings(**{**given, **settings})

    return make


@contextlib.asynccontextmanager
async def running(settings: RelaySettings) -> AsyncIterator[Relay]:
    relay = Relay(settings)
    task = asyncio.create_task(relay.run())
    try:
        yield relay
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def shown(relay: Relay, metric: str, **labels: str) -> float | None:
    return relay.metrics.registry.get_sample_value(metric, labels)


async def in_store(url: str, phase: Callable[[Sql], Any]) -> Any:
    store = Store(url)
    await store.open()
    try:
        return await store.run(phase)
    finally:
        await store.close()


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(psycopg2.connect(url)) as session, session.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def trail(world: World) -> set[tuple[str, int]]:
    return set(world.sql("SELECT payment_id, sequence FROM events"))


def places(events: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(one["data"]["payment_id"], one["data"]["sequence"]) for one in events]


def check_order(events: list[dict[str, Any]]) -> None:
    """Each payment's events are in order, if a repeated one is taken where it came first."""
    first = list(dict.fromkeys(places(events)))
    for payment in {payment_id for payment_id, _ in first}:
        sequence = [number for payment_id, number in first if payment_id == payment]
        assert sequence == sorted(sequence)


async def all_accepted(world: World, receiver: Receiver) -> None:
    async def probe() -> bool:
        return set(places(receiver.accepted)) == trail(world)

    await until(probe, "every event accepted")


async def test_every_event_comes_once_signed_and_in_order(
    world: World, receiver: Receiver, settings_of: Callable[..., RelaySettings]
) -> None:
    await world.captured()
    async with running(settings_of({"name": "mail", "url": receiver.url})) as relay:
        await all_accepted(world, receiver)
        await world.captured()
        await world.captured()
        await all_accepted(world, receiver)

        async def measured() -> bool:
            return shown(relay, "payments_relay_lag_events", target="mail") == 0

        await until(measured, "no lag")
    assert receiver.unverified == 0
    assert len(receiver.came) == len(trail(world))
    check_order(receiver.came)
    assert {one["specversion"] for one in receiver.came} == {"1.0"}


async def test_an_endpoint_gets_the_kinds_that_it_wants(
    world: World,
    receiver: Receiver,
    other_receiver: Receiver,
    settings_of: Callable[..., RelaySettings],
) -> None:
    await world.captured()
    given = settings_of(
        {"name": "mail", "url": receiver.url, "types": ["payment.captured"]},
        {"name": "all", "url": other_receiver.url},
    )
    async with running(given):
        await all_accepted(world, other_receiver)
    assert [one["type"] for one in receiver.accepted] == ["payment.captured"]


async def test_one_event_that_is_not_taken_holds_up_its_payment_only(
    world: World,
    receiver: Receiver,
    relay_database: str,
    settings_of: Callable[..., RelaySettings],
) -> None:
    """And when it was tried for long enough it is parked, and the payment's later ones come."""
    stuck = (await world.captured()).payment_id

    def answer(event: dict[str, Any]) -> int:
        return 500 if places([event]) == [(stuck, 2)] else 204

    receiver.answer = answer
    given = settings_of({"name": "mail", "url": receiver.url}, relay_retry_seconds=2)
    with capture_logs() as logs:
        async with running(given):

            async def refused() -> bool:
                return places(receiver.came).count((stuck, 2)) >= 2

            await until(refused, "tried again")
            assert (stuck, 3) not in places(receiver.came)
            free = (await world.captured()).payment_id

            async def passed() -> bool:
                return {one for one in trail(world) if one[0] == free} <= set(
                    places(receiver.accepted)
                )

            await until(passed, "the other payment's events")

            async def parked() -> bool:
                return (stuck, 3) in places(receiver.accepted)

            await until(parked, "the events behind the parked one")
            assert [one["event"] for one in logs if one["log_level"] == "error"] == [
                "relay_delivery_parked"
            ]
            [line] = await in_store(
                relay_database, lambda sql: deliveries.log_lines(sql, "mail", "PARKED", 10)
            )
            assert (line.payment_id, line.outcome) == (stuck, "STATUS_500")

            receiver.answer = lambda _: 204
            assert await in_store(relay_database, lambda sql: deliveries.redeliver(sql, line.id))
            await all_accepted(world, receiver)
    ids = {one["id"] for one in receiver.came if places([one]) == [(stuck, 2)]}
    assert len(ids) == 1


async def test_a_slow_endpoint_holds_up_no_other(
    world: World,
    receiver: Receiver,
    other_receiver: Receiver,
    settings_of: Callable[..., RelaySettings],
) -> None:
    receiver.answering.clear()
    given = settings_of(
        {"name": "slow", "url": receiver.url}, {"name": "quick", "url": other_receiver.url}
    )
    async with running(given):
        await world.captured()
        await all_accepted(world, other_receiver)
        assert receiver.came
        assert receiver.accepted == []
        receiver.answering.set()
        await all_accepted(world, receiver)
    check_order(receiver.came)


async def test_an_endpoint_that_fails_for_too_long_is_disabled_and_loses_nothing(
    world: World,
    receiver: Receiver,
    relay_database: str,
    settings_of: Callable[..., RelaySettings],
) -> None:
    receiver.answer = lambda _: 503
    given = settings_of({"name": "mail", "url": receiver.url}, relay_retry_seconds=1)
    with capture_logs() as logs:
        async with running(given) as relay:
            await world.captured()
            await world.captured()

            async def disabled() -> bool:
                return shown(relay, "payments_relay_endpoint_disabled", endpoint="mail") == 1

            await until(disabled, "disabled")
            tried = len(receiver.came)
            receiver.answer = lambda _: 204
            await asyncio.sleep(0.6)
            assert len(receiver.came) == tried
            assert await in_store(relay_database, lambda sql: deliveries.enable(sql, "mail"))
            await all_accepted(world, receiver)
    assert [one["event"] for one in logs if one["log_level"] == "error"] == [
        "relay_endpoint_disabled"
    ]
    check_order(receiver.accepted)


async def test_an_endpoint_that_is_gone_is_disabled_at_once(
    world: World, receiver: Receiver, settings_of: Callable[..., RelaySettings]
) -> None:
    receiver.answer = lambda _: 410
    async with running(settings_of({"name": "mail", "url": receiver.url})) as relay:
        await world.captured()

        async def disabled() -> bool:
            return shown(relay, "payments_relay_endpoint_disabled", endpoint="mail") == 1

        await until(disabled, "disabled")
    # The tries that were on their way when the answer came, and none after it.
    assert len(receiver.came) <= 2


async def test_a_redirect_is_not_followed(
    world: World,
    receiver: Receiver,
    other_receiver: Receiver,
    relay_database: str,
    settings_of: Callable[..., RelaySettings],
) -> None:
    receiver.answer = lambda _: 307
    receiver.headers = {"Location": other_receiver.url}
    async with running(settings_of({"name": "mail", "url": receiver.url})):
        await world.captured()

        async def recorded() -> bool:
            return ("REDIRECT",) in rows(
                relay_database, "SELECT outcome FROM payments_relay.deliveries"
            )

        await until(recorded, "the outcome")
    assert other_receiver.came == []
    assert other_receiver.unverified == 0


async def test_a_name_that_leads_into_our_network_gets_nothing(
    world: World,
    receiver: Receiver,
    relay_database: str,
    settings_of: Callable[..., RelaySettings],
) -> None:
    """The name passes the settings, as one does that is pointed elsewhere later."""
    url = receiver.url.replace("127.0.0.1", "localhost")
    async with running(settings_of({"name": "mail", "url": url, "networks": []})):
        await world.captured()

        async def recorded() -> bool:
            return ("ADDRESS_REFUSED",) in rows(
                relay_database, "SELECT outcome FROM payments_relay.deliveries"
            )

        await until(recorded, "the outcome")
    assert receiver.came == []


async def test_a_secret_is_rotated_without_a_restart(
    world: World,
    receiver: Receiver,
    secret_file: Path,
    settings_of: Callable[..., RelaySettings],
) -> None:
    async with running(settings_of({"name": "mail", "url": receiver.url})):
        await world.captured()
        await all_accepted(world, receiver)
        newer = SECRET[:-6] + "AAAAA="
        receiver.secrets = [newer]
        await asyncio.to_thread(secret_file.write_text, newer)
        await world.captured()
        await all_accepted(world, receiver)
    assert receiver.unverified == 0


async def test_a_relay_that_starts_again_continues_where_it_was(
    world: World, receiver: Receiver, settings_of: Callable[..., RelaySettings]
) -> None:
    given = settings_of({"name": "mail", "url": receiver.url})
    await world.captured()
    async with running(given):
        await all_accepted(world, receiver)
    await world.captured()
    async with running(given):
        await all_accepted(world, receiver)
    assert len(receiver.came) == len(trail(world))


async def test_one_of_two_relays_is_active_and_the_other_takes_over(
    world: World,
    receiver: Receiver,
    relay_database: str,
    settings_of: Callable[..., RelaySettings],
) -> None:
    given = settings_of({"name": "mail", "url": receiver.url})
    async with running(given) as first:

        async def active() -> bool:
            return shown(first, "payments_relay_active") == 1

        await until(active, "the first is active")
        async with running(given) as second:
            await world.captured()
            await all_accepted(world, receiver)
            assert shown(second, "payments_relay_active") == 0
            assert second.is_ready
            # The session with the lock ends, as with a cut network.
            rows(
                relay_database,
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
                "AND granted AND database = "
                "(SELECT oid FROM pg_database WHERE datname = current_database())",
            )
            await world.captured()
            await all_accepted(world, receiver)
            [(holders,)] = rows(
                relay_database,
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND "
                "database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            )
            assert holders == 1
    check_order(receiver.accepted)
    assert len({one["id"] for one in receiver.came}) == len(trail(world))


async def test_a_cursor_of_another_feed_begins_anew_without_what_was_sent(
    world: World,
    receiver: Receiver,
    relay_database: str,
    settings_of: Callable[..., RelaySettings],
) -> None:
    """As after a restore of the books that did not restore the relay's schema."""
    given = settings_of({"name": "mail", "url": receiver.url})
    await world.captured()
    async with running(given):
        await all_accepted(world, receiver)
    sent = len(receiver.came)
    foreign = cursor_of(FeedCursor(1, b"elsewise"))
    await in_store(relay_database, lambda sql: sql.do("UPDATE cursors SET cursor = %s", foreign))
    await world.captured()
    with capture_logs() as logs:
        async with running(given):
            await all_accepted(world, receiver)
    assert [one["event"] for one in logs].count("relay_rewound") == 1
    assert len(receiver.came) == len(trail(world)) > sent


async def test_the_relay_shows_its_token_and_continues_when_it_gets_the_role(
    world: World,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings_of: Callable[..., RelaySettings],
) -> None:
    monkeypatch.setattr(follower, "_REFUSED_SECONDS", 0.1)
    monkeypatch.setattr(credentials, "_LOOK_SECONDS", 0.0)
    signer, token = Signer("one"), tmp_path / "token"
    put(tmp_path / "jwks.json", key_set(signer))
    put(token, signer.token(roles=["USER_SERVICE"]).encode())
    assert world.service is not None
    guarded = Service(
        world.service.settings, authenticator_of(token_settings(tmp_path / "jwks.json"))
    )
    await guarded.start(loops=False)
    given = settings_of(
        {"name": "mail", "url": receiver.url},
        core_address=(guarded.address,),
        core_token_file=token,
    )
    try:
        await world.captured()
        with capture_logs() as logs:
            async with running(given) as relay:

                async def refused() -> bool:
                    return shown(relay, "payments_relay_feed_failing", target="webhooks") == 1

                await until(refused, "the feed is refused")
                assert receiver.came == []
                put(token, signer.token(roles=["NOTIFICATION_SERVICE"]).encode())
                await all_accepted(world, receiver)
                assert shown(relay, "payments_relay_feed_failing", target="webhooks") == 0
        codes = {one["code"] for one in logs if one["event"] == "relay_feed_refused"}
        assert codes == {"PERMISSION_DENIED"}
    finally:
        await guarded.stop()


async def test_the_metrics_and_the_log_say_what_waits(
    world: World,
    receiver: Receiver,
    settings_of: Callable[..., RelaySettings],
    relay_database: str,
) -> None:
    receiver.answer = lambda _: 500
    async with running(settings_of({"name": "mail", "url": receiver.url})) as relay:
        await world.captured()

        async def late() -> bool:
            return (shown(relay, "payments_relay_lag_events", target="mail") or 0) > 0 and (
                shown(relay, "payments_relay_lag_seconds", target="mail") or 0
            ) > 0

        await until(late, "the lag of the endpoint")
        waiting = await in_store(
            relay_database, lambda sql: deliveries.log_lines(sql, "mail", "WAITING", 100)
        )
        assert {line.endpoint for line in waiting} == {"mail"}
        failed = shown(
            relay, "payments_relay_deliveries_total", endpoint="mail", outcome="STATUS_500"
        )
        assert failed is not None
        assert failed > 0
