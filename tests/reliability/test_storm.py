"""Webhooks as the network makes them: repeated, shuffled, lost, late."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from google.protobuf.message import Message

from dev.registered_events import REGISTERED_EVENTS
from marketplace.payments.v1 import webhooks_pb2
from payment_service.application.side_by_side import at_most
from stripe_simulator.webhooks import sign
from tests.reliability import proving
from tests.reliability.crowd import calm
from tests.support.books import check_books
from tests.support.requests import capture_request, refund_request
from tests.support.running import replica, running_world
from tests.support.service import CONNECT_SECRET, PLATFORM_SECRET
from tests.support.world import PATIENCE, World, until

#: Some three events come of a payment.
_LEAST_EVENTS = proving.by_profile(200, 5_000)
_PAYMENTS = proving.by_profile(76, 1_900)
_COPIES = 3
_DROPPED = 0.05
#: In full as long as it ever takes by itself.
_POLLED_AFTER = proving.by_profile("1 second", "10 seconds")
_FOUND_WITHIN = 60.0
_LONG = proving.by_profile(240, 3600)


# ---- repeated, shuffled, lost ----


@dataclass(frozen=True)
class Life:
    """What a client, an operator and a caller do to one payment."""

    amount: int
    paying: str
    ending: str


_PAYINGS = ("good",) * 8 + ("declined", "declined, then good", "3DS", "3DS failed", "left")
_ENDINGS = (
    "captured",
    "captured, refunded in part",
    "captured, refunded at the dashboard",
    "captured, refunded, bounced",
    "captured at the dashboard",
    "cancelled",
    "cancelled at the dashboard",
    "left in escrow",
)


def _lives(count: int) -> list[Life]:
    chance = random.Random(proving.SEED)
    return [
        Life(
            chance.randrange(1_000, 50_000),
            chance.choice(_PAYINGS),
            _ENDINGS[number % len(_ENDINGS)],
        )
        for number in range(count)
    ]


@dataclass
class Stage:
    """The world in which the lives are lived, in order or in a storm."""

    world: World
    expert: str
    ids: list[str]
    intents: list[str]

    async def pay(self, lives: list[Life]) -> None:
        world = self.world

        async def one(life: Life) -> tuple[str, str]:
            initiated = await world.initiate(self.expert, life.amount)
            intent = initiated.payment.payment_intent_id
            if life.paying.startswith("declined"):
                await world.confirm(initiated, "pm_card_visa_chargeDeclined")
            if life.paying.endswith("good"):
                await world.confirm(initiated)
            if life.paying.startswith("3DS"):
                await world.confirm(initiated, "pm_card_authenticationRequired")
                outcome = "fail" if life.paying.endswith("failed") else "approve"
                path = f"/payment_intents/{intent}/authenticate"
                await world.stripe.control("POST", path, {"outcome": outcome})
            return initiated.payment.payment_id, intent

        for payment_id, intent in await at_most(8, one, lives):
            self.ids.append(payment_id)
            self.intents.append(intent)

    async def end(self, lives: list[Life]) -> None:
        world = self.world
        held = {
            payment_id
            for (payment_id,) in world.sql(
                "SELECT payment_id FROM payments WHERE state = 'IN_ESCROW'"
            )
        }

        async def one(number: int) -> None:
            payment_id, intent = self.ids[number], self.intents[number]
            life = lives[number]
            if payment_id not in held:
                return
            path = f"/payment_intents/{intent}"
            if life.ending == "captured at the dashboard":
                await world.stripe.api("POST", f"{path}/capture")
            elif life.ending == "cancelled at the dashboard":
                await world.stripe.api("POST", f"{path}/cancel")
            elif life.ending == "cancelled":
                await self._refund(payment_id)
            elif life.ending.startswith("captured"):
                await self._answered("CapturePayment", capture_request(payment_id))
            if life.ending == "captured, refunded in part":
                await self._refund(payment_id, life.amount // 3)
            elif life.ending == "captured, refunded at the dashboard":
                await world.stripe.api("POST", "/refunds", payment_intent=intent, amount=100)
            elif life.ending == "captured, refunded, bounced":
                await self._refund(payment_id)

                async def refunds() -> list[tuple[Any, ...]]:
                    return world.sql(
                        "SELECT movement_id FROM movements "
                        "WHERE payment_id = %s AND kind = 'refund'",
                        payment_id,
                    )

                [(refund_id,)] = await until(refunds, "the refund that is to bounce")
                await world.stripe.control("POST", f"/refunds/{refund_id}/fail")

        await at_most(8, one, range(len(lives)))

    async def _refund(self, payment_id: str, amount: int = 0) -> None:
        await self._answered("RefundPayment", refund_request(payment_id, amount))

    async def _answered(self, method: str, request: Message) -> None:
        """Repeats the call: while events come late, Stripe is asked before money is moved."""
        reply = await self.world.until_answered(method, request)
        assert reply.code == "OK", reply

    def rows(self) -> list[object]:
        """Every payment and its books, without ids and times."""
        found: dict[str, list[object]] = {payment_id: [] for payment_id in self.ids}
        for payment_id, *row in self.world.sql(
            "SELECT payment_id, state, currency, amount, held, captured, refunded_after_capture, "
            "net_commission, client_payable, processor_fee, waiting_for, failure->>'code', "
            "failure->>'decline_code' FROM payments"
        ):
            found[payment_id].append(tuple(row))
        for payment_id, *row in self.world.sql(
            "SELECT payment_id, replace(account, payment_id, ''), currency, kind, "
            "sum(minor_units)::bigint FROM postings GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
        ):
            name, *rest = row
            found[payment_id].append((name.replace(self.expert, ""), *rest))
        for payment_id, kind in self.world.sql(
            "SELECT DISTINCT payment_id, kind FROM discrepancies ORDER BY 1, 2"
        ):
            found[payment_id].append(kind)
        return [found[payment_id] for payment_id in self.ids]


@pytest.mark.timeout(_LONG)
def test_any_order_and_number_of_deliveries_ends_the_same(
    new_database: Callable[[], str],
) -> None:
    async def run() -> None:
        lives = _lives(_PAYMENTS)
        async with running_world(new_database()) as world:
            in_order = Stage(world, await world.expert(), [], [])
            await in_order.pay(lives)
            await calm(world)
            await in_order.end(lives)
            await calm(world)
            await check_books(world)
            expected = in_order.rows()
            proving.progress(f"storm: {len(lives)} payments lived in order")
        async with running_world(new_database()) as world:
            stormy = Stage(world, await world.expert(), [], [])
            await world.settle_down()
            storm = Storm(world, stormy.expert)
            await storm.begin()
            await stormy.pay(lives)
            await storm.deliver_new_events()
            await stormy.end(lives)
            await storm.deliver_new_events()
            await world.settle_down()
            for number, (after, wanted) in enumerate(zip(stormy.rows(), expected, strict=True)):
                assert after == wanted, f"{lives[number]}: {after} instead of {wanted}"
            await check_books(world)
        assert storm.events >= _LEAST_EVENTS
        assert storm.dropped, "no event was dropped: the storm was none"
        proving.figure(
            "F",
            f"storm: {storm.events} events of {len(lives)} payments x {_COPIES}, shuffled, "
            f"{storm.dropped} dropped: all equal to in-order; dropped ones found by asking "
            f"after {storm.longest:.1f} s at most",
        )

    asyncio.run(run())


class Storm:
    """Holds Stripe's deliveries back, and makes its own of the same events."""

    def __init__(self, world: World, expert: str) -> None:
        self.world = world
        self.account = world.account_of(expert)
        self.events = 0
        self.dropped = 0
        self.longest = 0.0
        self._chance = random.Random(proving.SEED + 2)
        self._last = {"": "", self.account: ""}

    async def begin(self) -> None:
        await self.world.stripe.control("POST", "/webhooks", {"paused": True})
        self._poll_in("1 hour")
        await self._new_events()

    def _poll_in(self, pause: str) -> None:
        """When the poller reads the lists next: not while the storm is being brewed."""
        self.world.sql("UPDATE event_cursors SET next_time = now() + CAST(%s AS interval)", pause)

    async def _new_events(self) -> list[tuple[str, dict[str, Any]]]:
        found: list[tuple[str, dict[str, Any]]] = []
        for account, last in self._last.items():
            newer: list[dict[str, Any]] = []
            more: dict[str, Any] = {}
            while True:
                page = await self.world.stripe.api(
                    "GET", "/events", account=account, limit=100, **more
                )
                ids = [one["id"] for one in page["data"]]
                known = ids.index(last) if last in ids else len(ids)
                newer += page["data"][:known]
                if known < len(ids) or not page["has_more"]:
                    break
                more = {"starting_after": ids[-1]}
            if newer:
                self._last[account] = newer[0]["id"]
            found += [(account, one) for one in newer]
        return found

    async def deliver_new_events(self) -> None:
        """Everything that has happened since, by all ways at once; then the poller's turn."""
        # Endpoints are registered for these, and only these are polled.
        found = await self._new_events()
        events = [one for one in found if one[1]["type"] in REGISTERED_EVENTS]
        assert events
        kept = [one for one in events if self._chance.random() >= _DROPPED]
        lost = {event["id"] for _, event in events} - {event["id"] for _, event in kept}
        self.events += len(events)
        self.dropped += len(lost)
        copies = kept * _COPIES
        self._chance.shuffle(copies)
        async with (
            replica(self.world, loops=False) as other,
            aiohttp.ClientSession() as http,
        ):
            deliveries = enumerate(copies)
            await at_most(12, lambda one: self._deliver(http, other, *one[1], one[0]), deliveries)
        proving.progress(f"storm: {len(copies)} deliveries made, {len(lost)} events dropped")
        self._poll_in(_POLLED_AFTER)
        began = time.monotonic()

        async def all_known() -> bool:
            [(known,)] = self.world.sql(
                "SELECT count(*) FROM webhook_events WHERE event_id = ANY(%s)", list(lost)
            )
            return bool(known == len(lost))

        await until(all_known, "the dropped events", _FOUND_WITHIN)
        self.longest = max(self.longest, time.monotonic() - began)
        self._poll_in("1 hour")
        await self.world.settle_down()

    async def _deliver(
        self,
        http: aiohttp.ClientSession,
        other: World,
        account: str,
        event: dict[str, Any],
        number: int,
    ) -> None:
        """Two thirds come through the gateway, the others straight to another replica."""
        payload = json.dumps(event)
        secret = CONNECT_SECRET if account else PLATFORM_SECRET
        signature = sign(payload, (secret,), int(time.time()))
        if number % 3 == 0:
            connect, platform = (
                webhooks_pb2.WEBHOOK_ENDPOINT_CONNECT,
                webhooks_pb2.WEBHOOK_ENDPOINT_PLATFORM,
            )
            await other.webhooks.IngestEvent(
                webhooks_pb2.IngestEventRequest(
                    endpoint=connect if account else platform,
                    payload=payload.encode(),
                    signature=signature,
                )
            )
            return
        suffix = "/connect" if account else ""
        url = f"{self.world.gateway_url}/api/v1/webhooks/stripe{suffix}"
        deadline = time.monotonic() + PATIENCE
        while True:  # As Stripe: again until it is taken.
            headers = {"Stripe-Signature": signature}
            async with http.post(url, data=payload.encode(), headers=headers) as answer:
                if answer.status == 200:
                    return
                assert answer.status == 503, await answer.text()
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
