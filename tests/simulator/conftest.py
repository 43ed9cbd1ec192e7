"""A simulator on a free port, the real SDK in front of it, and receivers for its webhooks."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import stripe
from aiohttp import web
from stripe import StripeClient

from stripe_simulator import Config, RunningSimulator, WebhookTarget, start
from tests.support.stripe_api.plugin import judge, stripe_approves  # noqa: F401

PLATFORM_SECRETS = ("whsec_platform",)
CONNECT_SECRETS = ("whsec_connect_old", "whsec_connect_new")
EXPRESS: Any = {
    "type": "express",
    "country": "US",
    "email": "expert@example.com",
    "business_type": "individual",
    "capabilities": {"card_payments": {"requested": True}, "transfers": {"requested": True}},
}


@dataclasses.dataclass
class World:
    """Everything that a test of the simulator needs, with its walks of several steps."""

    simulator: RunningSimulator
    http: aiohttp.ClientSession
    client: StripeClient

    @property
    def url(self) -> str:
        return self.simulator.base_url

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        """The control API; a refusal fails the test."""
        async with self.http.request(method, f"{self.url}/_simulator{path}", json=body) as answer:
            given = await answer.json()
            assert answer.status == 200, given
            return given

    async def curl(
        self,
        method: str,
        path: str,
        data: str | None = None,
        *,
        key: str | None = "sk_test_simulator",
        **headers: str,
    ) -> tuple[int, Any, Any]:
        """A raw form request, as curl would send it; (status, body, headers)."""
        if key is not None:
            headers.setdefault("Authorization", f"Bearer {key}")
        if data is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.request(
            method, self.url + path, data=data, headers=named, allow_redirects=False
        ) as answer:
            return answer.status, json.loads(await answer.text()), answer.headers

    async def expert(self, **params: Any) -> str:
        """A connected account that may receive money."""
        given: Any = {**EXPRESS, **params}
        account = await self.client.v1.accounts.create_async(params=given)
        await self.control("POST", f"/accounts/{account.id}/complete_onboarding")
        return account.id

    async def intent(self, amount: int = 10_000, **params: Any) -> stripe.PaymentIntent:
        given: Any = {
            "amount": amount,
            "currency": "usd",
            "capture_method": "manual",
            "allowed_payment_method_types": ["card"],
            **params,
        }
        return await self.client.v1.payment_intents.create_async(params=given)

    async def paid(
        self, amount: int = 10_000, card: str = "pm_card_visa", **params: Any
    ) -> stripe.PaymentIntent:
        """An intent confirmed with a card: held, or captured when it is not manual."""
        intent = await self.intent(amount, **params)
        return await self.client.v1.payment_intents.confirm_async(
            intent.id, params={"payment_method": card}
        )

    async def destination_charge(
        self, expert: str, amount: int = 10_000, fee: int = 1_000, card: str = "pm_card_visa"
    ) -> stripe.PaymentIntent:
        """Paid, captured and split between the expert and the platform."""
        held = await self.paid(
            amount, card, application_fee_amount=fee, transfer_data={"destination": expert}
        )
        return await self.client.v1.payment_intents.capture_async(
            held.id, params={"expand": ["latest_charge"]}
        )

    async def charged(self, amount: int = 10_000, **params: Any) -> stripe.Charge:
        """A charge on the platform's own balance."""
        intent = await self.paid(amount, capture_method="automatic", **params)
        return await self.client.v1.charges.retrieve_async(str(intent.latest_charge))

    async def fund(self, amount: int = 100_000, currency: str = "usd") -> None:
        """Tops up the platform's balance: a refund takes only what is available."""
        given = {"amount": amount, "currency": currency, "type": "topup"}
        await self.control("POST", "/balance", given)

    async def lines(self, account: str | None = None) -> list[stripe.BalanceTransaction]:
        """All balance transactions of an account, oldest first."""
        options: Any = {"stripe_account": account} if account else {}
        page = await self.client.v1.balance_transactions.list_async(
            params={"limit": 100}, options=options
        )
        return [line async for line in page.auto_paging_iter()][::-1]

    async def event_types(self, account: str | None = None) -> list[str]:
        """Types of all events, oldest first."""
        options: Any = {"stripe_account": account} if account else {}
        page = await self.client.v1.events.list_async(params={"limit": 100}, options=options)
        return [event.type for event in page.data[::-1]]

    async def effects(self, kind: str | None = None) -> list[Any]:
        found = await self.control("GET", f"/effects?kind={kind}" if kind else "/effects")
        return list(found["effects"])


async def balance(world: World, account: str | None = None, currency: str = "usd") -> int:
    """Available and pending together."""
    return sum(await available_and_pending(world, account, currency))


async def available_and_pending(
    world: World, account: str | None = None, currency: str = "usd"
) -> tuple[int, int]:
    options: Any = {"stripe_account": account} if account else {}
    found = await world.client.v1.balance.retrieve_async(options=options)
    available, pending = (
        sum(row.amount for row in rows if row.currency == currency)
        for rows in (found.available, found.pending)
    )
    return available, pending


StartWorld = Callable[..., Awaitable[World]]


@pytest.fixture
async def start_world() -> AsyncIterator[StartWorld]:
    """Starts a simulator with these settings; all are closed at the end."""
    worlds: list[World] = []

    async def begin(**settings: Any) -> World:
        given = {"port": 0, "seed": "tests", **settings}
        simulator = await start(Config(**given))
        # Most tests are about money, and make their accounts by v1.
        simulator.simulation.settings.accounts_v1_support = True
        http = aiohttp.ClientSession()
        client = StripeClient(
            "sk_test_simulator",
            http_client=stripe.AIOHTTPClient(session=http),
            base_addresses={"api": simulator.base_url},
            max_network_retries=0,
        )
        worlds.append(World(simulator, http, client))
        return worlds[-1]

    yield begin
    for world in worlds:
        await world.http.close()
        await world.simulator.close()


@pytest.fixture
async def world(start_world: StartWorld) -> World:
    return await start_world()


class Receiver:
    """An endpoint that keeps what it receives and answers as configured."""

    def __init__(self) -> None:
        self.deliveries: list[tuple[str, bytes, str]] = []
        self.statuses: list[int] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/{endpoint}", self._take)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        endpoint = request.match_info["endpoint"]
        self.deliveries.append((endpoint, body, request.headers["Stripe-Signature"]))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    def types(self, endpoint: str) -> list[str]:
        return [json.loads(body)["type"] for name, body, _ in self.deliveries if name == endpoint]

    def targets(self) -> tuple[WebhookTarget, WebhookTarget]:
        return (
            WebhookTarget("platform", f"{self.url}/platform", PLATFORM_SECRETS),
            WebhookTarget("connect", f"{self.url}/connect", CONNECT_SECRETS),
        )


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.start()
    yield receiver
    await receiver.stop()


@pytest.fixture
async def hooked(start_world: StartWorld, receiver: Receiver) -> World:
    """A simulator that delivers to the receiver, impatiently."""
    world = await start_world(webhooks=receiver.targets())
    await world.control("POST", "/webhooks", {"retry_seconds": [0.01, 0.02, 0.03]})
    return world


async def struck(world: World) -> None:
    """Wait until a rule of the fault plan has fired."""
    for _ in range(1_000):
        if any(rule.fired for rule in world.simulator.faults.rules):
            return
        await asyncio.sleep(0.005)
    raise AssertionError("no rule has fired")


async def settle(world: World) -> None:
    """Waits until every delivery has arrived or was abandoned."""
    assert (await world.control("POST", "/webhooks/settle", {"seconds": 10}))["settled"]
