"""Thin events of API v2: verified, stored once, and a reason to read the account again."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime
from typing import Any

import pytest

from marketplace.payments.v1 import experts_pb2, webhooks_pb2
from tests.integration.conftest import StartWorld
from tests.support.errors import refusal
from tests.support.service import CONNECT_SECRET, PLATFORM_SECRET
from tests.support.stripe import ingestion
from tests.support.world import World, until

READY = experts_pb2.EXPERT_STATUS_READY
PLATFORM = webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM
CONNECT = webhooks_pb2.WEBHOOK_ENDPOINT_CONNECT
REQUIREMENTS = "v2.core.account[requirements].updated"


def thin_event(account: str, kind: str = REQUIREMENTS, **fields: Any) -> dict[str, Any]:
    """A notification as an event destination delivers it."""
    return {
        "id": f"evt_test_{secrets.token_hex(20)}",
        "object": "v2.core.event",
        "type": kind,
        "livemode": False,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "context": None,
        "related_object": {
            "id": account,
            "type": "v2.core.account",
            "url": f"/v2/core/accounts/{account}",
        },
        **fields,
    }


def row(world: World, event_id: str) -> tuple[Any, ...]:
    [found] = world.sql(
        "SELECT state, verdict, account_id FROM webhook_events WHERE event_id = %s", event_id
    )
    return tuple(found)


async def silent_expert(world: World) -> tuple[str, str]:
    """An expert whose account became ready at Stripe while nothing reported it."""
    expert_id = await world.expert(ready=False)
    account = world.account_of(expert_id)
    await world.settle_down()
    await world.pause_webhooks()
    await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding")
    return expert_id, account


def transfers_active(world: World, expert_id: str) -> bool:
    query = "SELECT transfers_active FROM experts WHERE expert_id = %s"
    return bool(world.sql(query, expert_id)[0][0])


@pytest.mark.parametrize(
    ("endpoint", "secret"),
    [(PLATFORM, PLATFORM_SECRET), (CONNECT, CONNECT_SECRET)],
    ids=["platform", "connect"],
)
@pytest.mark.parametrize(
    "kind",
    [
        REQUIREMENTS,
        "v2.core.account[configuration.recipient].capability_status_updated",
        "v2.core.account.updated",
    ],
)
async def test_a_thin_event_is_a_reason_to_read_the_account(
    world: World, endpoint: webhooks_pb2.WebhookEndpoint.ValueType, secret: str, kind: str
) -> None:
    expert_id, account = await silent_expert(world)
    event = thin_event(account, kind)
    answer = await world.webhooks.IngestEvent(ingestion(event, endpoint=endpoint, secret=secret))
    assert (answer.event_id, answer.duplicate) == (event["id"], False)

    async def noticed() -> bool:
        return transfers_active(world, expert_id)

    await until(noticed, "the account's readiness")
    await world.settle_down()
    assert row(world, event["id"]) == ("APPLIED", "applied", account)


async def test_the_same_thin_event_is_stored_once(world: World) -> None:
    _, account = await silent_expert(world)
    request = ingestion(thin_event(account), endpoint=CONNECT, secret=CONNECT_SECRET)
    answers = await asyncio.gather(*(world.webhooks.IngestEvent(request) for _ in range(5)))
    assert sorted(answer.duplicate for answer in answers) == [False, True, True, True, True]


async def test_thin_events_that_are_not_for_us_are_kept_and_change_nothing(world: World) -> None:
    stranger = thin_event("acct_else")
    meter = thin_event("mtr_1", "v1.billing.meter.no_meter_found")
    person = thin_event("person_1", "v2.core.account_person.updated")
    ping = thin_event("ed_1", "v2.core.event_destination.ping")
    nameless = thin_event("", "v2.core.something", related_object=None)
    for event in (stranger, meter, person, ping, nameless):
        await world.webhooks.IngestEvent(ingestion(event, endpoint=CONNECT, secret=CONNECT_SECRET))
    await world.settle_down()
    assert row(world, stranger["id"])[:2] == ("IGNORED", "unknown_object")
    for event in (meter, person, ping, nameless):
        assert row(world, event["id"])[:2] == ("IGNORED", "not_acted_upon")


async def test_a_forged_thin_event_is_refused(world: World) -> None:
    request = ingestion(thin_event("acct_1"), endpoint=CONNECT, secret="whsec_wrong")
    refused = await refusal(world.webhooks.IngestEvent(request))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "WEBHOOK_REFUSED")


async def test_a_second_destination_has_a_secret_of_its_own(start_world: StartWorld) -> None:
    """Stripe allows one form of events for a destination, so the thin ones have another."""
    world = await start_world(stripe_connect_webhook_secret=(CONNECT_SECRET, "whsec_thin"))
    _, account = await silent_expert(world)
    for secret in (CONNECT_SECRET, "whsec_thin"):
        request = ingestion(thin_event(account), endpoint=CONNECT, secret=secret)
        assert not (await world.webhooks.IngestEvent(request)).duplicate


async def test_lost_thin_events_are_found_in_their_list(start_world: StartWorld) -> None:
    world = await start_world(policy={"poll_seconds": 0.2})
    await world.stripe.control("POST", "/webhooks/rules", {"action": "drop"})
    expert_id = await world.expert(ready=False)
    account = world.account_of(expert_id)
    for action, active in (("complete_onboarding", True), ("restrict", False), ("restore", True)):
        await world.stripe.control("POST", f"/accounts/{account}/{action}", {})

        async def noticed(active: bool = active) -> bool:
            return transfers_active(world, expert_id) is active

        await until(noticed, f"the account after {action}")
    [(events, distinct)] = world.sql(
        "SELECT count(*), count(DISTINCT event_id) FROM webhook_events WHERE account_id = %s",
        account,
    )
    assert events == distinct > 0
